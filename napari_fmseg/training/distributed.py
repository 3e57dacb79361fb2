"""Several processes that train together, one per GPU or, for a trial, on one CPU.

Each takes its part of every batch. The process of rank 0 is the only one that writes, validates and yields events;
the others follow it step by step, so that it can stop at any of them.
"""

from __future__ import annotations

import datetime
import logging
import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor

from napari_fmseg.core.allocator import keep_freed_memory
from napari_fmseg.nets.runtime.device import pick_device, training_precision

__all__ = ["all_reduce_sum", "broadcast_ints", "make_fabric"]

_PATIENCE = datetime.timedelta(hours=2)  # for a validation, during which the others wait


def make_fabric(device: str, precision: str, devices: int = 1) -> Fabric:
    """Make the Fabric of a run; its `launch` starts the other processes.

    Parameters
    ----------
    device, precision
        As in a recipe.
    devices
        Processes on this machine. Where torchrun has started them, it says how many, and on how many machines.
    """
    place = pick_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    wanted = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
    machines = 1
    # Named, since Fabric would otherwise take the tasks of a SLURM job for processes that train together, and warn
    # wherever `srun` is installed.
    environment: ClusterEnvironment = LightningEnvironment()
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // devices
        environment = TorchElasticEnvironment()
    several: dict[str, Any] = {}
    if devices * machines > 1:
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        several = {"num_nodes": machines, "strategy": DDPStrategy(timeout=_PATIENCE)}
    kind: Any = wanted[training_precision(place, precision)]
    return Fabric(accelerator=place.type, devices=devices, precision=kind, plugins=[environment], **several)


def broadcast_ints(fabric: Fabric, *numbers: int) -> list[int]:
    """Return the numbers of the process of rank 0, in all processes."""
    if fabric.world_size == 1:
        return list(numbers)
    told = torch.tensor(numbers, device=fabric.device)
    torch.distributed.broadcast(told, 0)
    return [int(number) for number in told]


def all_reduce_sum(fabric: Fabric, own: Tensor) -> Tensor:
    """Add up a tensor of all processes, for a loss that is no mean over samples, such as Dice.

    Every process gets the sum, and the gradient of its own part as many times as there are processes: the mean of the
    gradients, which is what they step by, then is that of the whole batch.
    """
    if fabric.world_size == 1:
        return own
    total = own.detach().clone()
    torch.distributed.all_reduce(total)
    return total + fabric.world_size * (own - own.detach())
