"""What one device holds at the peak of a training step, tensor by tensor. Pure; checked against torch's MemTracker by the tests.

Bytes are per device. Letters as in model/: B, L, D, N, K, M, R; F is the head's width. "Stream" tensors have whole channels and are cut
over tensor-parallel ranks only by Megatron-SP (their tokens); "inner" ones have their channels (heads, FFN) cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from model.config import ModelConfig
from trainer.planner import Layout
from trainer.planning.workload import Workload

BUCKET = 50_000_000  # elements of a gradient or parameter bucket in ZeRO's collectives, as engine.py sets it
FLAT = 500_000_000  # gradients that DeepSpeed copies together for one all-reduce without ZeRO
LIVE = 100_000_000  # parameters that ZeRO-3 may leave gathered
TIME_FEATURES = 256
FP32 = 4


@dataclass(frozen=True)
class Numerics:
    """What decides how large a tensor is: precision of weights and matrix products, and the kernels at hand.

    cuda: RMSNorm is one kernel that saves its input, attention saves whole q, k, v (flex). Elsewhere RMSNorm computes in fp32 by single
    operations, and attention copies keys per part (sdpa-chunked).
    """

    precision: str = "bf16"
    cuda: bool = True

    @property
    def size(self) -> int:
        """Bytes of an element that a matrix product reads or writes."""
        return 2 if self.precision == "bf16" else FP32

    @property
    def norm_size(self) -> int:
        """The same of what a LayerNorm keeps: under CUDA's autocast it computes in fp32."""
        return FP32 if self.cuda else self.size


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the step's peak, and when that is."""

    weights: int
    optimizer: int  # fp32 masters, both moments, EMA
    gradients: int  # with the buckets they are reduced in
    activations: int  # saved for the backward pass, and what a pass needs for a moment
    moment: str

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations


@lru_cache(maxsize=64)
def parameters(model: ModelConfig, tp: int = 1) -> int:
    """Parameters on one tensor-parallel rank: the blocks' matrices are cut, all else is whole."""
    width = model.width
    cut = (8 + 2 * model.ffn_ratio) * width**2 // tp
    block = cut + 2 * width + 4 * width + 4 * model.head_dim  # the output biases, two LayerNorms, four q/k norms
    embeddings = (model.latent_channels + 1) * width + width + (model.text_width + 1) * width + model.text_tokens * width + 2 * width
    return model.depth * block + embeddings + len(model.conditions) * (TIME_FEATURES + 1) * width + head_parameters(model)


