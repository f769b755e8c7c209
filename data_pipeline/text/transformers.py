"""Text encoders of the transformers library from a local folder: T5's encoder, or a causal language model such as Qwen2,
of which the last hidden layer is taken. load_text calls it; torch and transformers are imported only when one is loaded."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from data_pipeline import storage
from data_pipeline.errors import UserError
from data_pipeline.spec import fingerprint
from data_pipeline.storage import Location
from data_pipeline.tokenizers.description import DTYPES, weights_hash

VERSION = 1  # raise it when the same weights would give other vectors
PLAIN = "{caption}"
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
MODELS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}  # by model_type; the others load as AutoModel


@dataclass(frozen=True)
class TextDescription:
    """What is known of a text encoder without loading it. `path` holds its weights, of which `weights` is a hash; a caption
    is put into `template` in place of {caption}."""

    path: str
    model: str
    width: int
    max_tokens: int
    weights: str
    template: str = PLAIN
    dtype: str = "float32"

    @cached_property
    def fingerprint(self) -> str:
        """Of everything but the place of the weights."""
        return fingerprint("transformers", VERSION, asdict(replace(self, path="")))

    def save(self, folder: Location) -> None:
        value = {"kind": "transformers", **asdict(self), "version": VERSION, "fingerprint": self.fingerprint}
        storage.write_json(folder / "text.json", value)

    @classmethod
    def from_json(cls, value: dict[str, Any], name: str) -> "TextDescription":
        """Raises UserError when the weights are gone or were changed; `name` is the description's own file."""
        known = {key: found for key, found in value.items() if key not in ("kind", "version", "fingerprint")}
        if value["version"] != VERSION:
            raise UserError(f"{name} has version {value['version']}, not {VERSION}: encode the data set again")
        found = cls(**known)
        if not Path(found.path).is_dir():
            raise UserError(f"{name}: its weights are no longer in {found.path}: put them back, or give data.text their new folder")
        found = replace(found, weights=weights_hash(Path(found.path)))
        if found.fingerprint != value["fingerprint"]:
            raise UserError(f"{found.path} holds other weights than the data set was encoded with: put the old ones back or encode again")
        return found


def describe_text(folder: str | Path, max_tokens: int, template: str = PLAIN, dtype: str = "float32") -> TextDescription:
    """The text encoder in a local folder. Raises UserError naming the folder or the key."""
    path = Path(folder)
    if PLAIN not in template:
        raise UserError(f"data.text_template={template!r} has no {PLAIN} in it")
    if dtype not in DTYPES:
        raise UserError(f"data.tokenizer_dtype={dtype}: choose one of {', '.join(DTYPES)}")
    try:
        config = json.loads((path / "config.json").read_text())
        model = config["model_type"]
        width = config["d_model"] if model in MODELS else config["hidden_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data.text={path} is no text encoder: it needs the config.json, weights and tokenizer of T5 or a language model"
        ) from error
    if not any((path / name).is_file() for name in VOCABULARIES):
        raise UserError(f"data.text={path} holds no tokenizer: looked for {', '.join(VOCABULARIES)}")
    return TextDescription(str(path.resolve()), model, width, max_tokens, weights_hash(path), template, dtype)


class TransformersText:
    """Raises UserError when the libraries are missing or the folder does not hold what it says."""

    def __init__(self, description: TextDescription) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise UserError("data.text is a transformers model: install the extra, pip install 'videomar[tokenizers]'") from error
        self.description = description
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        kind: Any = getattr(transformers, MODELS.get(description.model, "AutoModel"))
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(description.path, local_files_only=True)
            model = kind.from_pretrained(description.path, local_files_only=True, dtype=getattr(torch, description.dtype))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"{description.path} does not load as a text encoder: {str(error).splitlines()[0]}") from error
        self._model: Any = model.to(self._device).eval()

    @property
    def width(self) -> int:
        return self.description.width

    @property
    def max_tokens(self) -> int:
        return self.description.max_tokens

    @property
    def fingerprint(self) -> str:
        return self.description.fingerprint

    def encode(self, caption: str) -> np.ndarray:
        """float32 [k, E] of the caption's true length, 1 <= k <= K. Without a token, it is that of the end of a text."""
        import torch

        text = self.description.template.replace(PLAIN, caption)
        tokens = self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"] or [self._end()]
        with torch.inference_mode():
            states = self._model(input_ids=torch.tensor([tokens], device=self._device)).last_hidden_state
        return states[0].float().cpu().numpy()

    def _end(self) -> int:
        found = self._tokenizer.eos_token_id
        return 0 if found is None else int(found)
