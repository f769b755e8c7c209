"""What is known of a neural tokenizer without loading it: read from its folder by the command line, which must not import
torch, and written as tokenizer.json into the data sets made with it. The weights stay where they are."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_pipeline import storage
from data_pipeline.buckets import Stride
from data_pipeline.errors import UserError
from data_pipeline.spec import fingerprint

VERSION = 1  # raise it when the same weights would give other latents
DTYPES = ("float32", "bfloat16")
TORCHSCRIPT_FILES = ("encoder.jit", "decoder.jit")


@dataclass(frozen=True)
class Description:
    """`path` is the folder of the weights, `weights` a hash of their bytes. With `pass_frames`, longer clips are encoded in
    several passes of at most that many frames."""

    kind: str  # diffusers or torchscript
    path: str
    model: str  # the class, for diffusers
    channels: int
    stride: Stride
    weights: str
    dtype: str = "float32"
    pass_frames: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Of everything but the place of the weights."""
        return fingerprint(VERSION, asdict(replace(self, path="")))

    def save(self, folder: str | Path) -> None:
        storage.write_json(Path(folder) / "tokenizer.json", {**asdict(self), "version": VERSION, "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, folder: str | Path) -> "Description":
        """Raises UserError when the weights are gone, were changed, or another version of this code described them."""
        file = Path(folder) / "tokenizer.json"
        value = json.loads(file.read_text())
        version = value.pop("version")
        if version != VERSION:
            raise UserError(f"{file} has version {version}, not {VERSION}: encode the data set again")
        expected = value.pop("fingerprint")
        found = cls(**value | {"stride": tuple(value["stride"])})
        if not Path(found.path).is_dir():
            raise UserError(f"{file}: its weights are no longer in {found.path}: put them back, or give data.tokenizer their new folder")
        found = replace(found, weights=weights_hash(Path(found.path)))
        if found.fingerprint != expected:
            raise UserError(f"{found.path} holds other weights than the data set was encoded with: put the old ones back or encode again")
        return found


def describe(folder: str | Path, channels: int, stride: Stride, dtype: str = "float32", pass_frames: int | None = None) -> Description:
    """The tokenizer in a local folder: a diffusers model, also as `vae` of a whole pipeline, or encoder.jit and decoder.jit.

    `channels` and `stride` are what a torchscript folder, which does not tell, is taken to have; loading it checks them.
    Raises UserError naming the folder.
    """
    path = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"data.tokenizer_dtype={dtype}: choose one of {', '.join(DTYPES)}")
    if all((path / name).is_file() for name in TORCHSCRIPT_FILES):
        found = Description("torchscript", str(path.resolve()), "", channels, stride, weights_hash(path), dtype, pass_frames)
    else:
        found = _describe_diffusers(path, dtype, pass_frames)
    if pass_frames is not None and pass_frames < 1 + found.stride[0]:
        raise UserError(f"data.tokenizer_frames={pass_frames}: a pass needs at least {1 + found.stride[0]} frames")
    return found


def _describe_diffusers(path: Path, dtype: str, pass_frames: int | None) -> Description:
    if (path / "vae" / "config.json").is_file():
        path = path / "vae"
    try:
        config = json.loads((path / "config.json").read_text())
        model = config["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"data.tokenizer={path} is no tokenizer: it needs a diffusers config.json with weights, or {' and '.join(TORCHSCRIPT_FILES)}"
        ) from error
    readers = {"AutoencoderKLCosmos": _cosmos, "AutoencoderKLWan": _wan, "AutoencoderKLLTXVideo": _ltx}
    if model not in readers:
        raise UserError(f"data.tokenizer={path}: {model} is not among the causal tokenizers {', '.join(readers)}")
    channels, temporal, spatial = readers[model](config)
    stride = (temporal, spatial, spatial)
    return Description("diffusers", str(path.resolve()), model, channels, stride, weights_hash(path), dtype, pass_frames)


def _cosmos(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, temporal stride, spatial stride), as in the two below."""
    return config["latent_channels"], config["temporal_compression_ratio"], config["spatial_compression_ratio"]


def _wan(config: Mapping[str, Any]) -> tuple[int, int, int]:
    return config["z_dim"], config.get("scale_factor_temporal", 4), config.get("scale_factor_spatial", 8)


def _ltx(config: Mapping[str, Any]) -> tuple[int, int, int]:
    halvings = 2 ** sum(config["spatio_temporal_scaling"])
    temporal = config.get("temporal_compression_ratio") or config["patch_size_t"] * halvings
    spatial = config.get("spatial_compression_ratio") or config["patch_size"] * halvings
    return config["latent_channels"], temporal, spatial


def weights_hash(folder: Path) -> str:
    """Of the names and bytes of a folder's weights and configuration. Raises UserError when there are no weights."""
    names = [path for pattern in ("*.safetensors", "*.bin", "*.jit") for path in folder.glob(pattern)]
    if not names:
        raise UserError(f"{folder} holds no weights: looked for *.safetensors, *.bin and *.jit")
    return files_hash(sorted([*names, *folder.glob("*.json")]))


def files_hash(paths: Iterable[Path]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
