"""Lightning Fabric as it is used here; imported only where several devices are asked for.

It starts the processes, picks their devices and backend (NCCL for GPUs, gloo for CPUs) and wraps a module in
DistributedDataParallel. Precision stays ours: Fabric's would round the images that attacks see to bfloat16.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

COLLECTIVE_TIMEOUT = timedelta(
    days=7
)  # one process may wait for another: for a lock, for a slow attack; who died is noticed sooner


def silence_loggers() -> None:
    """Leave out what the libraries remark on starting and ending processes."""
    for name, level in (("lightning_fabric", logging.WARNING), ("torch.multiprocessing.spawn", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP remarks that all parameters were used


class Strategy(DDPStrategy):
    """DistributedDataParallel without remarks."""

    def setup_environment(self) -> None:
        """Join the other processes."""
        silence_loggers()
        super().setup_environment()


def make_fabric(device: str, devices: int, machines: int = 1, started: bool = False) -> Fabric:
    """Return the Fabric of so many devices of a kind on each of so many machines.

    Args:
        started: torchrun started the processes already.
    """
    if sys.platform == "linux" and machines == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not lead back to it
    silence_loggers()
    return Fabric(
        accelerator=device.partition(":")[0],
        devices=devices,
        num_nodes=machines,
        strategy=Strategy(
            start_method="popen" if started else "spawn",
            find_unused_parameters=True,  # a method may leave some out of a step
            timeout=COLLECTIVE_TIMEOUT,
        ),
        plugins=[TorchElasticEnvironment() if started else LightningEnvironment()],
    )
