"""What a defense and an attack are. A plug-in subclasses these, registers by name, and the core does the rest.

A defense is a list of stages: the method computes, the core steps. An attack returns images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.data import ON_DEVICE_BYTES
from robobench.losses import errs
from robobench.randomness import Noise
from robobench.registry import Registry
from robobench.search import Found, State, in_halves, search
from robobench.threat import ThreatModel

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "Attack",
    "Batch",
    "Defense",
    "Frozen",
    "IterativeAttack",
    "Loss",
    "Passes",
    "Produce",
    "Produced",
    "Recipe",
    "Setup",
    "Stage",
    "State",
    "Train",
]


# --- what a method computes on ------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One batch: images (B, C, H, W) float in [0, 1], labels (B,) int64, index (B,) int64 into the training
    set, the epoch counted from 0, and the generator of this batch's draws (keyed per image)."""

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    noise: Noise


@dataclass(frozen=True)
class Loss:
    """The scalar to back-propagate and the parts to report (scalars, left on the device).

    A total without a gradient takes no optimizer step: such a stage only moves buffers.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Frozen:
    """A finished network that is used and never changed: eval mode, no parameter gradients.

    Not an nn.Module, so that an objective that holds one does not train, checkpoint or copy it.
    Gradients still flow through it to its input.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


class Produced:
    """A stored array aligned with the training set; indexing by (B,) int64 gives float32 (B, ...).

    uint8 storage is on the 1/255 grid of [0, 1]. A GPU holds what a split of that size would be held as; all else stays
    where it is, on disk as a rule, and is read from there.
    """

    def __init__(self, array: Any, device: torch.device | str = "cpu") -> None:
        held = torch.device(device).type != "cpu" and array.nbytes < ON_DEVICE_BYTES
        self.array, self.device = torch.tensor(array, device=device) if held else array, device

    def __getitem__(self, index: Tensor) -> Tensor:
        if isinstance(self.array, Tensor):
            picked = self.array[index]
        else:
            picked = torch.from_numpy(self.array[index.cpu().numpy()]).to(self.device)
        return picked.float() / 255 if picked.dtype == torch.uint8 else picked

    def __deepcopy__(self, memo: dict[int, Any]) -> Produced:
        return self


