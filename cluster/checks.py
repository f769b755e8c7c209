"""What a recipe cannot mean, found before anything is started: pure checks of the stages against the model, the workers and the data."""

from __future__ import annotations

from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.loader import Dataset
from data_pipeline.spec import EncodeSpec
from trainer.config import RunConfig
from trainer.mixture import ingredients
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import plan_layout
from trainer.sizing import model_of
from trainer.weights import Match


def check_stages(config: RunConfig, spec: EncodeSpec) -> None:
    """Raises UserError when the model or a stage cannot be: sizes that do not divide, too few samples for the workers, a name twice."""
    try:
        model = model_of(config, spec)
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
        if latent_shape(Bucket(stage.frames, stage.height, stage.width), spec.stride)[0] < 2:
            raise UserError(
                f"stage {stage.name}: {stage.frames} frames are one latent frame, and the first is given; use at least {1 + spec.stride[0]}"
            )
        parallel, train = config.parallel, config.train
        for part in ingredients(stage, spec.stride):
            degrees = (parallel.zero, parallel.tp, parallel.sp, parallel.megatron_sp)
            layout = plan_layout(stage.name, part.samples, config.cluster.workers, train.micro_batch, *degrees)
            lengths = sequence_lengths(train.supervision, train.masks_per_frame, train.block, part.frames, part.tokens)
            check_divisible(stage.name, layout, model.heads, lengths)


def check_initial(config: RunConfig, spec: EncodeSpec) -> Match | None:
    """What of train.init's weights fits the model, None without them. Raises UserError when they, or what is to be trained, do not fit."""
    train = config.train
    if train.init.source is None and not train.freeze and not train.lora.rank:
        return None
    from trainer import initial  # imports torch for the names of the model's tensors: only a run that asks for them pays

    return initial.check(config, model_of(config, spec))


def check_samples(config: RunConfig, dataset: Dataset) -> None:
    """Raises UserError when a bucket of a stage holds fewer clips than one optimiser step takes: a batch would hold a clip twice."""
    for stage in config.curriculum.stages:
        parts = ingredients(stage, dataset.manifest.spec.stride)
        for part in parts:
            there = dataset.manifest.clips(part.bucket, "train")
            if there < part.samples:
                fitting = there * part.frames * part.tokens
                remedy = f"set its tokens_per_step to at most {fitting}" if part is parts[0] else "lower its share in mix"
                raise UserError(
                    f"stage {stage.name}: a step takes {part.samples} clips of {part.bucket}, but the data has {there}; "
                    f"add videos or {remedy}"
                )
