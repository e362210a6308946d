"""Training settings of all defenses: optimizer, schedule, augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from robobench.core.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training settings of a defense. Its Config extends this class with the method's fields."""

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "step"  # step | cosine | constant | one-cycle
    drops: tuple[float, ...] = (0.5, 0.75)  # times when "step" divides the rate by 10, as fractions of training
    augment: str = "crop-flip"  # crop-flip | flip | none
    eps_rampup: float = 0.0  # fraction of training over which the training radius grows

    def __post_init__(self) -> None:
        self.require("epochs", self.epochs >= 0, ">= 0")
        self.require("batch_size", self.batch_size >= 1, ">= 1")
        self.require("lr", self.lr > 0, "> 0")
        self.require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self.require("weight_decay", self.weight_decay >= 0, ">= 0")
        self.require("drops", all(0 <= drop <= 1 for drop in self.drops), "fractions of training in [0, 1]")
        self.require("eps_rampup", 0 <= self.eps_rampup <= 1, "in [0, 1]")
        self.one_of("schedule", "step", "cosine", "constant", "one-cycle")
        self.one_of("augment", "crop-flip", "flip", "none")

    def require(self, name: str, holds: bool, allowed: str) -> None:
        """Raise ValueError with the field, what is allowed and the value, unless `holds`."""
        if not holds:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")

    def one_of(self, name: str, *allowed: str) -> None:
        """Raise ValueError unless the field has one of the allowed values."""
        self.require(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")

    def threat_at_epoch(self, threat: ThreatModel, epoch: int) -> ThreatModel:
        """Return the training threat of an epoch. Its radius grows linearly over `eps_rampup`."""
        ramp = self.eps_rampup * self.epochs
        return threat if epoch + 1 >= ramp else threat.scaled((epoch + 1) / ramp)


def sgd(config: TrainConfig) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes SGD with the config's learning rate, momentum and weight decay for a module."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in objective.parameters() if p.requires_grad]
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    return build


def lr_schedule(config: TrainConfig) -> Callable[[float], float]:
    """Return the config's factor on the learning rate as a function of time in epochs."""
    total = max(config.epochs, 1)

    def factor(epoch: float) -> float:
        done = epoch / total
        match config.schedule:
            case "step":  # changes between epochs, as in published code
                return 0.1 ** sum(int(epoch) >= round(drop * total) for drop in config.drops)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            case "one-cycle":  # linear to 1 over the first 30 %, then linear to 0
                return done / 0.3 if done < 0.3 else max(0.0, (1 - done) / 0.7)
            case _:
                return 1.0

    return factor
