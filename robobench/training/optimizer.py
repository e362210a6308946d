"""Optimizer and learning rate schedule of a training config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from robobench.models.wrapper import PreprocessedModel
from robobench.training.config import TrainConfig


def make_optimizer(config: TrainConfig) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes the config's optimizer for a module."""

    def adamw(objective: nn.Module) -> torch.optim.Optimizer:
        groups, betas = param_groups(objective, config), (config.momentum, config.adam_beta2)
        return torch.optim.AdamW(groups, config.lr, betas, weight_decay=config.weight_decay, fused=True)

    return adamw if config.optimizer == "adamw" else sgd(config)


def sgd(config: TrainConfig) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes SGD with the config's learning rates, momentum and weight decay for a module."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        groups = param_groups(objective, config)
        decay, nesterov = config.weight_decay, config.nesterov
        return torch.optim.SGD(groups, config.lr, config.momentum, weight_decay=decay, nesterov=nesterov)

    return build


def param_groups(objective: nn.Module, config: TrainConfig) -> list[Any]:
    """Return the trained parameters of an objective, in groups of equal learning rate and weight decay.

    One list of parameters if all have the config's rate and decay. With `layer_decay` d, layer l of L has the rate
    lr * d^(L - l), where the head is layer L, as in Bao et al., "BEiT", ICLR 2022.
    """
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    if config.decay_norms and config.layer_decay == 1 and config.head_lr_factor == 1:
        return list(trained.values())
    model = _find_model(objective)
    net: Any = model.net if isinstance(model, PreprocessedModel) else model
    undecayed = {id(p) for n, p in net.named_parameters() if n in getattr(net, "no_weight_decay", set)()}
    head = {id(p) for p in getattr(model, "head", nn.Identity()).parameters()}
    depths = layer_depths(net, head) if config.layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in trained.values():
        keeps_size = not config.decay_norms and (p.dim() <= 1 or id(p) in undecayed)
        rate = (
            config.lr * config.layer_decay ** depths.get(id(p), 0) * (config.head_lr_factor if id(p) in head else 1.0)
        )
        groups.setdefault((rate, 0.0 if keeps_size else config.weight_decay), []).append(p)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def layer_depths(net: Any, head: set[int]) -> dict[int, int]:
    """Return how many layers lie between each parameter's layer and the output, by `id`; 0 for the head.

    timm's networks name their layers (`group_matcher`). In other networks a layer is a module that is not a Sequential
    or a list, counted in the order of definition; parameters outside of them belong to the first layer.
    """
    if hasattr(net, "group_matcher"):
        from timm.models import group_parameters

        names = dict(net.named_parameters())
        numbers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
        layers = {id(names[name]): number for name, number in numbers.items()}
    else:
        layers = {id(p): 0 for p in net.parameters()}
        layers |= {id(p): number for number, block in enumerate(_blocks(net)) for p in block.parameters()}
    layers = {p: number for p, number in layers.items() if p not in head}
    top = max(layers.values(), default=0) + 1
    return {p: top - number for p, number in layers.items()}


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Iterate over the modules with parameters inside nested containers."""
    for child in module.children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _find_model(objective: nn.Module) -> nn.Module:
    """Return the model inside an objective: the first one of ours, else the first with a linear head, else itself."""
    for part in objective.modules():
        if isinstance(part, PreprocessedModel):
            return part
    found = (part for part in objective.modules() if isinstance(getattr(part, "head", None), nn.Linear))
    return next(found, objective)


def lr_schedule(config: TrainConfig) -> Callable[[float], float]:
    """Return the config's factor on the learning rate as a function of time in epochs."""
    total = max(config.epochs, 1)
    warm = config.warmup * total

    def factor(epoch: float) -> float:
        if epoch < warm:
            return epoch / warm
        match config.schedule:
            case "step":  # changes between epochs, as in published code
                return 0.1 ** sum(int(epoch) >= round(drop * total) for drop in config.drops)
            case "cosine":  # over the time after the warm-up
                return 0.5 * (1 + math.cos(math.pi * min((epoch - warm) / (total - warm), 1.0)))
            case "one-cycle":  # linear to 1 over the first 30 %, then linear to 0
                done = epoch / total
                return done / 0.3 if done < 0.3 else max(0.0, (1 - done) / 0.7)
            case _:
                return 1.0

    return factor
