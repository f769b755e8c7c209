"""What a recipe cannot mean, found before anything is started: pure checks of the stages against the model, the workers and the data."""

from __future__ import annotations

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset
from data_pipeline.spec import EncodeSpec
from model.config import named_size
from trainer.config import RunConfig
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import global_batch, plan_layout


def check_stages(config: RunConfig, spec: EncodeSpec) -> None:
    """Raises UserError when the model or a stage cannot be: sizes that do not divide, too few samples for the workers, a name twice."""
    try:
        changes = {"heads": config.model.heads} if config.model.heads else {}
        model = named_size(
            config.model.size, latent_channels=spec.channels, text_width=spec.text_width, text_tokens=spec.text_tokens, **changes
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    names = [stage.name for stage in config.curriculum.stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"curriculum.stages: the name {twice} stands twice; stages are told apart by name")
    for stage in config.curriculum.stages:
        if stage.stride not in (None, spec.stride):
            raise UserError(
                f"stage {stage.name}: its tokenizer stride {stage.stride} is not data.stride={spec.stride}, and a run has one data set; "
                "leave the stage out of this run"
            )
        frames, height, width = latent_shape(Bucket(stage.frames, stage.height, stage.width), spec.stride)
        if frames < 2:
            raise UserError(
                f"stage {stage.name}: {stage.frames} frames are one latent frame, and the first is given; use at least {1 + spec.stride[0]}"
            )
        parallel, samples = config.parallel, global_batch(stage.tokens_per_step, frames, height * width)
        layout = plan_layout(
            stage.name,
            samples,
            config.cluster.workers,
            config.train.micro_batch,
            parallel.zero,
            parallel.tp,
            parallel.sp,
            parallel.megatron_sp,
        )
        lengths = sequence_lengths(config.train.supervision, config.train.masks_per_frame, frames, height * width)
        check_divisible(stage.name, layout, model.heads, lengths)


def check_samples(config: RunConfig, dataset: Dataset) -> None:
    """Raises UserError when a stage's bucket holds fewer clips than one optimiser step takes: a batch would hold a clip twice."""
    for stage in config.curriculum.stages:
        bucket = Bucket(stage.frames, stage.height, stage.width)
        frames, height, width = latent_shape(bucket, dataset.manifest.spec.stride)
        needed, there = global_batch(stage.tokens_per_step, frames, height * width), dataset.manifest.clips(bucket.id, "train")
        if there < needed:
            fitting = there * frames * height * width
            raise UserError(
                f"stage {stage.name}: a step takes {needed} clips of {bucket.id}, but the data has {there}; "
                f"add videos or set its tokens_per_step to at most {fitting}"
            )
