"""Adversarial weight perturbation (AWP): the gradient of a loss at weights that were moved to increase it.

Paper:   Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020, arXiv:2004.05884.
Code:    github.com/csdongxian/AWP (trades_AWP, AT_AWP).
Differs: weight decay acts on the weights themselves; the code's optimizer steps from the perturbed weights, so that it
         acts on them. In the code, all tensors named "weight" with more than one dimension are perturbed; here all
         trained tensors with more than one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robobench.distributed import collectives
from robobench.training.base import Batch, Loss
from robobench.training.context import TrainRuntime
from robobench.training.inner_maximization import RecordedAttacks

TINY = 1e-20  # as in the code


def perturbed_weights(
    runtime: TrainRuntime,
    objective: nn.Module,
    pieces: Sequence[tuple[Batch, RecordedAttacks]],
    gamma: float,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return the objective's perturbed tensors w + gamma |w| g / |g| by name, where g is the loss's gradient at w.

    The tensors keep the gradient to w. The pass moves neither weights nor buffers (BatchNorm's statistics).

    Args:
        pieces: micro-batches, and where their inner attacks are recorded.
        weight: factor on the gradient, for one process's shard of a larger batch.
    """
    moved = {n: p for n, p in objective.named_parameters() if p.requires_grad and p.dim() > 1}
    total, images = [torch.zeros_like(p) for p in moved.values()], sum(len(batch.index) for batch, _ in pieces)
    for batch, attacks in pieces:
        with runtime.autocast(), attacks.record():
            buffers = {name: value.clone() for name, value in objective.named_buffers()}
            loss: Loss = functional_call(objective, buffers, (batch,))
        if not loss.total.requires_grad:
            return {}
        gradients = torch.autograd.grad(loss.total, list(moved.values()), allow_unused=True)
        for sum_of_gradients, gradient in zip(total, gradients, strict=True):
            if gradient is not None:
                sum_of_gradients.add_(gradient, alpha=weight * len(batch.index) / images)
    collectives.all_reduce_mean(total)
    return {
        name: w + gamma * w.detach().norm() / (g.norm() + TINY) * g
        for (name, w), g in zip(moved.items(), total, strict=True)
    }


def call_with_weights(objective: nn.Module, wrapped: nn.Module, weights: Mapping[str, Tensor], batch: Batch) -> Loss:
    """Compute the loss of a batch with other weights of the objective. Nothing has to be restored afterward.

    Args:
        wrapped: the objective, or the module that wraps it for several devices.
        weights: by name in `objective`.
    """
    names = {id(p): name for name, p in wrapped.named_parameters()}
    parameters = dict(objective.named_parameters())
    values = {names[id(parameters[name])]: value for name, value in weights.items()}
    loss: Loss = functional_call(wrapped, values, (batch,))
    return loss
