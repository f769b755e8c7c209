"""How long a step takes and what it sends, from first principles: FLOPs at a stated fraction of the peak, bytes over stated links. Pure.

Nothing is taken to overlap, so step seconds are an upper bound of a well-built step; ratios of layouts are what the planner needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import ModelConfig
from model.flops import head_flops, trunk_flops
from trainer.planner import Layout
from trainer.planning.memory import BUCKET, FP32, Numerics, activations, parameters
from trainer.planning.workload import Sequence, Workload, mean_mask_ratio

LATENCY = 10e-6  # seconds that a collective takes per doubling of its group, however little it sends
UPDATE = 9  # reads and writes per optimiser element: master, two moments and EMA both ways, the gradient once


@dataclass(frozen=True)
class Device:
    """A kind of device by its data sheet: dense bf16 FLOP/s, bytes of memory, and bytes per second to its memory, to a neighbour in
    its node, and (its share of the node's network) to another node."""

    flops: float
    memory: float
    bandwidth: float
    inside: float
    between: float


DEVICES = {
    "A100": Device(312e12, 80e9, 2.0e12, 300e9, 25e9),
    "H100": Device(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "H200": Device(989e12, 141e9, 4.8e12, 450e9, 50e9),
}


@dataclass(frozen=True)
class Cluster:
    """What a plan may use. efficiency: the fraction of its peak at which a device computes matrix products."""

    world: int
    per_node: int
    memory: float  # bytes per device
    device: Device
    efficiency: float


@dataclass(frozen=True)
class Cost:
    """One optimiser step: useful FLOPs of all devices together; what one device sends (bytes) and how long it takes (seconds)."""

    flops: float
    compute: float
    recompute: float
    update: float
    tp_bytes: float
    sp_bytes: float
    zero_bytes: float
    communication: float

    @property
    def seconds(self) -> float:
        return self.compute + self.recompute + self.update + self.communication

    @property
    def sent(self) -> float:
        return self.tp_bytes + self.sp_bytes + self.zero_bytes


def step_cost(work: Workload, layout: Layout, cluster: Cluster, numerics: Numerics) -> Cost:
    """The cost of one optimiser step of a stage under a layout."""
    model, device, passes = work.model, cluster.device, layout.accumulation
    shards = layout.sp * (layout.tp if layout.megatron_sp else 1)
    longest = work.longest
    trunk, head = mean_flops(model, work.sequences)
    unbalance = longest.most_supervised(shards) * shards / longest.supervised  # the fullest piece's share of the head's rows
    rows, speed = passes * layout.micro_batch, device.flops * cluster.efficiency
    forward = rows * trunk / (layout.tp * layout.sp)
    compute = 3 * (forward + rows * head * unbalance / shards) / speed
    tp_bytes, sp_bytes, exchanges = activation_traffic(work, layout, numerics)
    zero_bytes, reductions = zero_traffic(work, layout, numerics)
    replicas, node = layout.dp * layout.sp, cluster.per_node
    crosses, together = replicas * layout.tp > node, max(1, node // layout.tp)
    zero_speed = min(device.inside, device.between * together) if crosses else device.inside
    sp_speed = device.between if layout.tp * layout.sp > node else device.inside
    waits = exchanges * math.log2(layout.tp * layout.sp) + reductions * math.log2(replicas)
    return Cost(
        flops=3 * work.samples * (trunk + head),
        compute=compute,
        recompute=recompute_seconds(work, layout, numerics, forward / speed, device),
        update=UPDATE * FP32 * parameters(model, layout.tp) / (replicas if layout.zero else 1) / device.bandwidth,
        tp_bytes=tp_bytes,
        sp_bytes=sp_bytes,
        zero_bytes=zero_bytes,
        communication=tp_bytes / device.inside + sp_bytes / sp_speed + zero_bytes / zero_speed + LATENCY * waits,
    )


def mean_flops(model: ModelConfig, sequences: tuple[Sequence, ...]) -> tuple[float, float]:
    """(trunk, head) FLOPs of a sample's forward, the mean over the sequences that it may be trained on; the backward has twice as many."""
    ratio = mean_mask_ratio(model)
    trunk = mean([trunk_flops(model, sequence.tokens, sequence.pairs) for sequence in sequences])
    return trunk, mean([head_flops(model, round(ratio * sequence.supervised)) for sequence in sequences])


def mean(values: list[int]) -> float:
    return sum(values) / len(values)


def recompute_seconds(work: Workload, layout: Layout, numerics: Numerics, forward_seconds: float, device: Device) -> float:
    """Full: the blocks' forward once more. Selective: only cheap operations, bound by memory: what they bring back is read and written."""
    if layout.checkpointing == "full":
        return forward_seconds
    if layout.checkpointing == "none":
        return 0.0
    held = activations(work, layout, numerics)
    return 2 * layout.accumulation * (work.model.depth * held.one_block - held.blocks) / device.bandwidth


def activation_traffic(work: Workload, layout: Layout, numerics: Numerics) -> tuple[float, float, int]:
    """(bytes of tensor parallelism, bytes of Ulysses, collectives) of one device and step. Recomputing a block sends again."""
    model, tp, sp = work.model, layout.tp, layout.sp
    directions = 3 if layout.checkpointing != "none" else 2
    tokens = layout.micro_batch * mean([sequence.tokens for sequence in work.sequences]) / sp
    tensor, blocks = tokens * model.width * numerics.size, layout.accumulation * model.depth * directions
    # Attention, cross-attention and FFN each end in a sum (a ring sends two shares of it; Megatron-SP splits them over entry and exit).
    tp_bytes = blocks * 3 * 2 * (tp - 1) / tp * tensor
    sp_bytes = blocks * 4 * (sp - 1) / sp * tensor / tp  # q, k and v out, attention's output back
    return tp_bytes, sp_bytes, blocks * ((3 if tp > 1 else 0) + (4 if sp > 1 else 0))


def zero_traffic(work: Workload, layout: Layout, numerics: Numerics) -> tuple[float, int]:
    """(bytes, collectives) of one device and step for gradients and weights over the replica group."""
    replicas, count, passes = layout.dp * layout.sp, parameters(work.model, layout.tp), layout.accumulation
    # DeepSpeed sums gradients by all-reduce (two shares of a ring) up to stage 2, by reduce-scatter at stage 3, where weights are
    # gathered for the forward and for the backward pass; from stage 2 on gradients are summed in every pass.
    volumes = {0: 2, 1: 3, 2: 2 * passes + 1, 3: 3 * passes}[layout.zero]
    return volumes * (replicas - 1) / replicas * count * numerics.size, volumes * -(-count // BUCKET) if replicas > 1 else 0
