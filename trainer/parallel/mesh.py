"""Where a rank stands in the layout and whom it talks to: groups per axis, and the adapter that tells DeepSpeed.

Built once per process by process.py; everything in this folder and the engine takes its groups from here. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import deepspeed
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh

from trainer.parallel.places import Place, place_of
from trainer.planner import Layout


@dataclass(frozen=True)
class Mesh:
    """This rank's place in the layout and its process group along every axis."""

    layout: Layout
    place: Place
    tp_group: ProcessGroup
    sp_group: ProcessGroup
    replica_group: ProcessGroup  # dp x sp: the ranks that hold the same part of the model; ZeRO spreads over it

    def sum_losses(self, loss: Tensor) -> None:
        """Make a rank's losses the step's, in place: the same bits on every rank, for decisions are taken on them.

        Without Megatron-SP the ranks of a tensor-parallel group have all computed the same rows.
        """
        dist.all_reduce(loss)
        if not self.layout.megatron_sp:
            loss /= self.layout.tp


def build_mesh(layout: Layout, device: str = "cpu") -> Mesh:
    """Make the process groups of a layout; every rank of the world calls it, in the same order, once the world's own group is there."""
    # DeepSpeed's shared-memory kernel serves inference only, and would be compiled for a minute at the first start on a machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)  # its collectives go through the process group that is there
    mesh = init_device_mesh(device, (layout.dp, layout.sp, layout.tp), mesh_dim_names=("dp", "sp", "tp"))
    replica = mesh["dp", "sp"]._flatten("replica")
    return Mesh(
        layout=layout,
        place=place_of(dist.get_rank(), layout),
        tp_group=mesh.get_group("tp"),
        sp_group=mesh.get_group("sp"),
        replica_group=replica.get_group(),
    )


class DeepSpeedMesh:
    """The names by which DeepSpeed asks for a mesh ("mpu"): a model-parallel group, and one group for all else.

    It is not told of sequence parallelism: it would then partition ZeRO-3's weights over another group than its gradients, and sum over
    the sequence group at stages 0 to 2 but average over it at stage 3. The ranks of a replica group hold the same weights and different
    losses, and all stages average over it; the engine scales the loss by its size.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self.mesh.place.tp_rank

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.layout.tp

    def get_model_parallel_group(self) -> ProcessGroup:
        return self.mesh.tp_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return dist.get_rank(self.mesh.replica_group)

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.layout.dp * self.mesh.layout.sp

    def get_data_parallel_group(self) -> ProcessGroup:
        return self.mesh.replica_group
