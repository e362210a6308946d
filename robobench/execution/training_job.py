"""Trains the models of a plan that are not in the store, required models first.

If a training fails, its reason is recorded, and only the models that require it are skipped.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from contextlib import nullcontext

from torch import nn

from robobench.core.formatting import format_duration
from robobench.distributed import collectives
from robobench.errors import ArtifactError, StorageError
from robobench.execution.context import RunContext
from robobench.execution.model_folder import TrainingResult, save_model
from robobench.execution.stage_job import StageRunner
from robobench.models.build import build_model
from robobench.models.weights import load_weights, state_digest
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.plan import NO_THREAT, ExternalModel, PlannedModel, TrainingJob
from robobench.plugins.discovery import load_defense
from robobench.results.records import TeacherTiming
from robobench.store.artifacts import file_digest, hash_recipe, wrap_write_errors
from robobench.training.averaging import WeightAverage
from robobench.training.base import DefenseSetup, FrozenModel, Stage, Train
from robobench.training.context import ImageSource, StageRecord, TrainRuntime
from robobench.training.sampling import MixedImages
from robobench.training.selection import EpochSelection, quick_accuracy

TEACHER_IMAGES = 128  # training images of the teacher check before a training
COMPILER_MODULES = ("torch._dynamo", "torch._inductor")  # an error of these modules means that torch.compile failed


class Trainer:
    """Trains the models of a plan."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.place = ""  # of the model among all models of the run, for messages

    def train_all(self) -> None:
        """Train every missing model, required models first."""
        order = self.context.plan.training_order()
        for number, model in enumerate(order, 1):
            self.place = f"[{number}/{len(order)}] "
            self.attempt(model)

    def attempt(self, model: PlannedModel) -> None:
        """Train a model, or record why it failed. Models it requires must be attempted before."""
        failures, reporter = self.context.failures, self.context.reporter
        failed = [other for other in model.requires.values() if other.key in failures]
        if failed:
            why = failures[failed[0].key]
            failures[model.key] = f"required defense '{failed[0].name}' could not be trained: {why}"
            return
        refusal = None
        if isinstance(model, TrainingJob) and model.threat:
            reasons = map(model.defense.why_unsupported, model.threat.members)
            refusal = next(filter(None, reasons), None)
        if refusal:
            failures[model.key] = f"refused: {refusal}"
            reporter.warning(f"{model.name}: {refusal}")
            return
        try:
            self.train(model)
        except StorageError:  # no other result could be stored either
            raise
        except Exception as err:  # becomes the reason in the model's rows
            why = " ".join(str(err).split())
            if type(err).__module__.startswith(COMPILER_MODULES):
                why = f"torch.compile failed ({why[:300]}); use --compile off"
            failures[model.key] = why
            reporter.warning(f"training '{model.name}' failed: {why}")
            reporter.log(traceback.format_exc())
        finally:
            reporter.log_file = None

    def train(self, model: PlannedModel) -> None:
        """Train and store a model, unless it is in the store. The store's lock lets one process train it."""
        store, reporter = self.context.store, self.context.reporter
        with store.lock("model", model.folder):
            if reused := bool(self.context.find("model", model.folder)):
                reporter.info(
                    f"{self.place}{model.name} (seed {model.seed}): reused from {self.context.plan.out / model.folder}"
                )
            else:
                logs = store.root / "artifacts" / "logs"
                with wrap_write_errors(logs):
                    logs.mkdir(parents=True, exist_ok=True)
                reporter.log_file = logs / f"{model.folder}.log"
                reporter.log(f"{model.name} (seed {model.seed}) as '{model.folder}'")
                if isinstance(model, ExternalModel):
                    self._import(model)
                elif isinstance(model, TrainingJob):
                    self._train(model)
            self.context.tracking.stored(model, reused=reused)
            store.discard(f"checkpoints/{model.folder}")

    def _import(self, model: ExternalModel) -> None:
        """Store an external model unchanged."""
        module = build_model(model.spec).to(self.context.plan.device)
        if model.weights is not None:
            load_weights(module, model.weights, model.weights_key)
        digest = file_digest(model.weights) if model.weights else state_digest(module)
        if digest != model.recipe["external"]:
            what = f"'{model.weights}'" if model.weights else f"the model '{model.spec.name}'"
            raise ArtifactError(f"{what} has changed since this run began; rerun the command")
        collectives.on_rank_zero(lambda: save_model(self.context, model, module, TrainingResult()))

    def _train(self, job: TrainingJob) -> None:
        plan, reporter = self.context.plan, self.context.reporter
        reporter.info(f"{self.place}{job.name} (seed {job.seed}): training {job.spec.name} on {job.dataset}")
        assert self.context.dataset.train is not None
        data: ImageSource = self.context.dataset.train.first(plan.train_images)
        exact = self.context.dataset.train.is_uint8_exact
        if (extra := self.context.dataset.extra) is not None:
            data, exact = MixedImages(data, extra, plan.run.extra_fraction), exact and extra.is_uint8_exact
        runtime = TrainRuntime(plan.device, plan.precision, job.seed, reporter, job.compiled, job.threat)
        setup = self._setup(job, len(data), exact)
        for teacher in setup.required_models.values():
            runtime.compile(teacher.module)
        result = TrainingResult(teachers=self._measure_teachers(job, runtime, setup.required_models, data))
        digests = {role: state_digest(teacher.module) for role, teacher in setup.required_models.items()}
        stages = job.defense(job.config).stages(setup)
        self._follow_last_stage(job, runtime, setup.model, stages[-1], result)
        runner = StageRunner(self.context, job, runtime, setup, data)
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            # Trainings share stages: another process may run this stage for another training.
            lock = nullcontext() if last else self.context.store.lock("stages", hash_recipe(job.stage_recipe(stage)))
            with lock:
                record, metrics = runner.run(stage, last=last, result=result)
            for role, teacher in setup.required_models.items():
                if state_digest(teacher.module) != digests[role]:
                    raise ArtifactError(f"stage '{stage.name}' of '{job.name}' changed its teacher '{role}'")
            result.stages.append(record)
            result.metrics += metrics
            self._report_stage(job, record)
        self.context.forget_model()
        collectives.on_rank_zero(lambda: save_model(self.context, job, setup.model, result))

    def _setup(self, job: TrainingJob, train_size: int, is_uint8_exact: bool) -> DefenseSetup:
        """Build the untrained model, load the required models, and return the setup of the defense."""
        run = self.context.plan.run
        module: nn.Module = self._initial_model(job).to(self.context.plan.device)
        if run.sync_batchnorm and collectives.world_size() > 1:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return DefenseSetup(
            model=module,
            threat=job.threat or NO_THREAT,
            num_classes=job.spec.num_classes,
            image_shape=(3, run.attack_resolution, run.attack_resolution),
            train_size=train_size,
            seed=job.seed,
            is_uint8_exact=is_uint8_exact,
            required_models={role: FrozenModel(self.context.load_model(other)) for role, other in job.requires.items()},
        )

    def _initial_model(self, job: TrainingJob) -> PreprocessedModel:
        """Return the model before training, with the weights of --init."""
        model, init = build_model(job.spec), self.context.plan.init
        if init is not None:
            if init.recipe() != job.recipe["init"]:
                raise ArtifactError(f"--init '{init.file}' has changed since this run began; rerun the command")
            for line in load_weights(model, init.file, new_head=True):
                self.context.reporter.warning(line)
        if job.config.freeze == "backbone":
            model.freeze_backbone()
        return model

    def _measure_teachers(
        self, job: TrainingJob, runtime: TrainRuntime, teachers: Mapping[str, FrozenModel], data: ImageSource
    ) -> dict[str, TeacherTiming]:
        """Measure the accuracy of every teacher, not timed; warn if it is near chance or not robust."""
        reporter, measured = self.context.reporter, dict[str, TeacherTiming]()
        declared = job.defense(job.config).requires
        for role, teacher in teachers.items():
            accuracy = quick_accuracy(runtime, teacher.module, data, job.threat or NO_THREAT, TEACHER_IMAGES)
            name = job.requires[role].name
            measured[role] = {
                "network": name,
                "key": job.requires[role].key,
                "pgd": accuracy.pgd,
                "clean": accuracy.clean,
                "images": accuracy.images,
            }
            reporter.info(f"  teacher '{role}' ({name}): {accuracy} for training")
            classes = job.spec.num_classes
            if accuracy.near_chance(classes):
                reporter.warning(
                    f"teacher '{role}' ({name}) is not clearly better than chance ({classes} classes): "
                    f"{accuracy}; check its normalization (a factory has its own mean and std: "
                    f"--teacher {role}=FILE.py:FUNCTION=WEIGHTS) and the order of its classes, or train it longer"
                )
            if accuracy.not_robust and load_defense(declared[role]).adversarial:
                reporter.warning(
                    f"teacher '{role}' ({name}) is not robust at {job.threat}: {accuracy}; "
                    f"'{job.name}' cannot learn robustness from it"
                )
        return measured

    def _follow_last_stage(
        self, job: TrainingJob, runtime: TrainRuntime, model: nn.Module, last: Stage, result: TrainingResult
    ) -> None:
        """Add to a result what averages the weights of the last stage, and what selects its best epoch."""
        if not isinstance(last, Train):
            return
        if job.config.average != "none":
            result.average = WeightAverage(model, job.config, last.epochs)
        count = self.context.plan.run.held_out
        if not count or not last.epochs:
            return
        assert self.context.dataset.train is not None
        held_out, threat = self.context.dataset.train.last(count), job.threat or NO_THREAT
        result.selections["best"] = EpochSelection(runtime, lambda: model, held_out, threat, last.epochs)
        if (average := result.average) is not None:
            result.selections["best-average"] = EpochSelection(
                runtime, lambda: average.module, held_out, threat, last.epochs, "held_out_average"
            )

    def _report_stage(self, job: TrainingJob, record: StageRecord) -> None:
        parts = [format_duration(record.seconds)]
        if record.epochs > 1:
            parts.append(f"{record.epochs} epochs, {record.seconds_per_epoch:.2f} s each")
        parts.append(f"{record.images_per_second:.0f} images/s")
        parts += [f"{name} {value:.3f}" for name, value in record.metrics.items()]
        self.context.reporter.info(f"  {record.name}: {', '.join(parts)}")
        for flag in record.flags:
            self.context.reporter.warning(f"{job.name} (seed {job.seed}): stage '{record.name}': flag '{flag}' set")
