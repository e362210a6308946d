"""FGSM: one gradient step of size eps, along the sign of the gradient (Linf) or the normalized gradient (L2).

Paper:   Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572;
         the L2 form is from Miyato et al., ICLR 2017, arXiv:1605.07725.
Code:    torchattacks; a test compares images of FGSM (Linf).
"""

from __future__ import annotations

from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, attack_cross_entropy, loss_and_input_grad


@ATTACKS.register("fgsm")
class FGSM(IterativeAttack):
    """One gradient step of size eps from the clean image."""

    version = 2

    @property
    def steps(self) -> int:
        """Always 1."""
        return 1

    @property
    def relative_step(self) -> float:
        """Always 1: the step size is eps."""
        return 1.0

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image."""
        return AttackState(images, labels, images.clone(), rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Take a step that increases the cross-entropy."""

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return attack_cross_entropy(logits, state.labels)

        logits, _, grad = loss_and_input_grad(self.name, model, state.adv, state.labels, loss)
        return state.advance(self.threat.step(state.adv, grad, self.threat.eps, state.images)), logits
