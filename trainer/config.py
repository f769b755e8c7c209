"""RunConfig: a recipe (YAML) with dotted overrides, validated once at the edge. One grammar for every command; nothing below reads YAML."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data_pipeline.errors import UserError
from data_pipeline.storage import Location, location
from trainer.curriculum import Mix, Promotion, Stage
from trainer.guard import GuardRule
from trainer.sections import DataSection, InitSection, LoraSection, PlanSection, RunSection, Section

RECIPES = Path(__file__).parent / "recipes"


class ModelSection(Section):
    size: str = "toy"
    heads: int | None = Field(None, ge=1)


class ClusterSection(Section):
    launcher: Literal["ray", "torchrun"] = "ray"  # torchrun: the processes are there already, cluster.workers is their number
    workers: int = Field(2, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: Literal[0, 1] = 0  # a worker is one process on one device
    address: str | None = None  # of a running Ray; default: the job's own, else a private local one


class ParallelSection(Section):
    tp: int = Field(1, ge=1)  # tensor parallel: heads and FFN channels are dealt to so many ranks
    megatron_sp: bool = False  # with tp > 1: between its layers the tokens are cut over the same ranks
    sp: int = Field(1, ge=1)  # Ulysses: the tokens are cut over so many ranks everywhere but in attention
    zero: Literal[0, 1, 2, 3] = 1  # what DeepSpeed shards: nothing, moments and masters, gradients too, weights too
    offload: bool = False  # the optimiser's part of memory and work to the CPU; needs zero >= 1
    precision: Literal["fp32", "bf16"] = "fp32"  # of weights and matrix products; masters, moments and losses stay in fp32

    @model_validator(mode="after")
    def needs_zero(self) -> ParallelSection:
        if not self.zero and (self.offload or self.precision == "bf16"):
            raise ValueError("zero=0 keeps no fp32 masters apart: set parallel.zero to 1, 2 or 3 for offload or bf16")
        return self


class TrainSection(Section):
    init: InitSection = InitSection()
    freeze: list[str] = Field([])  # globs of the names of parameters that are not trained
    lora: LoraSection = LoraSection()
    supervision: Literal["all_frames", "one_frame"] = "all_frames"
    masks_per_frame: int = Field(1, ge=1, le=4)  # all_frames: masked copies that share one clean copy
    block: int = Field(1, ge=1, le=4)  # all_frames: latent frames that are masked, generated and cached together
    context_noise: float = Field(0.0, ge=0)  # largest standard deviation of noise on clean context, in normalised latents
    context_masked: float = Field(0.0, ge=0, lt=1)  # largest fraction of clean context that is masked again
    conditions: tuple[Literal["fps", "motion", "context_noise"], ...] = ()  # what the model is told beside the caption
    head: Literal["ddpm", "flow"] = "ddpm"
    lr: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    ema: float = Field(0.9999, ge=0, lt=1)
    checkpointing: Literal["none", "selective", "full"] = "none"  # of activations, per block
    compile: bool = False  # each block by torch.compile
    micro_batch: int = Field(8, ge=1)  # at most, samples per device and pass
    preflight: bool = True  # a new run first tries the largest batch of every stage
    commit_every: int = Field(50, ge=1)  # optimiser steps; only the newest of these commits is kept
    permanent_every: int = Field(500, ge=1)  # optimiser steps; the next commit is permanent, as is every stage's last
    keep_commits: int = Field(8, ge=1)  # permanent ones
    evaluate_every: int = Field(50, ge=1)  # optimiser steps
    evaluate_samples: int = Field(32, ge=1)
    max_restarts: int = Field(3, ge=0)  # of a generation that fails without a new commit

    @model_validator(mode="after")
    def block_needs_all_frames(self) -> TrainSection:
        if self.block > 1 and self.supervision == "one_frame":
            raise ValueError(f"block={self.block} needs supervision=all_frames; one_frame has single frames")
        return self


class ProfileSection(Section):
    steps: str | None = Field(None, pattern=r"^\d+\.\.\d+$")  # e.g. 20..25: a trace of these steps by every rank

    @property
    def range(self) -> range:
        first, _, last = (self.steps or "1..0").partition("..")
        return range(int(first), int(last) + 1)


class CurriculumSection(Section):
    stages: Annotated[list[Stage], Field(min_length=1)]


class SampleSection(Section):
    videos: int = Field(4, ge=1)
    iterations: int = Field(16, ge=1)
    head_steps: int = Field(50, ge=2)
    guidance: float = Field(1.5, ge=1)
    sink: int = Field(1, ge=0)  # first latent frames that stay visible when there is a window
    window: int = Field(0, ge=0)  # newest latent frames that are visible; 0: all
    context_noise: float = Field(0.0, ge=0)  # on finished frames; for models trained with train.context_noise
    context_masked: float = Field(0.0, ge=0, lt=1)  # fraction of finished frames masked again; with train.context_masked
    conditions: dict[str, float] = Field({})  # what the model is told, e.g. {motion: 0.1}; fps is data.fps unless said


class MetricsSection(Section):
    port: int | None = Field(None, ge=1, le=65535)  # of the Prometheus endpoint, one per pod or host; none: no endpoint
    host: str = "127.0.0.1"  # the address it listens at


class RunConfig(Section):
    """Everything a run is made of."""

    recipe: str = "toy"
    seed: int = 0
    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    cluster: ClusterSection = ClusterSection()
    parallel: ParallelSection = ParallelSection()
    train: TrainSection = TrainSection()
    guard: GuardRule = GuardRule()
    profile: ProfileSection = ProfileSection()
    curriculum: CurriculumSection
    sample: SampleSection = SampleSection()
    plan: PlanSection = PlanSection()
    metrics: MetricsSection = MetricsSection()

    @model_validator(mode="after")
    def samples_tell_what_was_trained(self) -> RunConfig:
        if unknown := sorted(set(self.sample.conditions) - set(self.train.conditions)):
            raise ValueError(f"sample.conditions names {unknown[0]}, which train.conditions does not: add it there")
        return self

    @property
    def run_folder(self) -> Path:
        assert self.run.name is not None, "resolved by load()"
        return Path(self.run.root) / self.run.name

    @property
    def data_root(self) -> Location:
        return location(self.data.root) if self.data.root else Path(self.run.root) / "datasets"


# Keys that may differ between two starts of one run: they change where and how fast it runs, never its numbers (the guard's: only from
# here on, what it has decided stands).
FREE_KEYS = (
    "run.root",
    "cluster",
    "parallel.tp",
    "parallel.megatron_sp",
    "parallel.sp",
    "parallel.zero",
    "parallel.offload",
    "train.init.from",
    "train.micro_batch",
    "train.checkpointing",
    "train.compile",
    "train.preflight",
    "train.commit_every",
    "train.permanent_every",
    "train.keep_commits",
    "train.max_restarts",
    "guard",
    "profile",
    "sample",
    "plan",
    "metrics",
    "data.root",
    "data.cache",
    "data.cache_bytes",
)


def load(arguments: list[str]) -> RunConfig:
    """The config of `key=value` arguments over their recipe (`recipe=` a shipped name or a path). Raises UserError."""
    overrides = dict(split_override(argument) for argument in arguments)
    recipe = str(overrides.pop("recipe", "toy"))
    tree = read_recipe(recipe)
    for key, value in overrides.items():
        place(tree, key, value)
    tree["recipe"] = recipe
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error)) from None
    if config.run.name is None:
        folder = f"-{Path(config.data.videos).resolve().name}" if config.data.videos else ""
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": Path(recipe).stem + folder})})
    return config


def split_override(argument: str) -> tuple[str, Any]:
    """('a.b', value) of 'a.b=value'; the value is read as YAML."""
    key, equals, text = argument.partition("=")
    if not equals or not key:
        raise UserError(f"{argument!r} is not key=value: write overrides as train.lr=1e-3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with contextlib.suppress(ValueError):
            value = float(value)
    return key, value


def read_recipe(recipe: str) -> dict[str, Any]:
    """The tree of a shipped recipe or of a YAML file."""
    path = RECIPES / f"{recipe}.yaml" if not recipe.endswith((".yaml", ".yml")) else Path(recipe)
    if not path.is_file():
        shipped = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
        raise UserError(f"recipe={recipe}: no such recipe; give a path to a .yaml file or one of {shipped}")
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections")
    return tree


def place(tree: Any, key: str, value: Any) -> None:
    """Set a dotted key in a tree of mappings and lists, e.g. curriculum.stages.0.promotion.max_steps."""
    *parents, last = key.split(".")
    for part in parents:
        tree = tree[list_index(tree, part, key)] if isinstance(tree, list) else tree.setdefault(part, {})
        if not isinstance(tree, dict | list):
            raise UserError(f"{key}: {part} is a value, not a section")
    tree[list_index(tree, last, key) if isinstance(tree, list) else last] = value


def list_index(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(f"{key}: {part!r} is not one of the {len(items)} entries 0..{len(items) - 1}")
    return int(part)


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key of the recipe."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + (field.alias or name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        elif is_dataclass(field.annotation):
            keys += [f"{prefix}{name}.{part.name}" for part in fields(field.annotation)]
    return keys


def explain(error: ValidationError) -> str:
    """One line for the first thing wrong: the key, what is the matter, and for an unknown key the nearest known one."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        nearest = nearest_key(key)
        return f"{key}: unknown key" + (f"; did you mean {nearest}?" if nearest else "; see trainer/config.py for the keys")
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: missing; the recipe must give it"
    value, problem = first.get("input"), first["msg"].removeprefix("Value error, ")
    if not key:  # two sections do not fit together; the message names the keys
        return problem
    shown = f"={value}" if isinstance(value, str | int | float | bool | None) else ""
    return f"{key}{shown}: {problem[0].lower()}{problem[1:]}"


def nearest_key(key: str) -> str | None:
    """The known key that an unknown one was most likely meant to be."""
    *parents, last = key.split(".")
    if key.startswith("curriculum.stages."):
        names = [field.name for kind in (Stage, Promotion, Mix) for field in fields(kind)]
        return next((".".join([*parents, name]) for name in difflib.get_close_matches(last, names, 1, 0.5)), None)
    return next(iter(difflib.get_close_matches(key, known_keys(), 1, 0.6)), None)


def dump(config: RunConfig) -> str:
    """The resolved recipe as YAML; `load` of it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fixed_keys(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of a resolved recipe without FREE_KEYS: what a run's numbers depend on."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if prefix + key not in FREE_KEYS:
            found |= fixed_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def recipe_hash(config: RunConfig) -> str:
    """A name for what a run's numbers depend on."""
    fixed = fixed_keys(config.model_dump(mode="json", exclude={"recipe": True, "run": True}))
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first dotted key, outside FREE_KEYS, in which two resolved recipes differ."""
    there, here = fixed_keys(old), fixed_keys(new)
    different = (key for key in [*here, *there] if here.get(key) != there.get(key))
    return next((f"{key} ({there.get(key)} there, {here.get(key)} now)" for key in different), None)
