"""Runs a plan: trainings, then evaluations, with a shared context."""

from __future__ import annotations

from dataclasses import dataclass

from robobench.core.console import Reporter
from robobench.data.split import Dataset
from robobench.execution.context import RunContext
from robobench.execution.evaluation_job import Evaluator
from robobench.execution.training_job import Trainer
from robobench.planning.plan import Plan, TrainingJob
from robobench.planning.presets import PRESETS, preset_layers
from robobench.planning.request import ExperimentConfig


class Runner:
    """Trainer and evaluator of one plan."""

    def __init__(self, plan: Plan, dataset: Dataset, reporter: Reporter) -> None:
        self.plan, self.dataset, self.reporter = plan, dataset, reporter
        self.context = RunContext(plan, dataset, reporter)
        self.trainer = Trainer(self.context)
        self.evaluator = Evaluator(self.context)

    def run(self) -> set[str]:
        """Train missing models, evaluate every cell, and return the keys of the records."""
        self.announce()
        try:
            self.trainer.train_all()
            keys = self.evaluator.evaluate_all()
            self.evaluator.write_adversarial()
            return keys
        finally:
            self.context.tracking.close()

    def announce(self) -> None:
        """Log the settings of the run, and how many images are not used."""
        plan = self.plan
        for note in plan.notes:
            self.reporter.info(f"note: {note}")
        models = ", ".join(dict.fromkeys(model.spec.name for model in plan.models))
        self.reporter.info(
            f"{models} on {plan.dataset.name} (data {plan.dataset.test_digest}), {plan.dataset.resolution} px, "
            f"{plan.examples} test images, preset {plan.preset}, {plan.device}, {plan.precision}, "
            f"{plan.threads} threads" + (f" in each of {plan.devices} processes" if plan.devices > 1 else "")
        )
        for line in self._reductions():
            self.reporter.info(f"note: {line}")

    def _reductions(self) -> list[str]:
        """Return at most one line: which images are left out, and what the preset shortens for a large model."""
        plan = self.plan
        counts = (
            ("training", plan.run.train_images, plan.dataset.train_size),
            ("test", plan.examples, plan.dataset.test_size),
        )
        parts = [f"the first {used} of {size} {name} images" for name, used, size in counts if 0 < used < size]
        models = {model.spec.name for model in plan.models if isinstance(model, TrainingJob)}
        layers = [(name, layer) for name in models for layer in preset_layers(plan.preset, name)]
        parts += [f"{PRESETS[layer]['reduces']} for {name}" for name, layer in layers if "reduces" in PRESETS[layer]]
        return [f"this run is reduced: {', '.join(parts)}; --dry-run shows every setting"] if parts else []


@dataclass(frozen=True)
class Work:
    """A request, and the runner of its plan."""

    request: ExperimentConfig
    runner: Runner


def run_serially(work: list[Work]) -> list[set[str]]:
    """Run one request after the other in this process; return the keys of the records of each."""
    keys = []
    for number, one in enumerate(work, 1):
        if len(work) > 1:
            one.runner.reporter.info(f"request {number} of {len(work)}")
        keys.append(one.runner.run())
        one.runner.context.forget_model()
    return keys
