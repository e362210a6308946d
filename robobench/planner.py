"""From request to plan. Runs nothing; all bad input is refused here, before any folder exists."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from robobench import data as datasets
from robobench import launch, models, plugins, presets
from robobench.api import Attack, Defense
from robobench.errors import PluginError, RequestError
from robobench.outside import external
from robobench.plan import STORE_VERSION, Cell, External, Plan, Training
from robobench.provenance import arithmetic, compiles, resolve_device, resolve_precision
from robobench.registry import unknown
from robobench.request import Request, RunValues, check_executor, make, parse_sets, typed
from robobench.store import Store, check_writable
from robobench.teachers import Teachers
from robobench.threat import ThreatModel, canonical_norm, parse_eps

PROTOCOLS = {"transfer": ("transfer",), "white-box": ("white-box",), "both": ("white-box", "transfer")}
# Per-channel mean and standard deviation of the first layer's normalization.
NORMALIZATION = {
    "digits": ((0.305,) * 3, (0.376,) * 3),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Planner:
    """Resolves one request; keeps what its parts share."""

    def __init__(self, request: Request, *, dry: bool = False) -> None:
        self.request, self.dry = request, dry
        self.notes: list[str] = []
        self.missing: list[str] = []
        self.used_names: set[str] = set()  # plug-ins of this run, which --set may name
        for file in request.plugins:
            plugins.add_file(file)
        datasets.check_name(request.dataset)
        preset = request.preset or presets.default_preset(request.dataset)
        if preset is None:
            raise RequestError(
                f"data set '{request.dataset}' brings no preset; name one with --preset quick, cifar, fast or paper"
            )
        self.preset: str = preset
        self.layers = presets.layers(preset, request.model)
        self.sets = parse_sets(request.sets)
        values = presets.merged(preset, request.model, "run")
        values.update(typed(RunValues, self.sets.pop("run", {}), "run"))
        self.run: RunValues = make(RunValues, values, "run")
        if request.protocol not in PROTOCOLS:
            raise unknown("protocol", request.protocol, PROTOCOLS)
        for name, value in (("examples", request.examples), ("batch-size", request.batch_size)):
            if value is not None and value < 1:
                raise RequestError(f"--{name} must be at least 1, got {value}")
        if request.epochs is not None and request.epochs < 0:
            raise RequestError(f"--epochs must be at least 0, got {request.epochs}")
        if not 0 <= request.checkpoint_every < math.inf:
            raise RequestError(f"--checkpoint-every takes minutes, 0 or more, got {request.checkpoint_every}")
        if request.threads is not None and request.threads < 1:
            raise RequestError(f"--threads must be at least 1, got {request.threads}")
        self.norm = canonical_norm(request.norm)
        self.cells = self._cells()
        self.device = resolve_device(request.device)
        check_executor(request, self.device)
        self.precision = resolve_precision(request.precision, self.device)
        self.devices = launch.devices(request.devices, self.device)
        if self.devices > 1 and dry:
            self._note(f"times and memory are estimated for one device; {self.devices} share every batch")
        share = 1 if launch.outside() else self.devices
        self.threads = request.threads or max(1, torch.get_num_threads() // share)
        if self.run.sync_batchnorm and self.device == "cpu":
            raise RequestError("run.sync_batchnorm=true works on GPUs only; leave it out, or choose --device cuda")
        models.check_name(request.model)
        self.defenses = {name: plugins.load_defense(name) for name in request.defenses}
        check_writable(request.out)
        self.dataset = self._dataset(dry)
        for cell in self.cells:
            cell.attack.num_classes = self.dataset.num_classes
            for warning in cell.attack.warnings():
                self._note(warning)
        if request.defenses and not self.missing:
            if self.train_images < 1:
                raise RequestError(
                    f"run.held_out={self.run.held_out} leaves nothing to train on: the training split has "
                    f"{len(self.dataset.train)} images; hold out fewer, or none with --set run.held_out=0"
                )
            datasets.require_classes(self.dataset.train.first(self.train_images), 2)
        self._made: dict[tuple[str, int], Training] = {}
        self.teachers = Teachers(request.teachers)
        self._stranger: Any = None  # a network that is not ours, built to look at it
        self._normalizes: bool | None = None  # whether the network has BatchNorm, once that was asked
        self.train_threat = self._train_threat()

    def _dataset(self, dry: bool) -> Any:
        need_train = bool(self.request.defenses)
        try:
            return datasets.load(
                self.request.dataset,
                data_dir=self.request.data_dir,
                resolution=self.run.attack_resolution,
                need_train=need_train,
                device=self.device,
                download=not dry,
            )
        except RequestError as err:
            blank = datasets.blank(self.request.dataset, self.run.attack_resolution) if dry else None
            if blank is None:
                raise
            self.missing.append(str(err))
            return blank

    def _radii(self) -> dict[str, tuple[str, ...]]:
        """Read --eps: plain radii belong to --norm, 'L2:0.5,1.0' to the norm named."""
        out: dict[str, tuple[str, ...]] = {}
        for text in self.request.eps:
            head, colon, rest = text.partition(":")
            norm = canonical_norm(head) if colon else self.norm
            parts = tuple(part.strip() for part in (rest if colon else text).split(",") if part.strip())
            if not parts:
                raise RequestError(f"--eps '{text}' names no radius; write 8/255,16/255 or L2:0.5,1.0")
            out[norm] = out.get(norm, ()) + parts
        return out

    def _eps_of(self, norm: str, given: dict[str, tuple[str, ...]]) -> list[float]:
        if norm in given:
            texts: tuple[Any, ...] = given[norm]
        elif norm == "L2" and self.run.l2_eps:
            texts = self.run.l2_eps
            self._note(
                "the paper preset gives attacks on L2 the paper's own 8/255 and 16/255; in L2 these are almost "
                "nothing (a full Linf 8/255 step is 12.2 long at 224 px), so do not compare them with other tables"
            )
        else:
            texts = datasets.radii(self.request.dataset, norm)[0]
        radii = [parse_eps(text, norm) for text in texts]
        if 0 in radii:
            raise RequestError("eps 0 leaves nothing to attack; clean accuracy is always reported: leave it out")
        return list(dict.fromkeys(radii))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _cells(self) -> list[Cell]:
        given = self._radii()
        named = self.request.attacks is not None
        names = self.request.attacks if self.request.attacks is not None else self.run.attacks
        used, cells = set(), []
        for name in dict.fromkeys(names):
            cls, values = plugins.attack_and_values(name)
            norm = cls.own_norm or self.norm
            refusal = cls.refuses(ThreatModel(norm, 0.1))
            if refusal:
                if named:
                    raise RequestError(f"{refusal}; leave '{name}' out or choose another --norm")
                self._note(f"{refusal}; left out of the default attacks")
                continue
            used.add(norm)
            config = self._config(cls, cls.name, values)
            for eps in self._eps_of(norm, given):
                attack = cls(config, ThreatModel(norm, eps))
                cells.append(Cell(attack, PROTOCOLS[self.request.protocol]))
        for norm in given:
            if norm not in used and used:
                raise RequestError(f"--eps gives radii for {norm}, and no attack of this run is on {norm}")
        return cells

    def gradient_free(self) -> list[Attack]:
        """Return every registered attack that needs no gradient and can be imported, at the radii of this run."""
        out: list[Attack] = []
        for name in sorted(plugins.found("attack")):
            try:
                cls = plugins.load_attack(name)
            except PluginError:
                continue
            for threat in dict.fromkeys(cell.threat for cell in self.cells):
                fits = cls.refuses(threat) is None and cls.own_norm in (None, threat.norm)
                if cls.gradient_free and cls.argument is None and fits:
                    out.append(cls(self._config(cls, name, {}), threat))
        taken = {(cell.attack.name, cell.threat) for cell in self.cells}
        return [attack for attack in out if (attack.name, attack.threat) not in taken]

    def _config(self, cls: Any, name: str, base: Mapping[str, Any]) -> Any:
        """Lay base values, the plug-in's own preset and --set over a Config's defaults."""
        values = dict(base)
        for layer in self.layers:
            values.update(cls.presets.get(layer, {}))
        if issubclass(cls, Defense):
            asked = {"epochs": self.request.epochs, "batch_size": self.request.batch_size}
            values.update({k: v for k, v in asked.items() if v is not None})
        values.update(typed(cls.Config, self.sets.get(name, {}), name))
        self.used_names.add(name)
        return make(cls.Config, values, name)

    def _train_threat(self) -> ThreatModel:
        norm = canonical_norm(self.request.train_norm or self.norm)
        _, radius = datasets.radii(self.request.dataset, norm)
        eps = parse_eps(self.request.train_eps or radius, norm)
        if eps == 0:
            raise RequestError("--train-eps 0 trains against nothing; use --defense standard for that")
        return ThreatModel(norm, eps)

    def spec(self, seed: int, name: str | None = None) -> models.ModelSpec:
        """Return the network of this run, or of another name, as initialized from a seed."""
        run, name = self.run, name or self.request.model
        stats = "imagenet" if run.pretrained else self.request.dataset
        mean, std = NORMALIZATION.get(stats, NORMALIZATION["imagenet"])
        if models.normalizes(name):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return models.ModelSpec(
            name=name,
            num_classes=self.dataset.num_classes,
            image_size=run.image_size,
            stem=run.stem,
            interpolation=run.interpolation,
            mean=mean,
            std=std,
            pretrained=run.pretrained,
            seed=seed,
        )

    def training(self, name: str, seed: int, below: tuple[str, ...] = ()) -> Training:
        """Return a defense's training with everything it requires; raises RequestError on a cycle."""
        if name in below:
            raise RequestError(f"defense '{name}' requires itself through {' -> '.join((*below, name))}")
        if (name, seed) in self._made:
            return self._made[name, seed]
        cls = plugins.load_defense(name)
        config = self._config(cls, name, presets.merged(self.preset, self.request.model, "recipe"))
        spec = self.spec(seed)
        models.check_pretrained(spec)
        lacking = self._lacking(spec, cls.protocol)
        if lacking:
            raise RequestError(
                f"defense '{name}' needs {' and '.join(lacking)} of the model, and '{spec.name}' has none; "
                "add them (features(images) -> (B, D), and the last nn.Linear as head) or choose another model"
            )
        requires = {
            role: self.teacher(role, name) if role in self.teachers else self.training(other, seed, (*below, name))
            for role, other in cls(config).requires.items()
        }
        threat = self.train_threat if cls.adversarial else None
        seen = config.epochs * self.train_images
        recipe = {
            "defense": name,
            "version": cls.version,
            "code": plugins.digest(cls),
            "config": asdict(config),
            "model": spec.recipe(),
            "data": self.dataset.digest,
            "train_images": self.train_images,
            "held_out": self.run.held_out,
            "resolution": self.run.attack_resolution,
            "threat": asdict(threat) if threat else None,
            "seed": seed,
            "precision": self.precision,
            "device": torch.device(self.device).type,
            "threads": self.threads,
            "torch": torch.__version__,
            "store": STORE_VERSION,
            **arithmetic(self.device),
            "requires": {role: other.key for role, other in requires.items()},
            **({"compiled": True} if compiles(self.request.compile, self.device, seen) else {}),
            **self._split(spec),
        }
        made = Training(cls, config, seed, spec, threat, requires, recipe, self.request.dataset)
        self._made[name, seed] = made
        return made

    def _split(self, spec: models.ModelSpec) -> dict[str, int]:
        """Return the number of devices where weights depend on it beyond rounding: BatchNorm sees shares."""
        if self.devices == 1 or self.run.sync_batchnorm:
            return {}
        if self._normalizes is None:
            network = models.build(replace(spec, pretrained=False))
            self._normalizes = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())
        return {"devices": self.devices} if self._normalizes else {}

    def teacher(self, role: str, student: str) -> Training:
        """Return the network that --teacher names for a role, tried on two images; raises RequestError."""
        given = self.teachers.use(role)
        if given.spec is None:
            made = self.external(given.model or self.request.model, given.weights, teacher=True)
        else:
            given.refuse_other_images(self.dataset.num_classes, self.run.attack_resolution)
            made = self.external(given.spec.name, given.weights, given.spec, teacher=True)
        own = Store(self.request.out).trained(student, made.recipe["external"])
        if own is not None:
            raise RequestError(
                f"--teacher {role}: '{given.weights}' is a network that '{student}' itself trained ({own.name}); "
                f"give weights of another defense, or leave the flag out to train the teacher"
            )
        return made

    def _lacking(self, spec: models.ModelSpec, protocol: tuple[str, ...]) -> list[str]:
        """Return what a defense needs of a network that it has not; our own have everything.

        A stranger's network is built once here, so that one that cannot be, or whose features and head do not give its
        logits, is refused before anything exists.
        """
        if spec.name in models.MODELS and ":" not in spec.name:
            return []
        if self._stranger is None:
            self._stranger = models.build(replace(spec, pretrained=False)).to(self.device)
        lacking = models.missing_protocol(self._stranger, protocol)
        if models.normalizes(spec.name) and {"features", "head"} <= {*protocol} and not lacking:  # timm's are cut by us
            images = self.dataset.test.images(torch.arange(min(2, len(self.dataset.test))))
            models.check_protocol(self._stranger, spec.name, images.to(self.device))
        return lacking

    def external(
        self,
        name: str,
        weights: Path | None,
        spec: models.ModelSpec | None = None,
        *,
        beside: bool = False,
        teacher: bool = False,
    ) -> Training:
        """Return a network that came from elsewhere, as `outside.external`; by default one like the run's.

        Args:
            beside: a source, which --mean and --std are not about.
            teacher: beside, and with the classes of the data set.
        """
        return external(
            spec or self.spec(0, name),
            name,
            weights,
            replace(self.request, mean=None, std=None) if beside or teacher else self.request,
            self.dataset,
            device=self.device,
            resolution=self.run.attack_resolution,
            outputs=self.dataset.num_classes if teacher else None,
            note=self._note,
        )

    @property
    def train_images(self) -> int:
        """How many training images are used, from the first on."""
        have = len(self.dataset.train) - self.run.held_out if self.dataset.train is not None else 0
        return min(self.run.train_images or have, have)

    def _note_missing_classes(self, labels: torch.Tensor, examples: int) -> None:
        """Say that the first test images of a file written class by class show some classes only."""
        shown, every = len(set(labels[:examples].tolist())), len(set(labels.tolist()))
        if shown < every == 1 + int(labels.diff().count_nonzero()):
            self._note(
                f"the test images of '{self.request.dataset}' stand class by class: the first {examples} show {shown} "
                f"of {every} classes; shuffle them in the file, or take all with --examples {len(labels)}"
            )

    def plan(self) -> Plan:
        """Return the whole plan; raises RequestError for anything that cannot be done."""
        request = self.request
        trainings = [self.training(name, seed) for name in request.defenses for seed in request.seeds]
        self.teachers.check_used({role for t in trainings for role in t.requires})
        selections = ("last", "best") if self.run.selection == "both" else (self.run.selection,)
        trainings = [replace(t, selection=chosen) for t in trainings for chosen in selections]
        if request.external:
            trainings = [self.external(request.model, request.weights)]
        transfer = request.protocol != "white-box" and bool(self.cells) and bool(trainings)
        source, controls = None, []
        if transfer and request.source:
            name, _, file = request.source.partition("=")
            source = self.external(name, Path(file) if file else None, beside=True)
        elif transfer:
            source = self.training(self.run.source, 0)
        if transfer and self.run.control and not request.external:
            taken = {t.seed for t in trainings if t.name == self.run.source} | {0}
            if len(taken) == 1:
                controls = [self.training(self.run.source, 1)]
        elif transfer and not request.external:
            self._note(
                f"the control row ('{self.run.source}' of another seed) is left out for its cost; "
                "--set run.control=true adds it"
            )
        for name in self.sets:
            if name not in self.used_names:
                raise unknown("name in --set", name, self.used_names | {"run"})
        if self.run.selection != "last" and any(t.config.epochs == 0 for t in trainings):
            raise RequestError("run.selection=best has nothing to choose from in 0 epochs; give --epochs 1 or more")
        preset_examples = 0 if request.external else self.run.examples  # `evaluate` takes all
        fresh = self.run.pretrained and not request.external  # what `evaluate` looks at is trained
        if self.dry and fresh and not models.pretrained_at_hand(self.spec(0)):
            self.missing.append(
                f"pretrained weights of '{request.model}' are not in the Hugging Face cache; a network at hand fetches "
                "them, --set run.pretrained=false starts from random weights instead"
            )
        examples = request.examples or preset_examples or len(self.dataset.test)
        if examples > len(self.dataset.test):
            self._note(f"--examples {examples}: the test split has {len(self.dataset.test)} images; all are used")
        self._note_missing_classes(self.dataset.test.labels, examples)
        return Plan(
            preset=self.preset,
            run=self.run,
            dataset=self.dataset,
            trainings=trainings,
            controls=controls,
            source=source,
            cells=self.cells,
            train_images=self.train_images,
            examples=min(examples, len(self.dataset.test)),
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            devices=self.devices,
            out=request.out,
            checkpoint_every=request.checkpoint_every,
            fresh=request.fresh,
            notes=self.notes,
            missing=self.missing,
        )


def make_plan(request: Request, *, dry: bool = False) -> Plan:
    """Resolve a request into a plan; with `dry`, missing data become a line of `missing`."""
    plan = Planner(request, dry=dry).plan()
    for training in plan.order():
        refuse_impossible(plan, training)
    return plan


def refuse_impossible(plan: Plan, training: Training) -> None:
    """Build the stages of a training once, without values; raises RequestError where its settings allow none.

    Networks of a user's own factory are left out: theirs may not build without values.
    """
    from robobench.estimate import forwards

    networks = [training, *training.requires.values()]
    if training.defense is External or any(models.normalizes(t.spec.name) for t in networks):
        return
    try:
        forwards(plan, training)
    except RequestError:  # timm cannot build this network without values
        return
    except ValueError as err:
        raise RequestError(f"defense '{training.name}': {err}") from None
    except Exception:  # a stranger's method may need values; what is wrong with it stands in its row
        return
