"""The parts of a recipe that say where a run and its data are and what training starts from, and what every part is. config.py puts
them together."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.filters import FilterThresholds
from data_pipeline.shard_cache import ShardCache


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, serialize_by_alias=True)


class RunSection(Section):
    root: str = "runs"
    name: str | None = None  # default: the recipe's name, with the videos' folder behind it when there is one


class SyntheticSection(Section):
    clips: int = Field(256, ge=8)
    frames: int = Field(34, ge=5)
    size: int = Field(96, ge=32, multiple_of=2)


class DataSection(Section):
    videos: str | None = None  # a folder, file, glob, S3 prefix, table, tars or Hugging Face data set; none: synthetic moving shapes
    captions: str | None = None
    images: bool = False  # also stills, as clips of one frame, for buckets of one frame
    root: str | None = None  # where encoded data sets live, a folder or s3://bucket/prefix; default: <run.root>/datasets
    cache: str | None = None  # local folder for shards from S3; default: videomar-cache in the system's temporary folder
    cache_bytes: int = Field(20 << 30, ge=0)
    fps: float = Field(8.0, gt=0)
    held_out: float = Field(0.1, gt=0, lt=1)
    tokenizer: str = "linear"  # fitted on the data; or shipped (4x8x8, 16 channels); or a folder of diffusers or TorchScript weights
    tokenizer_dtype: Literal["float32", "bfloat16"] = "float32"  # of neural tokenizers and text encoders
    tokenizer_frames: int | None = Field(None, ge=1)  # video frames that a neural tokenizer encodes at once; none: a whole clip
    latent_channels: int = Field(16, ge=1)  # of a linear or TorchScript tokenizer; the others have their own, and their own stride
    stride: tuple[int, int, int] = (4, 8, 8)
    text: str = "hashing"  # or a folder of T5 or language model weights
    text_template: str = "{caption}"  # for a language model
    text_tokens: int = Field(24, ge=1)
    text_width: int = Field(64, ge=2)  # of hashing; a model has its own
    sources_per_shard: int = Field(16, ge=1)
    max_clips: int = Field(64, ge=1)  # per source and bucket
    filters: FilterThresholds = FilterThresholds()
    scene_threshold: float = Field(0.12, gt=0, le=1)  # mean luma difference of two pictures, 0..1, that is a cut
    one_aspect: bool = False  # of buckets that differ in aspect alone, a source goes to the nearest only
    synthetic: SyntheticSection = SyntheticSection()

    def shard_cache(self) -> ShardCache:
        """The cache of shards from S3 that the recipe describes."""
        return ShardCache(Path(self.cache) if self.cache else Path(tempfile.gettempdir()) / "videomar-cache", self.cache_bytes)


class InitSection(Section):
    """Weights to start from instead of random ones."""

    source: str | None = Field(None, alias="from")  # an exported folder, a .safetensors file, or a folder of them
    sha256: str | None = None  # of the files; filled in when the run is made, so that changed files are noticed
    map: dict[str, str] | str = {}  # regex -> replacement, applied in turn to the names of their tensors ("": left out), or a YAML file
    strict: bool = True  # false: start with the tensors that fit, whatever else differs


class LoraSection(Section):
    """Train low-rank adapters of linear layers, and nothing else."""

    rank: int = Field(0, ge=0)  # 0: none
    alpha: int = Field(16, ge=1)  # an adapter's output is scaled by alpha / rank
    targets: list[str] = Field(["blocks.*attention.*"], min_length=1)  # globs of the layers' names


class PlanSection(Section):
    """What `plan` and the planner are told about the cluster; device figures other than these are a data sheet's (planning/cost.py)."""

    world: int = Field(8, ge=1, le=16_384)  # devices
    per_node: int = Field(8, ge=1)
    device: Literal["A100", "H100", "H200"] = "H100"
    memory: str | None = None  # per device, as in 80GB or 80GiB; default: the device's
    efficiency: float = Field(0.4, gt=0, le=1)  # fraction of its peak at which a device computes matrix products
    precision: Literal["fp32", "bf16"] = "bf16"
