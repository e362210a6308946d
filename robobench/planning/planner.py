"""From a request to a plan. Bad input is refused here, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robobench.core.paths import check_writable
from robobench.core.randomness import Randomness
from robobench.data import load_dataset, placeholder_dataset
from robobench.data.extra import load_extra
from robobench.data.info import Resize
from robobench.data.split import Dataset, require_classes
from robobench.errors import RequestError
from robobench.models.pretrained import pretrained_is_cached, published_preprocessing
from robobench.models.spec import TIMM, brings_own_normalization
from robobench.planning.attacks import check_one_ball, choose_eot, plan_attacks
from robobench.planning.initial_weights import use_published_weights
from robobench.planning.parsing import ALL_DEFENSES
from robobench.planning.plan import AttackSpec, DatasetIdentity, Plan, PlannedModel, TrainingJob
from robobench.planning.precheck import check_request
from robobench.planning.request import ExperimentConfig
from robobench.planning.settings import Settings, resolve_settings
from robobench.planning.trainings import ModelPlanner
from robobench.plugins.discovery import check_installed, load_defense


class Planner:
    """Resolves one request.

    Args:
        dry: missing data become a line of the plan instead of an error.
        loaded: data sets of earlier requests by how they were loaded; this one's is added.

    Raises:
        RequestError: anything that cannot be done.
    """

    def __init__(
        self, request: ExperimentConfig, *, dry: bool = False, loaded: dict[tuple[Any, ...], Dataset] | None = None
    ) -> None:
        request = check_request(use_published_weights(request))
        self.request, self.dry, self.loaded = request, dry, {} if loaded is None else loaded
        self.unavailable_data: list[str] = []
        self.settings = resolve_settings(request, dry=dry)
        self.attacks = plan_attacks(self.settings)
        for name in request.defenses:
            load_defense(name)
        for name in request.track:
            check_installed("tracker", name)
        check_writable(request.out)
        self.dataset = self._load_dataset()
        if request.attacks is None:
            self.attacks = [spec for spec in self.attacks if self._has_enough_classes(spec)]
        for spec in self.attacks:
            spec.attack.num_classes = self.dataset.num_classes
            for warning in spec.attack.warnings():
                self.settings.note(warning)
        self.train_images = self._count_train_images()
        self.models = ModelPlanner(self.settings, self.dataset, self.train_images)

    def _load_dataset(self) -> Dataset:
        settings, own = self.settings, ":" in self.request.dataset
        resolution = settings.run.attack_resolution if not own or "attack_resolution" in settings.given else None
        try:
            dataset = self._load_once(resolution, self._published_resize() if own else None)
        except RequestError as err:
            placeholder = placeholder_dataset(self.request.dataset, resolution) if self.dry else None
            if placeholder is None:
                raise
            self.unavailable_data.append(str(err))
            return placeholder
        for note in dataset.notes:
            settings.note(note)
        if own and self.request.defenses and not settings.run.pretrained:
            settings.note(f"'{dataset.name}': models of robobench and timm normalize with ImageNet's mean and std")
        if own:
            side = settings.run.image_size if "image_size" in settings.given else dataset.resolution
            settings.run = replace(settings.run, attack_resolution=dataset.resolution, image_size=side)
        return dataset

    def _load_once(self, resolution: int | None, published: Resize | None) -> Dataset:
        """Load the data set with its extra images, or take it from `loaded`."""
        request, device = self.request, self.settings.device
        need_train = bool(request.defenses)
        extra = request.extra if need_train else None
        how = (request.dataset, request.data_dir, resolution, need_train, device, published, extra)
        if how not in self.loaded:
            dataset = load_dataset(
                request.dataset,
                data_dir=request.data_dir,
                resolution=resolution,
                need_train=need_train,
                device=device,
                download=not self.dry,
                published=published,
            )
            if extra is not None:
                classes, side = dataset.num_classes, dataset.resolution
                images = load_extra(Path(extra), num_classes=classes, resolution=side, device=device)
                dataset = replace(dataset, extra=images)
            self.loaded[how] = dataset
        return self.loaded[how]

    def _published_resize(self) -> Resize | None:
        """Return how images are resized for the model's published weights; None if it has or uses none."""
        if not (self.request.external or self.settings.run.pretrained):
            return None
        name = self.request.model
        if name in TIMM and not self.settings.run.pretrained:  # trained with our stem and size
            return None
        published = published_preprocessing(name)
        return published.resize if published is not None else None

    def _count_train_images(self) -> int:
        """Return how many training images are used, from the first on; raises RequestError if there are too few."""
        train, run = self.dataset.train, self.settings.run
        if train is None:
            return 0
        have = len(train) - run.held_out
        count = min(run.train_images or have, have)
        if self.request.defenses and not self.unavailable_data:
            if count < 1:
                raise RequestError(
                    f"run.held_out={run.held_out} leaves nothing to train on: the training split has "
                    f"{len(train)} images; hold out fewer, or none with --set run.held_out=0"
                )
            require_classes(train.first(count), 2)
        return count

    def _has_enough_classes(self, spec: AttackSpec) -> bool:
        """Return whether a default attack can be used with the data; note it if not."""
        needed, classes = spec.attack.min_classes, self.dataset.num_classes
        if classes < needed:
            self.settings.note(
                f"attack '{spec.attack.name}' is left out: it needs {needed} classes, the data set has {classes}"
            )
        return classes >= needed

    def plan(self) -> Plan:
        """Return the plan."""
        request, settings, run = self.request, self.settings, self.settings.run
        models = self._models()
        self.dataset = self.models.dataset  # with the class numbers of an external model
        for spec in self.attacks:
            spec.attack.num_classes = self.dataset.num_classes
        transfer = request.protocol != "white-box" and bool(self.attacks) and bool(models)
        sources = self._transfer_sources(models) if transfer else ()
        controls = self._controls(models) if transfer and not request.external else []
        settings.check_sets_used()
        if self.dry and run.pretrained and not request.external and not pretrained_is_cached(self.models.spec(0)):
            self.unavailable_data.append(
                f"pretrained weights of '{request.model}' are not in the Hugging Face cache; a run downloads them, "
                "--set run.pretrained=false starts from random weights instead"
            )
        examples, side = self._count_examples(), self.dataset.resolution
        if request.until is not None:
            self._shuffle_test_images(examples)
        for attack in self.attacks:
            attack.attack.check_images(examples, (3, side, side))
        randomness, bpda = self._randomness(), self._bpda()
        adaptive = randomness is not None or bpda is not None
        if adaptive and settings.precision != "fp32":
            settings.note("--eot and --bpda run in float32")
        if request.save_adversarial is not None:
            if request.until is not None:
                raise RequestError("--save-adversarial needs every image, in order; leave --until out")
            check_one_ball(request.save_adversarial, [spec.attack for spec in self.attacks])
        return Plan(
            preset=settings.preset,
            run=run,
            dataset=DatasetIdentity.of(self.dataset),
            models=models,
            controls=controls,
            transfer_sources=sources,
            attacks=self.attacks,
            train_images=self.train_images,
            examples=examples,
            device=settings.device,
            precision="fp32" if adaptive else settings.precision,
            threads=settings.threads,
            devices=settings.devices,
            until=request.until,
            out=request.out,
            checkpoint_minutes=request.checkpoint_minutes,
            overwrite=request.overwrite,
            track=request.track,
            notes=settings.notes,
            unavailable_data=self.unavailable_data,
            init=self.models.init,
            randomness=randomness,
            bpda=bpda,
            save_adversarial=request.save_adversarial,
        )

    def _shuffle_test_images(self, examples: int) -> None:
        """Put the first test images into a random order, as --until needs it; raises RequestError for several cells.

        Their digest changes, so their outcomes are never compared image by image with those in the file's order.
        """
        cells = [(spec.attack.name, protocol) for spec in self.attacks for protocol in spec.protocols]
        if len(cells) != 1 or cells[0][1] != "white-box":
            raise RequestError(
                f"--until stops one white-box attack at one radius, and this run has {len(cells)} of them or other "
                "protocols; add --attacks screen or another name, one --eps, and no --transfer-source"
            )
        self.dataset = replace(self.dataset, test=self.dataset.test.first(examples).shuffled("until"))

    def _models(self) -> list[PlannedModel]:
        """Return the models the table shows, one entry per selected epoch."""
        request, selection = self.request, self.settings.run.selection
        named = {"both": ("last", "best")}.get(selection, (selection,))
        jobs = [self.models.training(name, seed) for name in request.defenses for seed in request.seeds]
        self.models.teachers.check_used({role for job in jobs for role in job.requires})
        if selection in ("best", "best-average", "both") and any(job.config.epochs == 0 for job in jobs):
            raise RequestError(
                f"run.selection={selection} has nothing to choose from in 0 epochs; give --epochs 1 or more"
            )
        if request.external:
            return [self.models.external(request.model, request.weights)]
        for job in jobs:
            if selection in ("average", "best-average") and job.config.average == "none":
                raise RequestError(
                    f"run.selection={selection}: '{job.name}' averages no weights; set {job.name}.average=ema or swa, "
                    "or attack what each model has with run.selection=all"
                )
        return [
            replace(job, selection=chosen)
            for job in jobs
            for chosen in (self._stored_selections(job) if selection == "all" else named)
        ]

    def _stored_selections(self, job: TrainingJob) -> list[str]:
        """Return the names of the weights that a training stores."""
        held_out, averages = self.settings.run.held_out and job.config.epochs, job.config.average != "none"
        kept = {"last": True, "best": held_out, "average": averages, "best-average": held_out and averages}
        return [name for name, keep in kept.items() if keep]

    def _randomness(self) -> Randomness | None:
        """Return what --eot and --verdict ask for, else what an attack's reference settings use."""
        default = choose_eot(spec.attack for spec in self.attacks)
        if self.request.eot is None and default is not None:
            self.settings.note(
                f"every attack averages over {default} passes, as one of them does; change it with --eot"
            )
        return Randomness.parse(default if self.request.eot is None else self.request.eot, self.request.verdict)

    def _bpda(self) -> PlannedModel | None:
        """Return the model that gives the gradients."""
        if self.request.bpda is None:
            return None
        name, _, file = self.request.bpda.partition("=")
        return self.models.external(name, Path(file) if file else None, role="bpda")

    def _transfer_sources(self, models: list[PlannedModel]) -> tuple[PlannedModel, ...]:
        """Return the models that transfer examples are made on, in an order that does not depend on the request's."""
        run, given = self.settings.run, self.request.transfer_source
        trained = (
            [] if given else [self.models.training(run.transfer_source, seed) for seed in range(run.transfer_seeds)]
        )
        found = {source.key: source for source in (*map(self.models.source, given), *trained)}
        if len(found) < len(given):
            raise RequestError(f"--transfer-source {', '.join(given)}: two of these are one model; give each once")
        own = [model for model in models if len(found) > 1 and model.key in found]
        if own and self.request.external:
            raise RequestError(f"'{own[0].name}' is one of its own transfer sources; leave it out of --transfer-source")
        for model in own:
            self.settings.note(f"{model.name} (seed {model.seed}) is a transfer source: it has no transfer accuracy")
        return tuple(found[key] for key in sorted(found))

    def _controls(self, models: list[PlannedModel]) -> list[PlannedModel]:
        """Return the undefended baseline of another seed, unless the run has one or leaves it out."""
        source, used = self.settings.run.transfer_source, self.settings.run.transfer_seeds
        if not self.settings.run.baseline_control:
            self.settings.note(
                f"the undefended baseline ('{source}' of another seed) is left out for its cost; "
                "--set run.baseline_control=true adds it"
            )
            return []
        seeds = {model.seed for model in models if model.name == source} | {*range(used)}
        return [self.models.training(source, used)] if len(seeds) == used else []

    def _count_examples(self) -> int:
        """Return how many test images are used; note what the user should know about them."""
        request, test = self.request, self.dataset.test
        preset_examples = 0 if request.external else self.settings.run.examples  # `evaluate` takes all
        examples = request.examples or preset_examples or len(test)
        if examples > len(test):
            self.settings.note(f"--examples {examples}: the test split has {len(test)} images; all are used")
        shown, every = len(set(test.labels[:examples].tolist())), len(set(test.labels.tolist()))
        sorted_by_class = every == 1 + int(test.labels.diff().count_nonzero())
        if shown < every and sorted_by_class:
            self.settings.note(
                f"the test images of '{request.dataset}' are sorted by class: the first {examples} show {shown} "
                f"of {every} classes; shuffle them in the file, or take all with --examples {len(test)}"
            )
        return min(examples, len(test))


