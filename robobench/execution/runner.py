"""Runs a plan: trainings, then evaluations, with a shared context."""

from __future__ import annotations

from robobench.core.console import Reporter
from robobench.data.split import Dataset
from robobench.execution.context import RunContext
from robobench.execution.evaluation_job import Evaluator
from robobench.execution.training_job import Trainer
from robobench.planning.plan import Plan


class Runner:
    """Trainer and evaluator of one plan."""

    def __init__(self, plan: Plan, dataset: Dataset, reporter: Reporter) -> None:
        self.plan, self.dataset, self.reporter = plan, dataset, reporter
        self.context = RunContext(plan, dataset, reporter)
        self.trainer = Trainer(self.context)
        self.evaluator = Evaluator(self.context)

    def run(self) -> set[str]:
        """Train missing models, evaluate every cell, and return the keys of the records."""
        self.trainer.train_all()
        return self.evaluator.evaluate_all()

    def announce(self) -> None:
        """Log the settings of the run, and how many images are not used."""
        plan = self.plan
        for note in plan.notes:
            self.reporter.info(f"note: {note}")
        self.reporter.info(
            f"{plan.dataset.name} (data {plan.dataset.test_digest}), images of {plan.dataset.resolution} px, "
            f"preset {plan.preset}, {plan.device}, "
            f"{plan.precision}, {plan.threads} threads"
            + (f" in each of {plan.devices} processes" if plan.devices > 1 else "")
        )
        for name, used, available in (
            ("training", plan.run.train_images, plan.dataset.train_size),
            ("test", plan.examples, plan.dataset.test_size),
        ):
            if 0 < used < available:
                self.reporter.info(f"note: this run uses the first {used} of {available} {name} images")
