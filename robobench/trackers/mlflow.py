"""MLflow: the server of $MLFLOW_TRACKING_URI, else a file store in OUT/tracking/mlflow."""

import os
from pathlib import Path
from typing import Any

from robobench.api import TRACKERS, Tracker

TAG = "robobench.model"  # holds the name of the model's folder


@TRACKERS.register("mlflow")
class MLflowTracker(Tracker):
    """A run of the experiment $MLFLOW_EXPERIMENT_NAME, else "robobench"."""

    requires = "mlflow"

    def __init__(self, run: str, config: dict[str, Any], folder: Path) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            address = f"file:{folder.resolve()}"
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 prefers a database, which more than
            # one process of a cluster cannot share
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(tracking_uri=address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "robobench")
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name)
        earlier = self.client.search_runs([experiment], f"tags.`{TAG}` = '{run}'", max_results=1)
        made = earlier[0] if earlier else self.client.create_run(experiment, run_name=run, tags={TAG: run})
        self.id = made.info.run_id
        if not earlier:
            for key, value in config.items():
                self.client.log_param(self.id, key, str(value)[:500])

    def log(self, values: dict[str, float], epoch: int | None = None) -> None:
        """Log metrics."""
        for name, value in values.items():
            self.client.log_metric(self.id, name, value, step=epoch or 0)

    def artifact(self, path: Path) -> None:
        """Set the path as a tag."""
        self.client.set_tag(self.id, "model_folder", str(path))

    def close(self) -> None:
        """End the run."""
        self.client.set_terminated(self.id)
