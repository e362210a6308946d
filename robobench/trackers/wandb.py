"""Weights & Biases: project $WANDB_PROJECT, else "robobench". WANDB_MODE=offline writes files for `wandb sync` only."""

import os
from pathlib import Path
from typing import Any

from robobench.api import TRACKERS, Tracker


@TRACKERS.register("wandb")
class WandbTracker(Tracker):
    """A run whose id is the model's folder, so that it continues where another process left it."""

    requires = "wandb"

    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.wandb: Any = wandb
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "robobench"),
            id=run,
            name=run,
            config=config,
            dir=str(folder),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.run.define_metric("*", step_metric="epoch")

    def log(self, values: dict[str, float], epoch: int | None = None) -> None:
        """Log values of an epoch, or set values of the summary."""
        if epoch is None:
            self.run.summary.update(values)
        else:
            self.run.log({**values, "epoch": epoch})

    def artifact(self, path: Path) -> None:
        """Log an artifact that refers to the files where they are."""
        artifact = self.wandb.Artifact(path.name, "model")
        artifact.add_reference(path.resolve().as_uri())
        self.run.log_artifact(artifact)

    def close(self) -> None:
        """End the run."""
        self.run.finish()
