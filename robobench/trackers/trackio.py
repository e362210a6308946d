"""Trackio: a local database in OUT/tracking/trackio, or the folder $TRACKIO_DIR; show it with `trackio show`."""

import os
from pathlib import Path
from typing import Any

from robobench.api import TRACKERS, Tracker


@TRACKERS.register("trackio")
class TrackioTracker(Tracker):
    """A run of the project "robobench"."""

    requires = "trackio"

    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder.resolve()))
        import trackio

        plain = {name: value if isinstance(value, (int, float)) else str(value) for name, value in config.items()}
        self.run: Any = trackio.init(project="robobench", name=run, config=plain, resume="allow", auto_log_gpu=False)

    def log(self, values: dict[str, float], epoch: int | None = None) -> None:
        """Log values; those of the whole model at step 0."""
        self.run.log(values, step=epoch or 0)

    def artifact(self, path: Path) -> None:
        """Log the path."""
        self.run.log({"model_folder": str(path)}, step=0)

    def close(self) -> None:
        """Write the rest."""
        self.run.finish()
