"""FGSM: one step of length eps along the gradient's sign (Linf) or the gradient itself (L2).

Paper:   Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572;
         the L2 form, the gradient over its length, is that of Miyato et al., ICLR 2017, arXiv:1605.07725.
Code:    Linf parity with torchattacks' FGSM (tests/parity).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, loss_and_input_grad


@ATTACKS.register("fgsm")
class FGSM(IterativeAttack):
    """One gradient step of length eps from the clean image."""

    version = 1

    @property
    def steps(self) -> int:
        """One step is the method."""
        return 1

    @property
    def relative_step(self) -> float:
        """The step reaches the ball's surface."""
        return 1.0

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image, without noise."""
        return AttackState(images, labels, images.clone(), rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Step up the cross-entropy."""

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return F.cross_entropy(logits, state.labels, reduction="none")

        logits, _, grad = loss_and_input_grad(self.name, model, state.adv, state.labels, loss)
        return state.advance(self.threat.step(state.adv, grad, self.threat.eps, state.images)), logits
