"""What a recipe cannot mean, found before anything is started: pure checks of the stages against the model, the workers and the data."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.dataset import encode_spec
from data_pipeline.buckets import Bucket, latent_shape
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from data_pipeline.spec import EncodeSpec
from trainer.config import RunConfig
from trainer.curriculum import Stage
from trainer.mixture import ingredients
from trainer.parallel.places import check_divisible, sequence_lengths
from trainer.planner import plan_layout
from trainer.sizing import all_latents, latents_of, model_of
from trainer.weights import Match


def check_stages(config: RunConfig) -> None:
    """Raises UserError when the model or a stage cannot be: sizes that do not divide, too few samples for the workers, a name twice, a
    rule that can never end it, a change of tokenizer where what reads latents is not trained."""
    names = [stage.name for stage in config.curriculum.stages]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"curriculum.stages: the name {twice} stands twice; stages are told apart by name")
    specs = {latents: encode_spec(config, latents) for latents in all_latents(config)}
    for stage in config.curriculum.stages:
        check_stage(config, stage, specs[latents_of(config, stage)])
    if len(specs) > 1 and (config.train.lora.rank or config.train.freeze):
        key = "train.lora" if config.train.lora.rank else "train.freeze"
        raise UserError(f"{key}: with a new tokenizer the input projection and the head's ends begin anew; leave {key} out, or the stages")


def check_stage(config: RunConfig, stage: Stage, spec: EncodeSpec) -> None:
    """One stage, with each of its mixtures."""
    try:
        model = model_of(config, spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    if stage.stride and stage.stride != spec.stride:
        raise UserError(f"stage {stage.name}: its tokenizer has stride {list(spec.stride)}, not {list(stage.stride)}; leave stride out")
    if latent_shape(Bucket(stage.frames, stage.height, stage.width), spec.stride)[0] < 2:
        raise UserError(
            f"stage {stage.name}: {stage.frames} frames are one latent frame, and the first is given; use at least {1 + spec.stride[0]}"
        )
    if idle := stage.promotion.idle(config.train.evaluate_every):
        raise UserError(f"stage {stage.name}: {idle}; raise max_steps, lower train.evaluate_every or min_steps, or leave the rule out")
    parallel, train = config.parallel, config.train
    for part in (part for phase in stage.phases for part in ingredients(phase, spec.stride)):
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


def check_samples(stages: Sequence[Stage], manifest: Manifest) -> None:
    """Raises UserError when the data set of some stages holds too little for one of them."""
    for stage in stages:
        if short := shortage(stage, manifest):
            raise UserError(short)


def shortage(stage: Stage, manifest: Manifest) -> str | None:
    """Which bucket of a stage holds fewer clips than one optimiser step takes, so that a batch would hold a clip twice, and the remedy."""
    for phase in stage.phases:
        parts = ingredients(phase, manifest.spec.stride)
        for part in parts:
            there = manifest.clips(part.bucket, "train")
            if there < part.samples:
                fitting = there * part.frames * part.tokens
                remedy = f"set its tokens_per_step to at most {fitting}" if part is parts[0] else "lower its share in mix"
                return (
                    f"stage {stage.name}: a step takes {part.samples} clips of {part.bucket}, but the data has {there}; "
                    f"add videos or {remedy}"
                )
    return None