def prepare(request: ExperimentConfig, *, dry: bool = False) -> tuple[Plan, Dataset]:
    """Resolve a request into a plan, and load its data set.

    Args:
        dry: data that cannot be loaded become a line of `unavailable_data`.

    Raises:
        RequestError: the request is wrong.
    """
    return prepare_all([request], dry=dry)[0]


def prepare_all(requests: Sequence[ExperimentConfig], *, dry: bool = False) -> list[tuple[Plan, Dataset]]:
    """Resolve requests as `prepare` does. Equal data sets are loaded once, and equal settings are checked once."""
    out, datasets, checked = [], dict[tuple[str, ...], Dataset](), set[str]()
    loaded: dict[tuple[Any, ...], Dataset] = {}
    planned = []
    for request in requests:
        planner = Planner(request, dry=dry, loaded=loaded)
        plan = planner.plan()
        for model in plan.training_order():
            if isinstance(model, TrainingJob) and model.config_digest not in checked:
                checked.add(model.config_digest)
                check_stages_on_meta(plan, model)
        dataset = planner.dataset
        extra = dataset.extra.digest if dataset.extra is not None else ""
        out.append((plan, datasets.setdefault((dataset.name, dataset.digest, extra), dataset)))
        planned.append(planner.settings)
    if unused := _unused_settings(planned):
        planned[0].note(f"'{requests[0].study}': no request runs what these settings are for: {', '.join(unused)}")
    return out


def _unused_settings(planned: Sequence[Settings]) -> list[str]:
    """Return the settings NAME.FIELD of an experiment file whose plug-in no request uses."""
    used = {ALL_DEFENSES, *(name for settings in planned for name in settings.used_names)}
    names = {
        f"{name}.{field}": name for settings in planned for name, values in settings.sets.items() for field in values
    }
    return [setting for setting, name in names.items() if name not in used]


def make_plan(request: ExperimentConfig, *, dry: bool = False) -> Plan:
    """Resolve a request into a plan, as `prepare` does."""
    return prepare(request, dry=dry)[0]


def check_stages_on_meta(plan: Plan, job: TrainingJob) -> None:
    """Build the stages of a training once, without tensor values; raises RequestError if its settings are impossible.

    Models of a user's factory are left out, since they may not build without values.
    """
    from robobench.planning.cost import forward_equivalents

    if any(brings_own_normalization(model.spec.name) for model in (job, *job.requires.values())):
        return
    try:
        forward_equivalents(plan, job)
    except RequestError:  # timm cannot build this model without values
        return
    except ValueError as err:
        raise RequestError(f"defense '{job.name}': {err}") from None
    except Exception:  # a plug-in may need values; its error becomes a row's reason
        return
