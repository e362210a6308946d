"""Base class of trackers, which send the progress of a run to tools such as TensorBoard."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar


class Tracker(ABC):
    """One model in a tracking tool. It is opened again when another process or a later run continues the model.

    Values that are logged again are equal, since records and metrics of a stored model never change.

    Args:
        run: name of the model's folder, unique and the same in every process.
        config: settings of the training, plain values.
        folder: for files of this tool; it may not exist yet.
    """

    name: ClassVar[str]  # set by TRACKERS.register
    requires: ClassVar[str] = ""  # package that must be installed

    @abstractmethod
    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None: ...

    @abstractmethod
    def log(self, values: dict[str, float], epoch: int | None = None) -> None:
        """Log numbers, of an epoch (from 1) or of the whole model. Names have parts separated by /."""

    @abstractmethod
    def artifact(self, path: Path) -> None:
        """Record where the folder of the trained model is. Nothing is copied."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""