def head_parameters(model: ModelConfig) -> int:
    width, outputs = model.head_width, model.latent_channels * (1 if model.head == "flow" else 2)
    inputs = (model.latent_channels + 1) * width + (model.width + 1) * width + (TIME_FEATURES + 1) * width + (width + 1) * width
    return inputs + model.head_depth * (5 * width**2 + 7 * width) + 2 * (width + 1) * width + (width + 1) * outputs


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch: what stays from the forward to the backward pass, and what is there only at a moment."""

    blocks: int  # saved by all blocks, under the layout's checkpointing
    one_block: int  # saved by one block without checkpointing: what recomputing it brings back
    recomputes: bool
    outside: int  # inputs, the caption's keys and values of all blocks, the last norm
    head: int
    head_work: int  # the head's largest moment, on top of what it saves
    block_work: int  # the same of a block's backward pass
    text_gradients: int  # of the caption's keys and values, until the first block is done


def activations(work: Workload, layout: Layout, numerics: Numerics) -> Activations:
    """Activations of one device for one micro-batch of the stage's longest sequence, with every token masked that can be."""
    model, size = work.model, numerics.size
    sequence, shards = work.longest, layout.sp * (layout.tp if layout.megatron_sp else 1)
    rows = layout.micro_batch * sequence.tokens
    whole = rows // layout.sp * model.width  # elements of a tensor that enters a tensor-parallel layer
    stream, inner = rows // shards * model.width, whole // layout.tp
    caption = layout.micro_batch * (model.text_tokens + len(model.conditions)) * model.width
    supervised = layout.micro_batch * sequence.most_supervised(shards) * model.head_repeats * model.head_width
    saved = {
        "none": block_saves(work, layout, numerics, stream, whole, inner),
        # the block's input, and outputs of matrix products: q, k, v, attention, cross-attention's q, itself, up; three into the stream
        "selective": size * (stream + (6 + model.ffn_ratio) * inner + 3 * whole),
        "full": size * stream,
    }
    norm = size if numerics.cuda else 2 * FP32
    return Activations(
        blocks=model.depth * saved[layout.checkpointing],
        one_block=saved["none"],
        recomputes=layout.checkpointing != "none",
        outside=3 * size * stream
        + (2 + 2 * model.text_width // model.width) * size * caption
        + model.depth * (norm + 2 * size) * caption // layout.tp,
        head=FP32 * ((8 + 10 * model.head_depth) * supervised + (head_parameters(model) if size < FP32 else 0)),  # always computes in fp32
        head_work=4 * FP32 * supervised + 2 * size * rows * model.width // layout.sp,
        block_work=size * ((2 * model.ffn_ratio + 1) * inner + 3 * whole),
        text_gradients=model.depth * 2 * size * caption // layout.tp,
    )


def block_saves(work: Workload, layout: Layout, numerics: Numerics, stream: int, whole: int, inner: int) -> int:
    """Bytes that one block keeps for its backward pass when nothing is recomputed."""
    size = numerics.size
    # Inputs of both LayerNorms; what enters attention, cross-attention and FFN.
    streams = 2 * numerics.norm_size * stream + 3 * size * whole
    norms = 3 * (size if numerics.cuda else 2 * FP32) * inner  # of q, k and cross-attention's q
    # q, attention's parts and they joined; cross-attention's q and output; FFN. Then keys and values, of which chunked attention keeps
    # what each part sees, and under autocast casts the keys of each part by itself.
    products = size * (3 + (2 if numerics.cuda else 3) + 2 * work.model.ffn_ratio) * inner
    longest = work.longest
    keys = 2 * longest.kept_keys if numerics.precision == "fp32" else longest.kept_keys + longest.seen_keys
    return streams + norms + products + (2 * size * inner if numerics.cuda else size * inner * keys // longest.tokens)


def estimate(work: Workload, layout: Layout, numerics: Numerics) -> Memory:
    """The peak of one optimiser step of a stage on one device."""
    held = activations(work, layout, numerics)
    count, replicas, size = parameters(work.model, layout.tp), layout.dp * layout.sp, numerics.size
    zero = 0 if replicas == 1 and numerics.precision == "fp32" else layout.zero  # alone there is nothing to share out
    part = -(-count // replicas) if zero else count
    masters = FP32 * part if zero else 0
    weights = size * (min(count, LIVE) + part if zero == 3 else count)
    kept, bucket = size * (count if zero < 2 else part), size * BUCKET if zero else 0
    before = kept if layout.accumulation > 1 else 0  # gradients of earlier micro-batches, and ZeRO-1's bucket, which waits for the last
    late = kept if zero == 0 or before else size * part
    saved, again = held.blocks + held.outside, held.one_block if held.recomputes else 0
    moments = {
        "the head's forward pass": (before + (bucket if before and zero == 1 else 0), saved + held.head + held.head_work),
        "the head's backward pass": (before + bucket, saved + held.head),
        "the last block's backward pass": (before + bucket, saved + again + held.block_work),
        "the first block's backward pass": (late + bucket, held.outside + held.one_block + held.block_work + held.text_gradients),
    }
    if zero == 0:  # gradients are copied together to be summed over the ranks
        moments["the sum of the gradients"] = (kept + size * min(count, FLAT), 0)
    moment = max(moments, key=lambda name: sum(moments[name]))
    return Memory(weights, masters + 3 * FP32 * part, *moments[moment], moment)
