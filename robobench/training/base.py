"""Base class of defenses, and their stages.

A defense returns a list of stages. Each one computes a loss; the core takes the steps, times, stores and resumes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.core.memory import ON_DEVICE_BYTES
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.training.config import NO_SERVICES, TrainConfig, TrainServices, services_in_use, unused_services
from robobench.training.image_state import ImageState
from robobench.training.optimizer import lr_schedule, make_optimizer

OPTIMIZER_SERVICES = {"optimizer", "nesterov", "adam_beta2", "decay_norms", "layer_decay", "head_lr_factor"}


@dataclass(frozen=True)
class Batch:
    """One batch of training images.

    Attributes:
        images: (B, C, H, W) float in [0, 1].
        labels: (B,) int64.
        index: (B,) int64, positions in the training set.
        epoch: counted from 0.
        rng: random numbers of this batch, keyed per image.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    epoch: int
    rng: KeyedRng


@dataclass(frozen=True)
class Loss:
    """The scalar to back-propagate, and metrics to report (scalars, left on the device).

    A total without a gradient takes no optimizer step: such a stage only changes buffers.
    """

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class FrozenModel:
    """A trained model that is used but never changed: eval mode, no parameter gradients.

    Gradients still flow through it to its input. It is not an nn.Module, so that an objective that holds one does not
    train, checkpoint or copy it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenModel:
        return self


class PrecomputedArray:
    """A stored array with one entry per training image. Indexing by (B,) int64 gives float32 (B, ...).

    A uint8 array holds multiples of 1/255 in [0, 1]. Arrays below 1 GiB are copied to the GPU; larger ones stay
    memory-mapped on disk.
    """

    def __init__(self, array: Any, device: torch.device | str = "cpu") -> None:
        copied = torch.device(device).type != "cpu" and array.nbytes < ON_DEVICE_BYTES
        self.array, self.device = torch.tensor(array, device=device) if copied else array, device

    def __getitem__(self, index: Tensor) -> Tensor:
        if isinstance(self.array, Tensor):
            picked = self.array[index]
        else:
            picked = torch.from_numpy(self.array[index.cpu().numpy()]).to(self.device)
        return picked.float() / 255 if picked.dtype == torch.uint8 else picked

    def __deepcopy__(self, memo: dict[int, Any]) -> PrecomputedArray:
        return self


@dataclass(frozen=True, kw_only=True)
class PassCounts:
    """Passes per training image and epoch, as the method declares them.

    Costs are in forward passes: `input_grad`, a backward pass to the input only, costs about one, `weight_grad`, a
    backward pass to the parameters, about two.
    """

    forward: float = 0
    input_grad: float = 0
    weight_grad: float = 0
    teacher_forward: float = 0
    teacher_input_grad: float = 0

    @property
    def forward_equivalents(self) -> float:
        """Cost of the trained model, in forward passes of it."""
        return self.forward + self.input_grad + 2 * self.weight_grad

    @property
    def teacher_forward_equivalents(self) -> float:
        """Cost of the teachers, in forward passes of them."""
        return self.teacher_forward + self.teacher_input_grad


@dataclass(kw_only=True)
class Train:
    """A stage that optimizes `objective`, an nn.Module whose forward(batch) returns a Loss.

    Attributes:
        objective: the module, or a function that builds it when the stage begins, after earlier stages have run.
        schedule: maps time in epochs (a float) to a factor on the optimizer's learning rates.
        final_metrics: called after the stage with up to 256 training images, not timed. It returns metrics for the
            record and flags for the row.
        on_epoch_end: called after each epoch with that epoch's first batch, timed. It returns metrics to log, and
            whether training ends here. Its state belongs into buffers of `objective`, so that checkpoints include it.
        replays: consecutive steps on every batch, each a step of the schedule.
        whole_batch: the loss of an image depends on the other images of its batch, so that a batch is never split when
            memory runs out.
        image_state: values per training image that the objective reads and writes, one file per epoch.
        config_fields: config fields that the stage's result depends on, earlier stages included; None means all.
            Trainings that differ in other fields only share the result.
        services: what the training loop does beside the steps: weight perturbation, label smoothing and the like.
    """

    name: str
    objective: nn.Module | Callable[[], nn.Module]
    epochs: int
    batch_size: int
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[float], float]
    augment: str = "none"
    passes: PassCounts | None = None
    final_metrics: Callable[[Tensor], tuple[dict[str, float], list[str]]] | None = None
    on_epoch_end: Callable[[Batch], tuple[dict[str, float], bool]] | None = None
    replays: int = 1
    whole_batch: bool = False
    image_state: ImageState | None = None
    config_fields: tuple[str, ...] | None = None
    services: TrainServices = NO_SERVICES


@dataclass(kw_only=True)
class Precompute:
    """A stage that computes and stores one array entry for every training image.

    Attributes:
        function: maps a Batch (not augmented, epoch 0) to a tensor (B, ...), float32 or uint8.
        shape: of one entry, for the cost estimate; None means that of an image.
        config_fields: as in `Train`.
    """

    name: str
    function: Callable[[Batch], Tensor]
    batch_size: int = 128
    passes: PassCounts | None = None
    shape: tuple[int, ...] | None = None
    config_fields: tuple[str, ...] | None = None


Stage = Train | Precompute


@dataclass(kw_only=True)
class DefenseSetup:
    """What a defense is given to build its stages."""

    model: nn.Module  # untrained: (B, C, H, W) in [0, 1] -> (B, K) logits; has `features` and `head` if it can
    threat: ThreatModel  # to train against
    num_classes: int
    image_shape: tuple[int, int, int]  # (C, H, W) of the images in a Batch
    train_size: int
    seed: int = 0
    is_uint8_exact: bool = False  # every training value is a multiple of 1/255
    required_models: Mapping[str, FrozenModel] = field(default_factory=dict)  # by role, as in Defense.requires
    precomputed: dict[str, PrecomputedArray] = field(default_factory=dict)  # by stage name, filled as stages run


def train_stage(
    config: TrainConfig, name: str, objective: nn.Module | Callable[[], nn.Module], **changes: Any
) -> Train:
    """Return a Train stage with the optimizer, schedule and augmentation of a config; `changes` replace its fields.

    The config's services act on the stage. If its result depends on named fields only (`config_fields`), those do.

    Raises:
        ValueError: the stage has its own optimizer, which the config's services would have no effect on; or it repeats
            its steps on a batch, and weights are perturbed.
    """
    named = changes.get("config_fields")
    if named is not None:
        config = replace(config, **{k: v for k, v in unused_services(type(config)).items() if k not in named})
    stage = Train(
        name=name,
        objective=objective,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=make_optimizer(config),
        schedule=lr_schedule(config),
        augment=config.augment,
        services=config,
    )
    stage = replace(stage, **changes)
    ignored = services_in_use(config).keys() & OPTIMIZER_SERVICES if "optimizer" in changes else ()
    if ignored:
        raise ValueError(f"stage '{name}' has its own optimizer, where {min(ignored)} has no effect; leave it out")
    if config.awp_gamma and stage.replays > 1:
        raise ValueError(f"stage '{name}' keeps its perturbation, which awp_gamma would move twice; leave it out")
    return replace(stage, passes=with_services(stage.passes, config))


def with_services(passes: PassCounts | None, config: TrainConfig) -> PassCounts | None:
    """Return the declared passes with those of the services: AWP repeats all but the attack; a frozen net has no Gw."""
    if passes is None or not (config.awp_gamma or config.freeze == "backbone"):
        return passes
    share = 1 - config.awp_warmup if config.awp_gamma else 0.0
    weight_grad = 0.0 if config.freeze == "backbone" else passes.weight_grad
    return PassCounts(
        forward=passes.forward + share * (passes.forward - passes.input_grad),
        input_grad=passes.input_grad,
        weight_grad=weight_grad * (1 + share),
        teacher_forward=passes.teacher_forward + share * (passes.teacher_forward - passes.teacher_input_grad),
        teacher_input_grad=passes.teacher_input_grad,
    )


def check_kept_perturbations(stage: Stage, threat: ThreatModel) -> None:
    """Raise ValueError if a stage keeps perturbations from step to step and its batches draw several norms."""
    keeps = isinstance(stage, Train) and (stage.replays > 1 or stage.image_state is not None)
    if keeps and len(threat.members) > 1:
        raise ValueError(
            f"stage '{stage.name}' keeps its perturbations from step to step, which belong to one norm; train it "
            f"against one of {threat}"
        )


class Defense(ABC):
    """Base class of defenses. A plug-in sets Config and version, returns stages, and registers with DEFENSES."""

    name: ClassVar[str]
    Config: ClassVar[type[TrainConfig]] = TrainConfig
    version: ClassVar[int] = 1  # raise it with every change that moves the method's numbers
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset name -> values of Config fields
    requires: Mapping[str, str] = {}  # role -> defense that must be trained first; __init__ may set it from the config
    adversarial: ClassVar[bool] = True  # False: no adversarial training, so no training radius is recorded
    second_derivatives: ClassVar[bool] = False  # the loss contains a gradient, so that torch.compile is off
    model_attributes: ClassVar[tuple[str, ...]] = ()  # needed of the model beside forward, such as "features", "head"

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def why_unsupported(cls, threat: ThreatModel) -> str | None:
        """Return why this method cannot train against `threat`, or None."""
        return None

    @abstractmethod
    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return the stages in order. The last one trains `setup.model`, which is the result."""

    def visualize(
        self, stage_state: Callable[[str], Mapping[str, Tensor] | None], images: Tensor, seed: int
    ) -> Mapping[str, Tensor]:
        """Return images that show the method on a few test images, for the report. Default: none.

        Args:
            stage_state: maps a stage's name to the final state dict of its objective; None if it was not kept.
            images: (N, C, H, W) in [0, 1], of the size of the training images.
            seed: of the training.

        Returns:
            Rows of images by title, each (N, C, H, W); values outside [0, 1] are clipped.
        """
        return {}
