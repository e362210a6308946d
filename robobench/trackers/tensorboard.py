"""TensorBoard: event files in OUT/tracking/tensorboard/MODEL; show them with `tensorboard --logdir OUT/tracking`."""

from pathlib import Path
from typing import Any

from robobench.api import TRACKERS, Tracker


@TRACKERS.register("tensorboard")
class TensorBoardTracker(Tracker):
    """Event files. Results of the whole model are at step 0."""

    requires = "tensorboard"

    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(folder / run)
        self.writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in config.items()))

    def log(self, values: dict[str, float], epoch: int | None = None) -> None:
        """Add scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch or 0)

    def artifact(self, path: Path) -> None:
        """Add the path as text."""
        self.writer.add_text("model", str(path))

    def close(self) -> None:
        """Write and close the event file."""
        self.writer.close()
