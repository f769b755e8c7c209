"""The parts of a recipe that say where a run and its data are and what training starts from, and what every part is. config.py puts
them together."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

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
    videos: str | None = None  # folder of videos; none: synthetic moving shapes
    captions: str | None = None
    root: str | None = None  # where encoded data sets live, a folder or s3://bucket/prefix; default: <run.root>/datasets
    cache: str | None = None  # local folder for shards from S3; default: videomar-cache in the system's temporary folder
    cache_bytes: int = Field(20 << 30, ge=0)
    fps: float = Field(8.0, gt=0)
    held_out: float = Field(0.1, gt=0, lt=1)
    latent_channels: int = Field(16, ge=1)
    stride: tuple[int, int, int] = (4, 8, 8)
    text_tokens: int = Field(24, ge=1)
    text_width: int = Field(64, ge=2)
    sources_per_shard: int = Field(16, ge=1)
    max_clips: int = Field(64, ge=1)  # per source and bucket
    min_motion: float = Field(0.0, ge=0)
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
