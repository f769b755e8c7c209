"""The parts of a recipe that say what training starts from and what `plan` plans for, and what each is. config.py puts them together."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, serialize_by_alias=True)


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