# --- stages -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a defense is optimized; every defense's Config extends it with the method's own fields."""

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"  # step | cosine | constant | one-cycle
    drops: tuple[float, ...] = (0.5, 0.75)  # where "step" divides by 10, as fractions of training
    augment: str = "crop-flip"  # crop-flip | flip | none
    eps_warmup: float = 0.0  # fraction of training over which the training radius grows

    def __post_init__(self) -> None:
        self.require("epochs", self.epochs >= 0, ">= 0")
        self.require("batch_size", self.batch_size >= 1, ">= 1")
        self.require("lr", self.lr > 0, "> 0")
        self.require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self.require("weight_decay", self.weight_decay >= 0, ">= 0")
        self.require("drops", all(0 <= drop <= 1 for drop in self.drops), "fractions of training in [0, 1]")
        self.require("eps_warmup", 0 <= self.eps_warmup <= 1, "in [0, 1]")
        self.one_of("schedule", "step", "cosine", "constant", "one-cycle")
        self.one_of("augment", "crop-flip", "flip", "none")

    def require(self, name: str, holds: bool, allowed: str) -> None:
        """Raise ValueError with the field, what is allowed and what came, unless `holds`."""
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")

    def one_of(self, name: str, *allowed: str) -> None:
        """Raise ValueError unless the field is one of the allowed words."""
        self.require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")

    def threat_at(self, threat: ThreatModel, epoch: int) -> ThreatModel:
        """Return the training threat of an epoch: its radius grows linearly over `eps_warmup`."""
        warm = self.eps_warmup * self.epochs
        return threat if epoch + 1 >= warm else threat.scaled((epoch + 1) / warm)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Network passes per training image and epoch, as the method declares them (one unit = one forward).

    `input_grad` is a backward to the input only (about one forward), `weight_grad` one to the
    parameters (about two).
    """

    forward: float = 0
    input_grad: float = 0
    weight_grad: float = 0
    teacher_forward: float = 0
    teacher_input_grad: float = 0

    @property
    def student_units(self) -> float:
        """Cost of the trained network in forwards of it."""
        return self.forward + self.input_grad + 2 * self.weight_grad

    @property
    def teacher_units(self) -> float:
        """Cost of the teachers in forwards of them."""
        return self.teacher_forward + self.teacher_input_grad


@dataclass(kw_only=True)
class Train:
    """A stage that optimizes `objective`: an nn.Module whose forward(batch) returns a Loss.

    `objective` may be a function that builds it when the stage begins, so that it sees what earlier
    stages made. `schedule` maps training time in epochs (a float) to a factor on the optimizer's rates.
    `measure` looks at up to 256 training images after the stage, outside the clock, and returns figures
    for the record and flags for the row. `whole_batch` says that an image's loss depends on the others in its
    batch, so that a batch is never cut where memory runs out. `fields` names the config's fields that this stage
    and what it builds on depend on (None: all), so that trainings which differ in others share it. `watch` is given
    each epoch's first batch once more when the epoch is over, inside the clock, and returns figures for the log and
    whether the stage ends there; what it remembers belongs in buffers of `objective`.
    """

    name: str
    objective: nn.Module | Callable[[], nn.Module]
    epochs: int
    batch_size: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[float], float]
    augment: str = "none"
    passes: Passes | None = None
    measure: Callable[[Tensor], tuple[dict[str, float], list[str]]] | None = None
    watch: Callable[[Batch], tuple[dict[str, float], bool]] | None = None
    whole_batch: bool = False
    fields: tuple[str, ...] | None = None


@dataclass(kw_only=True)
class Produce:
    """A stage that computes one array entry for every training image, once, and stores it.

    `function` maps a Batch (no augmentation, epoch 0) to a (B, ...) tensor, float32 or uint8. `fields` as in
    Train.
    """

    name: str
    function: Callable[[Batch], Tensor]
    batch_size: int = 128
    passes: Passes | None = None
    fields: tuple[str, ...] | None = None


Stage = Train | Produce


@dataclass(kw_only=True)
class Setup:
    """What the runner hands a defense: the fresh network, the threat to train against, and the rest."""

    model: nn.Module  # (B, C, H, W) in [0, 1] -> (B, K) logits; `features` and `head` where it has them
    threat: ThreatModel
    config: Any  # the defense's own Config, a Recipe
    num_classes: int
    image_shape: tuple[int, int, int]  # of the images that come in a Batch
    train_size: int
    seed: int = 0
    on_grid: bool = False  # every training value is a multiple of 1/255
    required: Mapping[str, Frozen] = field(default_factory=dict)  # role -> trained network
    produced: dict[str, Produced] = field(default_factory=dict)  # filled by Produce stages

    def train(self, name: str, objective: nn.Module | Callable[[], nn.Module], **changes: Any) -> Train:
        """Build a Train stage from the config's recipe; keyword arguments replace Train's fields."""
        recipe: Recipe = self.config
        stage = Train(
            name=name,
            objective=objective,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            optimizer=sgd(recipe),
            schedule=lr_schedule(recipe),
            augment=recipe.augment,
        )
        return replace(stage, **changes)


def sgd(recipe: Recipe) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the factory of SGD with the recipe's rate, momentum and weight decay."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in objective.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

    return build


def lr_schedule(recipe: Recipe) -> Callable[[float], float]:
    """Return the recipe's factor on the learning rate, a function of time in epochs."""
    total = max(recipe.epochs, 1)

    def factor(epoch: float) -> float:
        done = epoch / total
        match recipe.schedule:
            case "step":  # at whole epochs, as the published recipes
                return 0.1 ** sum(int(epoch) >= round(drop * total) for drop in recipe.drops)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case "one-cycle":  # up over the first 30 %, then down to zero
                return done / 0.3 if done < 0.3 else max(0.0, (1 - done) / 0.7)
            case _:
                return 1.0

    return factor


# --- plug-ins -----------------------------------------------------------------------------------


