"""Training settings of all defenses: optimizer, schedule, augmentation, and the services of the training loop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from robobench.core.threat import ThreatModel
from robobench.data.augment import parse_augmentation


@dataclass(frozen=True, kw_only=True)
class TrainServices:
    """What the training loop can do for any defense. The defaults switch every service off.

    A field at its default is left out of the keys of trainings, so that a new service does not retrain any model.
    """

    optimizer: str = "sgd"  # sgd | adamw (momentum is then beta1)
    nesterov: bool = False  # of sgd
    adam_beta2: float = 0.999  # of adamw
    clip_grad: float = 0.0  # largest norm of the gradient; 0: no clipping
    decay_norms: bool = True  # False: no weight decay on biases and one-dimensional parameters
    layer_decay: float = 1.0  # factor on the learning rate from a layer to the one below it
    head_lr_factor: float = 1.0  # learning rate of the head, as a multiple of lr
    warmup: float = 0.0  # linear warm-up of the learning rate, as a fraction of training
    label_smoothing: float = 0.0  # s: cross-entropy's target is 1 - s + s / K for the label, s / K for other classes
    smooth_attack: bool = False  # smooth the labels in the attack's loss too
    mixup: float = 0.0  # alpha of MixUp's Beta(alpha, alpha); 0: off. With cutmix too, each image gets one of them
    cutmix: float = 0.0  # alpha of CutMix's Beta(alpha, alpha); 0: off
    awp_gamma: float = 0.0  # adversarial weight perturbation: its size, as a fraction of each tensor's norm; 0: off
    awp_warmup: float = 0.0  # fraction of training before the weights are perturbed
    average: str = "none"  # of the weights: none | ema (after every step) | swa (after every epoch, equal weights)
    average_decay: float = 0.995  # of ema, per 128 training images: a step with B images keeps average_decay^(B / 128)
    average_start: float = 0.025  # fraction of training before averaging begins
    average_batchnorm: str = "copy"  # statistics of the average: copy (of the live model) | average | recompute
    freeze: str = "none"  # none | backbone: train the head only

    def __post_init__(self) -> None:
        self.one_of("optimizer", "sgd", "adamw")
        self.require("nesterov", not self.nesterov or self.optimizer == "sgd", "false with optimizer adamw")
        self.require("adam_beta2", 0 <= self.adam_beta2 < 1, "in [0, 1)")
        for name in ("clip_grad", "mixup", "cutmix", "awp_gamma"):
            self.require(name, getattr(self, name) >= 0, ">= 0")
        self.require("layer_decay", 0 < self.layer_decay <= 1, "in (0, 1]")
        self.require("head_lr_factor", self.head_lr_factor > 0, "> 0")
        for name in ("warmup", "label_smoothing", "awp_warmup", "average_start"):
            self.require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self.require("average_decay", 0 < self.average_decay < 1, "between 0 and 1")
        self.one_of("average", "none", "ema", "swa")
        self.one_of("average_batchnorm", "copy", "average", "recompute")
        self.one_of("freeze", "none", "backbone")

    def require(self, name: str, holds: bool, allowed: str) -> None:
        """Raise ValueError with the field, what is allowed and the value, unless `holds`."""
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")

    def one_of(self, name: str, *allowed: str) -> None:
        """Raise ValueError unless the field has one of the allowed values."""
        self.require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")


NO_SERVICES = TrainServices()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainServices):
    """Training settings of a defense. Its Config extends this class with the method's fields."""

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"  # step | cosine | constant | one-cycle
    drops: tuple[float, ...] = (0.5, 0.75)  # times when "step" divides the rate by 10, as fractions of training
    augment: str = "crop-flip"  # crop-flip | crop | flip | none, then +randaugment, +trivialaugment, +erasing ...
    eps_rampup: float = 0.0  # fraction of training over which the training radius grows

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("epochs", self.epochs >= 0, ">= 0")
        self.require("batch_size", self.batch_size >= 1, ">= 1")
        self.require("lr", self.lr > 0, "> 0")
        self.require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self.require("weight_decay", self.weight_decay >= 0, ">= 0")
        self.require("drops", all(0 <= drop <= 1 for drop in self.drops), "fractions of training in [0, 1]")
        self.require("eps_rampup", 0 <= self.eps_rampup <= 1, "in [0, 1]")
        self.one_of("schedule", "step", "cosine", "constant", "one-cycle")
        self.require("warmup", not self.warmup or self.schedule != "one-cycle", "0 with schedule one-cycle")
        parse_augmentation(self.augment)

    def threat_at_epoch(self, threat: ThreatModel, epoch: int) -> ThreatModel:
        """Return the training threat of an epoch. Its radius grows linearly over `eps_rampup`."""
        ramp = self.eps_rampup * self.epochs
        return threat if epoch + 1 >= ramp else threat.scaled((epoch + 1) / ramp)


def services_in_use(config: TrainServices) -> dict[str, Any]:
    """Return the service fields that differ from their defaults."""
    return {f.name: v for f in fields(TrainServices) if (v := getattr(config, f.name)) != f.default}


def unused_services(cls: type) -> dict[str, Any]:
    """Return the default of every service field of a config class, as the value of what a record leaves out."""
    return {f.name: f.default for f in fields(TrainServices)} if issubclass(cls, TrainServices) else {}


def recorded_values(config: TrainConfig) -> dict[str, Any]:
    """Return a config as plain values for keys and config.json, without services at their defaults."""
    used, services = services_in_use(config), {f.name for f in fields(TrainServices)}
    return {name: value for name, value in asdict(config).items() if name in used or name not in services}
