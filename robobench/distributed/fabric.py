"""Lightning Fabric for runs on several devices; imported only then.

Fabric starts the processes, chooses their devices and backend (NCCL for GPUs, gloo for CPUs), and wraps modules in
DistributedDataParallel. It does not set the precision: it would round the images that attacks see to bfloat16.
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

COLLECTIVE_TIMEOUT = timedelta(days=7)  # a process may wait for a lock or a slow attack; a death is noticed earlier


def silence_loggers() -> None:
    """Suppress messages of the libraries about starting and ending processes."""
    for name, level in (("lightning_fabric", logging.WARNING), ("torch.multiprocessing.spawn", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP reports that all parameters were used


class QuietDDPStrategy(DDPStrategy):
    """DistributedDataParallel without log messages."""

    def setup_environment(self) -> None:
        """Join the process group."""
        silence_loggers()
        super().setup_environment()


def make_fabric(device: str, devices: int, machines: int = 1, started: bool = False) -> Fabric:
    """Return a Fabric object for `devices` devices on each of `machines` machines.

    Args:
        started: whether torchrun has already started the processes.
    """
    if sys.platform == "linux" and machines == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name may not resolve to this machine
    silence_loggers()
    return Fabric(
        accelerator=device.partition(":")[0],
        devices=devices,
        num_nodes=machines,
        strategy=QuietDDPStrategy(
            start_method="popen" if started else "spawn",
            find_unused_parameters=True,  # a method may not use every parameter in every step
            timeout=COLLECTIVE_TIMEOUT,
        ),
        plugins=[TorchElasticEnvironment() if started else LightningEnvironment()],
    )
