"""The sections of a recipe, every key with its default and what it means. config.py puts them together. Stages are in curriculum.py, the
guard's keys in guard.py, those of data.filters in data_pipeline/filters.py."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_pipeline.filters import FilterThresholds
from data_pipeline.shard_cache import ShardCache


class Section(BaseModel):
    """A part of the recipe: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, serialize_by_alias=True)


class RunSection(Section):
    root: str = "runs"
    name: str | None = None  # default: the recipe's name, with the videos' folder behind it when there is one

    @field_validator("root")
    @classmethod
    def is_a_folder(cls, root: str) -> str:
        if "://" in root:
            raise ValueError("runs live in a folder that every node mounts; data sets may be in S3 (data.root)")
        return root


class SyntheticSection(Section):
    clips: int = Field(256, ge=8)
    frames: int = Field(34, ge=5)
    size: int = Field(96, ge=32, multiple_of=2)


class DataSection(Section):
    videos: str | None = None  # a folder, file, glob, S3 prefix, table, tars or Hugging Face data set; none: synthetic moving shapes
    captions: str | None = None
    images: bool = False  # also stills, as clips of one frame, for buckets of one frame
    root: str | None = None  # where encoded data sets live, a folder or s3://bucket/prefix; default: <run.root>/datasets
    cache: str | None = None  # local folder for shards from S3; default: videomar-cache-<user id> in the system's temporary folder
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
    # Of the videos to be encoded before training begins; the others join it at the ends of epochs. Below 1 the losses also depend on how
    # fast encoding is: what each epoch reads is decided as it begins, stored, and replayed by restarts.
    start_fraction: float = Field(1.0, gt=0, le=1)
    max_clips: int = Field(64, ge=1)  # per source and bucket
    filters: FilterThresholds = FilterThresholds()
    scene_threshold: float = Field(0.12, gt=0, le=1)  # mean luma difference of two pictures, 0..1, that is a cut
    one_aspect: bool = False  # of buckets that differ in aspect alone, a source goes to the nearest only
    synthetic: SyntheticSection = SyntheticSection()

    def shard_cache(self) -> ShardCache:
        """The cache of shards from S3 that the recipe describes."""
        own = Path(tempfile.gettempdir()) / f"videomar-cache-{os.getuid()}"
        return ShardCache(Path(self.cache) if self.cache else own, self.cache_bytes)


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


class ModelSection(Section):
    size: str = "toy"
    width: int | None = Field(None, ge=1)  # where it is not the named size's, as the two below
    depth: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)


class ClusterSection(Section):
    launcher: Literal["ray", "torchrun"] = "ray"  # torchrun: the processes are there already; its WORLD_SIZE takes the place of workers
    workers: int = Field(2, ge=1)  # wanted
    min_workers: int | None = Field(None, ge=1)  # with which the run starts and goes on; default: workers
    max_workers: int | None = Field(None, ge=1)  # that it takes when nodes join; default: workers
    wait_seconds: float = Field(300.0, ge=0)  # for min_workers, before giving up
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: Literal[0, 1] = 0  # a worker is one process on one device
    address: str | None = None  # of a running Ray; default: the job's own, else a private local one
    silence: float = Field(30.0, gt=0)  # seconds without a sign of life that a worker is always granted; ten steps where they take longer

    @property
    def fewest(self) -> int:
        return self.min_workers or self.workers

    @property
    def most(self) -> int:
        return self.max_workers or self.workers

    @model_validator(mode="after")
    def workers_in_order(self) -> ClusterSection:
        if not self.fewest <= self.workers <= self.most:
            raise ValueError(f"min_workers {self.fewest} <= workers {self.workers} <= max_workers {self.most} does not hold")
        return self


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


class SampleSection(Section):
    videos: int = Field(4, ge=1)
    iterations: int = Field(16, ge=1)
    head_steps: int = Field(50, ge=2)
    guidance: float = Field(1.5, ge=1)
    temperature: float | None = Field(None, ge=0)  # of every frame; 0.9 + 10^-(t+1) for the t-th generated one unless said
    sink: int = Field(1, ge=0)  # first latent frames that stay visible when there is a window
    window: int = Field(0, ge=0)  # newest latent frames that are visible; 0: all
    context_noise: float = Field(0.0, ge=0)  # on finished frames; for models trained with train.context_noise
    context_masked: float = Field(0.0, ge=0, lt=1)  # fraction of finished frames masked again; with train.context_masked
    conditions: dict[str, float] = Field({})  # what the model is told, e.g. {motion: 0.1}; fps is data.fps unless said


class PlanSection(Section):
    """What `plan` and the planner are told about the cluster; device figures other than these are a data sheet's (planning/cost.py)."""

    world: int = Field(8, ge=1, le=16_384)  # devices
    per_node: int = Field(8, ge=1)
    device: Literal["A100", "H100", "H200"] = "H100"
    memory: str | None = None  # per device, as in 80GB or 80GiB; default: the device's
    efficiency: float = Field(0.4, gt=0, le=1)  # fraction of its peak at which a device computes matrix products
    precision: Literal["fp32", "bf16"] = "bf16"


class SimulateSection(Section):
    """What `simulate` is told beside `plan`, which says what devices there are. Times of our own parts are measured ones (their sources:
    cluster/simulation/constants.py)."""

    world: int = Field(4096, ge=1, le=16_384)  # devices of the largest cluster
    spare_nodes: int = Field(1, ge=0)
    hours: float = Field(24.0, gt=0)
    mtbf_hours: float = Field(2.0, gt=0)  # mean time between faults of that cluster; a smaller one has fewer
    node_share: float = Field(0.8, ge=0, le=1)  # of the faults that take a node with them; the others end one process
    preempted_share: float = Field(0.0, ge=0, le=1)  # of the faults that are told a moment before
    repair_hours: float = Field(4.0, gt=0)  # mean time until a node is back
    runs: int = Field(3, ge=1)  # simulated with the seeds seed, seed + 1, ...; their sums are told
    storage_bytes_per_second: float = Field(10e9, gt=0)  # of all devices together, for commits
    measured: str | None = None  # a run's folder, whose restarts are taken instead of the measured ones below
    detect_seconds: float = Field(0.042, ge=0)  # from the death of a process to the end of its group
    detect_node_seconds: float = Field(9.4, ge=0)  # the same of a node, with all that its loss takes more before the next group starts
    replan_seconds: float = Field(1.038, ge=0)  # from there to the start of the next group, after either
    start_seconds: float = Field(0.544, ge=0)  # of a group until its engine is built
    load_seconds: float = Field(0.046, ge=0)  # of a commit, besides reading it
    copy_bytes_per_second: float = Field(17.5e9, gt=0)  # of a device into its host's memory, for which training waits at a commit


class MetricsSection(Section):
    port: int | None = Field(None, ge=1, le=65535)  # of the Prometheus endpoint, one per pod or host; none: no endpoint
    host: str = "127.0.0.1"  # the address it listens at
    tensorboard: bool = False  # event files in the run's folder; needs the extra tensorboard
    wandb: str | None = None  # the project at Weights & Biases; needs the extra wandb
    wandb_mode: Literal["online", "offline"] = "online"  # offline: into the run's folder

    @property
    def wanted(self) -> bool:
        """Whether the run's metrics go anywhere but into its own files."""
        return bool(self.port or self.tensorboard or self.wandb)