class Defense(ABC):
    """A way of training. Subclass, give Config and version, return stages, register with DEFENSES."""

    name: ClassVar[str]
    Config: ClassVar[type[Recipe]] = Recipe
    version: ClassVar[int] = 1  # raised by any change that moves this method's numbers
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset name -> values of Config fields
    requires: Mapping[str, str] = {}  # role -> defense whose result is needed; may be set in __init__ by the config
    adversarial: ClassVar[bool] = True  # False: trains against nothing, so no training radius is recorded
    protocol: ClassVar[tuple[str, ...]] = ()  # of the model beyond forward, e.g. ("features", "head")

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def refuses(cls, threat: ThreatModel) -> str | None:
        """Say why this method cannot train against `threat`, or None."""
        return None

    @abstractmethod
    def stages(self, setup: Setup) -> list[Stage]:
        """Return the stages, in order; the last one leaves the trained network in `setup.model`."""

    def pictures(
        self, left: Callable[[str], Mapping[str, Tensor] | None], images: Tensor, seed: int
    ) -> Mapping[str, Tensor]:
        """Show what the method makes of a few test images, for the report. By default: nothing.

        Args:
            left: what a stage of this training left (a state dict), by the stage's name; None where it is gone.
            images: (N, C, H, W) in [0, 1], of the size of the training images.
            seed: of the training.

        Returns:
            Rows of pictures by name, each (N, C, H, W); what lies outside [0, 1] is cut off.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """The config of an attack that has nothing to set."""


class Attack(ABC):
    """A search for misclassified images inside a threat model."""

    name: ClassVar[str]
    Config: ClassVar[type] = NoConfig
    version: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")
    own_norm: ClassVar[str | None] = None  # set where the name itself says the norm
    stop: ClassVar[str] = "library"  # white-box stopping rule, for the row
    library: ClassVar[str | None] = None  # the package that does the work; its version is part of a result's key
    uses: ClassVar[tuple[str, ...]] = ()  # attacks this one is made of; a change of theirs changes its results
    argument: ClassVar[str | None] = None  # the Config field that the text after a colon sets, as in NAME:TEXT
    rounds: ClassVar[bool] = False  # its search may be in bfloat16: it follows gradients and compares no losses
    compiles: ClassVar[bool] = False  # its steps may see the network compiled: they take one gradient of a forward
    gradient_free: bool = False  # looks at the model's outputs only; may be set in __init__ by the config
    num_classes: int | None = None  # of the data or the last network met: budget and cost may depend on it

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        self.config, self.threat = config, threat

    @classmethod
    def refuses(cls, threat: ThreatModel) -> str | None:
        """Say why this attack cannot serve `threat`, or None."""
        if threat.norm in cls.norms:
            return None
        return f"attack '{cls.name}' has no {threat.norm} form; it has {', '.join(cls.norms)}"

    @property
    def budget(self) -> str:
        """Say in a few words how hard the attack tries, for the row and the table.

        It begins with "reduced" where a whole number, such as steps or restarts, is below the Config's default.
        """
        values = [(f, getattr(self.config, f.name)) for f in fields(self.config)]
        less = any(type(v) is int and type(f.default) is int and v < f.default for f, v in values)
        text = ", ".join(f"{f.name}={value}" for f, value in values) or "fixed"
        return f"reduced: {text}" if less else text

    @property
    def steps(self) -> int | None:
        """Gradient steps of one run; 1 means a single-step attack, None that there is no such number."""
        return getattr(self.config, "steps", None)

    @property
    def parts(self) -> tuple[Attack, ...]:
        """Members of an ensemble, each an attack of its own, in order; empty where there are none."""
        return ()

    @property
    def relative_step(self) -> float | None:
        """Step length as a fraction of eps, where the attack has one."""
        return getattr(self.config, "relative_step", None)

    @property
    def cost(self) -> float | None:
        """Forward-equivalents on an image that withstands everything; None where nobody knows."""
        return None

    def warnings(self) -> list[str]:
        """Say what about this config weakens the attack; shown once a run."""
        steps, step = getattr(self.config, "steps", None), self.relative_step
        if steps and step and steps > 1 and steps * step < (way := self._way()) - 1e-9:  # ten tenths are one
            return [
                f"attack '{self.name}': {steps} steps of {step:g} eps reach {steps * step:g} eps in all; "
                f"below {way} eps an image may be out of reach"
            ]
        return []

    def _way(self) -> int:
        """Return how many eps an image may lie from the start: across the ball from a random one."""
        return 2

    @abstractmethod
    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Return (B, C, H, W) images inside the threat model, meant to be misclassified.

        The model comes in eval mode without parameter gradients, and leaves with weights, buffers and
        mode untouched. All randomness comes from `noise`.
        """

    def find(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Found:
        """Attack for verdicts: return images and which of them the model gets wrong."""
        adv = self.perturb(model, images, labels, noise).detach()
        with torch.no_grad():
            return Found(adv, errs(torch.cat(in_halves(f"attack '{self.name}'", model, adv)), labels))


class IterativeAttack(Attack):
    """An attack as a start and a step; the core owns stopping, restarts and compaction.

    `prepare` and `finish` may be left as they are. An attack whose iterates leave the ball on their way sets
    `wanders`: only iterates inside count, and its `finish` must return images inside.
    """

    stop = "first"
    wanders: ClassVar[bool] = False

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.config.steps)

    @property
    def restarts(self) -> int:
        """Number of starts; each gets the full number of steps."""
        return int(getattr(self.config, "restarts", 1))

    @property
    def cost(self) -> float | None:
        """A forward and a backward to the input each step, and a last look after each restart."""
        return self.restarts * (2.0 * self.steps + 1)

    def _way(self) -> int:
        images, label = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.long)
        try:
            begun = self.start(images, label, Noise.of(label, "way"))
        except Exception:  # a start may need `prepare`, and that a model
            return 2
        return 1 if torch.equal(begun.adv, images) else 2

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Look at the model once, before the first start; raise RequestError where the attack cannot serve it."""

    @abstractmethod
    def start(self, images: Tensor, labels: Tensor, noise: Noise) -> State:
        """Return the state before the first step; `state.adv` lies in the threat model."""

    @abstractmethod
    def step(self, model: nn.Module, state: State) -> tuple[State, Tensor]:
        """Take one step; return the new state and the logits (B, K) at the *old* `state.adv`."""

    def finish(self, state: State, logits: Tensor) -> Tensor:
        """Return the result of a full budget, (B, C, H, W), given the logits (B, K) at `state.adv`."""
        return state.adv

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Tensor:
        """Spend the full budget on every image and return the results (stop="never")."""
        return search(self, model, images, labels, noise, stop="never").adv

    def find(self, model: nn.Module, images: Tensor, labels: Tensor, noise: Noise) -> Found:
        """Let each image leave at its first success (stop="first")."""
        return search(self, model, images, labels, noise, stop="first")


DEFENSES: Registry[Defense] = Registry("defense")
ATTACKS: Registry[Attack] = Registry("attack")
