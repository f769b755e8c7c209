"""Weights that a run starts from, as files: which they are, what they hold, and what of it fits the model (recipe section train.init).

Called by the driver, before anything is started, and by initial.py, which loads them. Reads names and shapes only; needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from data_pipeline.errors import UserError
from model.config import ModelConfig
from trainer.config import RunConfig
from trainer.sections import InitSection

Shape = tuple[int, ...]
Rules = list[tuple[re.Pattern[str], str]]
# Fields of an exported config.json without which its weights mean something else, and what a difference tells.
MEANING = {
    "latent_channels": "another tokenizer's latents",
    **dict.fromkeys(("width", "depth", "heads", "ffn_ratio"), "a model of another size"),
    **dict.fromkeys(("text_width", "text_tokens"), "another text encoder"),
    **dict.fromkeys(("rope_base", "rope_split", "rope_interleaved"), "other positions"),
    **dict.fromkeys(("head", "head_width", "head_depth", "head_output", "diffusion_steps"), "another head"),
}


@dataclass(frozen=True)
class Match:
    """What of the stored tensors fits a model."""

    taken: dict[str, str]  # the model's name -> the stored one
    missing: tuple[str, ...] = ()  # of the model
    left_over: tuple[str, ...] = ()  # stored
    other_shape: tuple[str, ...] = ()  # "name is (2, 3), not (2, 4)"
    other_fields: tuple[str, ...] = ()  # "width is 64, not 32 (a model of another size)", of an exported config.json

    @property
    def complaint(self) -> str | None:
        """The first thing that keeps it from being the same model's weights."""
        unmatched = [f"no tensor for {name}" for name in self.missing] + [f"{name} is no tensor of the model" for name in self.left_over]
        found = [*self.other_fields, *self.other_shape, *unmatched]
        return f"{found[0]}{f' (and {len(found) - 1} more differences)' if len(found) > 1 else ''}" if found else None


def resolved(config: RunConfig) -> RunConfig:
    """The recipe with its key map read from the file it may name, and with the checksum of its weights. Raises UserError."""
    init = config.train.init
    if init.source is None:
        return config
    found = checksum(init.source)
    if init.sha256 not in (None, found):
        raise changed(init, found)
    section = init.model_copy(update={"sha256": found, "map": read_map(init.map)})
    return config.model_copy(update={"train": config.train.model_copy(update={"init": section})})


def changed(init: InitSection, found: str) -> UserError:
    return UserError(f"train.init.from={init.source} was changed: its sha256 is {found}, the run started from {init.sha256}; put it back")


def files_of(source: str) -> list[Path]:
    """The safetensors files of a path: itself, or a folder's, in the order of their names. Raises UserError."""
    path = Path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        problem = "holds no .safetensors file" if path.is_dir() else "does not exist"
        raise UserError(f"train.init.from={source} {problem}: give an exported folder, a .safetensors file or a folder of them")
    return files


def checksum(source: str) -> str:
    """SHA-256 of the file; of a folder, that of what `sha256sum config.json *.safetensors` would print (the config where there is one)."""
    files, config = files_of(source), Path(source) / "config.json"
    sums = []
    for path in [config, *files] if config.is_file() else files:
        with path.open("rb") as file:
            sums.append((hashlib.file_digest(file, "sha256").hexdigest(), path.name))
    if Path(source).is_file():
        return sums[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()


def stored_shapes(source: str) -> dict[str, Shape]:
    """Shape of every stored tensor by name. Raises UserError for a damaged file, or a name in two files."""
    shapes: dict[str, Shape] = {}
    for path in files_of(source):
        try:
            with safe_open(path, framework="np") as file:
                held = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a safetensors file: {str(error).splitlines()[0]}; get it again") from None
        if twice := sorted(shapes.keys() & held.keys()):
            raise UserError(f"{path}: the tensor {twice[0]} stands in another file of the folder too; train.init.from takes one model")
        shapes |= held
    return shapes


def read_map(given: dict[str, str] | str) -> dict[str, str]:
    """The key map, which may be the path of a YAML file. Raises UserError."""
    if isinstance(given, dict):
        return given
    try:
        found = yaml.safe_load(Path(given).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"train.init.map={given} cannot be read ({str(error).splitlines()[0]}): give a YAML mapping of names") from None
    if not isinstance(found, dict):
        raise UserError(f"train.init.map={given} is no mapping: write one `regex: replacement` per line")
    return {str(pattern): "" if replacement is None else str(replacement) for pattern, replacement in found.items()}


def rules_of(key_map: dict[str, str] | str) -> Rules:
    """The compiled key map. Raises UserError naming a pattern that is no regular expression."""
    rules = []
    for pattern, replacement in read_map(key_map).items():
        try:
            compiled = re.compile(pattern)
            re.sub(compiled, replacement, "")
            rules.append((compiled, replacement))
        except (re.error, IndexError) as error:
            raise UserError(f"train.init.map: {pattern!r} -> {replacement!r} is no regular expression and replacement: {error}") from None
    return rules


def renamed(name: str, rules: Rules) -> str:
    """A stored tensor's name with every rule applied in turn, wherever it matches; "" when the rules leave the tensor out."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def match(own: Mapping[str, Shape], stored: Mapping[str, Shape], rules: Rules) -> Match:
    """Which stored tensor serves which of the model's. Raises UserError when two are to serve one."""
    source_of: dict[str, str] = {}
    for name in stored:
        new = renamed(name, rules)
        if new in source_of:
            raise UserError(f"train.init.map gives {source_of[new]} and {name} the same name {new}")
        if new:
            source_of[new] = name
    common = [name for name in own if name in source_of]
    unlike = [name for name in common if own[name] != stored[source_of[name]]]
    return Match(
        taken={name: source_of[name] for name in common if name not in unlike},
        missing=tuple(name for name in own if name not in source_of),
        left_over=tuple(old for new, old in source_of.items() if new not in own),
        other_shape=tuple(f"{name} is {stored[source_of[name]]}, not {own[name]}" for name in unlike),
    )


def other_fields(source: str, model: ModelConfig) -> tuple[str, ...]:
    """What an exported folder's config.json says differently about the meaning of its weights."""
    path = Path(source) / "config.json"
    try:
        fields = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path} is not JSON: export the model again") from None
    own: dict[str, Any] = json.loads(json.dumps(asdict(model)))
    known = [name for name in MEANING if name in fields] if isinstance(fields, dict) and "latent_channels" in fields else []
    return tuple(f"{name} is {fields[name]}, not {own[name]} ({MEANING[name]})" for name in known if fields[name] != own[name])


def summary(found: Match, init: InitSection) -> list[str]:
    """One line of what was taken, and a second of what was not."""
    counts = {"missing": found.missing, "left over": found.left_over, "of another shape": found.other_shape, "fields": found.other_fields}
    first = f"init  {len(found.taken)} of {len(found.taken) + len(found.missing) + len(found.other_shape)} tensors from {init.source}"
    rest = [f"{len(names)} {what} ({names[0]}{', ...' if len(names) > 1 else ''})" for what, names in counts.items() if names]
    return [first, *(["      " + ", ".join(rest)] if rest else [])]
