"""What a run's model is before its first step: weights from files, frozen parts, LoRA adapters (train.init, train.freeze, train.lora).

Called by process.py and trained.py on an untouched model, and by the driver's checks on one without memory. A commit holds what is
trained; everything else is made here again, from the same files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch
from safetensors import safe_open
from torch import nn

from data_pipeline.errors import UserError
from model.config import ModelConfig
from model.videomar import VideoMAR
from trainer import weights
from trainer.config import RunConfig
from trainer.sections import InitSection, LoraSection, TrainSection
from trainer.weights import Match


def check(config: RunConfig, model: ModelConfig) -> Match | None:
    """What of the recipe's weights fits the model (None: it names none), read from headers. Raises UserError for what cannot be."""
    with torch.device("meta"):
        untouched = VideoMAR(model)
    train = config.train
    frozen_names(untouched, train.freeze)
    if train.lora.rank:
        check_lora(untouched, config)
    return matching(untouched, train.init) if train.init.source else None


def check_lora(untouched: VideoMAR, config: RunConfig) -> None:
    """Raises UserError where adapters cannot be, or would adapt nothing that was learned."""
    if find_spec("peft") is None:
        raise UserError("train.lora needs peft: pip install 'videomar[finetune]'")
    if config.parallel.tp > 1:
        raise UserError(f"train.lora cannot be split over parallel.tp={config.parallel.tp}: use parallel.tp=1 (ZeRO shards it as well)")
    if config.train.init.source is None:
        raise UserError("train.lora adapts trained weights: name them in train.init.from")
    if config.train.freeze:
        raise UserError("train.freeze says nothing beside train.lora, which trains its adapters only: leave one of them out")
    lora_targets(untouched, config.train.lora)


def reads_latents(name: str) -> bool:
    """Whether a parameter is of the input projection, or of the head's latent input or output: with a new tokenizer they begin anew."""
    return name.startswith(("embed.", "head.network.embed.", "head.network.final."))


def initial_model(config: RunConfig, model: ModelConfig, resumed: bool) -> VideoMAR:
    """The same initial weights on every rank of every layout, drawn or read; `resumed`: a commit's are loaded over them."""
    torch.manual_seed(config.seed)
    return prepare(VideoMAR(model), config.train, resumed)


def prepare(model: VideoMAR, train: TrainSection, resumed: bool) -> VideoMAR:
    """The model to train: with the recipe's weights, its frozen parts frozen, its adapters in place. `resumed`: a commit is loaded
    next, and where everything is trained nothing of the files would be left. Raises UserError for files that are gone or changed."""
    if train.init.source and not (resumed and not train.freeze and not train.lora.rank):
        load_weights(model, train.init)
    frozen = frozen_names(model, train.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if train.lora.rank:
        add_lora(model, train.lora)
    return model


def matching(model: VideoMAR, init: InitSection) -> Match:
    """Which of the stored tensors the model takes. Raises UserError when they do not fit (strict), or nothing does."""
    assert init.source is not None
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = weights.match(own, weights.stored_shapes(init.source), weights.rules_of(init.map))
    found = replace(found, other_fields=weights.other_fields(init.source, model.config))
    if not found.taken:
        raise UserError(f"train.init.from={init.source}: none of its tensors fits ({found.complaint}); name them by train.init.map")
    if init.strict and found.complaint:
        raise UserError(f"train.init.from={init.source}: {found.complaint}; train.init.strict=false starts with the tensors that fit")
    return found


def load_weights(model: VideoMAR, init: InitSection) -> None:
    """Copy the stored tensors that fit into the model, in its own precision."""
    assert init.source is not None
    if (found := weights.checksum(init.source)) != init.sha256:
        raise weights.changed(init, found)
    own, wanted = model.state_dict(), {stored: name for name, stored in matching(model, init).taken.items()}
    for path in weights.files_of(init.source):
        with safe_open(path, framework="pt") as file:
            for stored in wanted.keys() & set(file.keys()):
                own[wanted[stored]].copy_(file.get_tensor(stored))


def matched(names: Iterable[str], globs: Iterable[str], key: str) -> set[str]:
    """The names that any of the globs fits. Raises UserError naming a glob that fits none."""
    names, found = list(names), set()
    for glob in globs:
        fitting = {name for name in names if fnmatchcase(name, glob)}
        if not fitting:
            raise UserError(f"{key}: {glob!r} fits nothing in the model; its names are like {names[0]} or {names[-1]}")
        found |= fitting
    return found


def frozen_names(model: nn.Module, globs: Iterable[str]) -> set[str]:
    """Parameters that are not trained. Raises UserError for a glob that fits none, or when none is left to train."""
    names = [name for name, _ in model.named_parameters()]
    frozen = matched(names, globs, "train.freeze")
    if len(frozen) == len(names):
        raise UserError("train.freeze leaves nothing to train: narrow it")
    return frozen


def lora_targets(model: nn.Module, lora: LoraSection) -> set[str]:
    """The linear layers that get an adapter. Raises UserError for a glob that fits none."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return matched(linears, lora.targets, "train.lora.targets")


def add_lora(model: VideoMAR, lora: LoraSection) -> None:
    """Freeze everything, and add trained low-rank adapters (2106.09685) to the targets: zero at first, drawn from torch's generator."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import: only a run that uses it pays

    targets = sorted(lora_targets(model, lora))
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets), model)


def merged(model: VideoMAR) -> VideoMAR:
    """The model with its adapters added to the weights they adapt and gone: what sampling and export take. Others are left as they are."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model
