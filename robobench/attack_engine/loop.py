"""The attack loop: early stopping, restarts, and removing finished images from the batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from robobench.attack_engine.accelerated import select_search_model
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.attack_engine.randomized import RandomizedModel, predicts_wrong
from robobench.attack_engine.state import AttackResult, AttackState, SteppedAttack
from robobench.attack_engine.trace import TraceRecorder
from robobench.core.losses import is_misclassified
from robobench.core.memory import split_on_oom
from robobench.core.rng import KeyedRng
from robobench.core.threat import per_image


def run_iterative_attack(
    attack: SteppedAttack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    rng: KeyedRng,
    *,
    early_stop: bool,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> AttackResult:
    """Run an iterative attack on a batch, split into smaller parts if memory runs out.

    Args:
        images: (B, C, H, W) in [0, 1].
        labels: (B,) int64.
        early_stop: True removes an image from the batch at its first success (for white-box verdicts). False spends
            the full budget on every image and returns what the attack calls its result, by default the last iterate
            (for transfer examples). With restarts, False keeps the result of the first restart that succeeds.
    """
    if len(images) == 0:
        return AttackResult(images.clone(), torch.zeros(0, dtype=torch.bool, device=images.device))
    attack.prepare(model, images)

    def run(images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackResult:
        return _BatchRun(attack, model, images, labels, rng, early_stop, options).run()

    parts = split_on_oom(f"attack '{attack.name}'", run, images, labels, rng, on_split=options.on_oom_split)
    return AttackResult(torch.cat([part.adv for part in parts]), torch.cat([part.success for part in parts]))


class _BatchRun:
    """One attack on one batch that fits into memory. `rows` are the row numbers of the images still attacked."""

    def __init__(
        self,
        attack: SteppedAttack,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        early_stop: bool,
        options: AttackOptions,
    ) -> None:
        self.attack, self.model, self.early_stop, self.options = attack, model, early_stop, options
        self.images, self.labels, self.rng = images, labels, rng
        self.adv = images.clone()
        self.success = torch.zeros(len(labels), dtype=torch.bool, device=images.device)
        self.recorder = TraceRecorder(len(labels), images.device) if options.traces is not None else None
        self.is_randomized = isinstance(model, RandomizedModel)
        self.search_model = select_search_model(attack, model, images, labels, options) if early_stop else model

    def run(self) -> AttackResult:
        """Run all restarts. Each restart attacks the images that no earlier one succeeded on."""
        remaining = torch.arange(len(self.labels), device=self.images.device)
        for restart in range(self.attack.restarts):
            rng = self.rng[remaining].child("restart", restart)
            state = self.attack.start(self.images[remaining], self.labels[remaining], rng)
            state, rows = self._take_steps(replace(state, restart=restart), remaining)
            if len(rows):
                self._finish(state, rows)
            remaining = remaining[~self.success[remaining]]
            if len(remaining) == 0:
                break
        if self.recorder is not None and self.options.traces is not None:
            self.options.traces.setdefault(self.attack.name, []).append(self.recorder.result())
        return AttackResult(self.adv, self.success)

    def _take_steps(self, state: AttackState, rows: Tensor) -> tuple[AttackState, Tensor]:
        """Take all steps; return the last state and the rows that no step succeeded on."""
        for _ in range(self.attack.steps):
            visited = state.adv
            state, logits = self.attack.step(self.search_model, state)
            success = is_adversarial(self.attack, logits, visited, state)
            if isinstance(self.model, RandomizedModel) and not self.model.follows_mean:
                success = is_inside(self.attack, visited, state)
            if self.search_model is not self.model or self.is_randomized:
                success = recheck(self.model, visited, state.labels, success)
            self._record(logits, state, rows, success)
            if self.early_stop and bool(success.any()):
                self.adv[rows[success]], self.success[rows[success]] = visited[success], True
                keep = (~success).nonzero().flatten()
                state, rows = state[keep], rows[keep]
                if len(rows) == 0:
                    break
        return state, rows

    def _finish(self, state: AttackState, rows: Tensor) -> None:
        """Evaluate the images after the last step and keep the attack's results."""
        with torch.no_grad():
            logits = self.model(state.adv)
            result = last = self.attack.finish(state, logits)
            if self.early_stop:
                last = state.adv
            elif result is not state.adv:
                logits = self.model(result)
            success = is_adversarial(self.attack, logits, last, state)
            if self.search_model is not self.model and result is not state.adv:
                # The result may be misclassified in float32 although the accelerated model did not show it.
                also = is_adversarial(self.attack, self.model(result), result, state)
                last, success = torch.where(per_image(also, last), result, last), success | also
            if self.is_randomized:
                success = recheck(self.model, last, state.labels, is_inside(self.attack, last, state))
        self._record(logits, state, rows, success)
        self.adv[rows], self.success[rows] = result, success
        self.adv[rows[success]] = last[success]

    def _record(self, logits: Tensor, state: AttackState, rows: Tensor, success: Tensor) -> None:
        if self.recorder is not None:
            self.recorder.record_step(logits, state.labels, rows, success)


def is_adversarial(attack: SteppedAttack, logits: Tensor, adv: Tensor, state: AttackState) -> Tensor:
    """Return which images adv (B, C, H, W) with logits (B, K) are adversarial: misclassified and inside the ball."""
    return is_misclassified(logits, state.labels) & is_inside(attack, adv, state)


def is_inside(attack: SteppedAttack, adv: Tensor, state: AttackState) -> Tensor:
    """Return which images adv (B, C, H, W) are inside the ball: (B,) bool."""
    if attack.iterates_leave_ball:
        return attack.threat.distance(adv, state.images) <= attack.threat.eps
    return torch.ones_like(state.labels, dtype=torch.bool)


def recheck(model: nn.Module, adv: Tensor, labels: Tensor, success: Tensor) -> Tensor:
    """Return which of the images marked in `success` (B,) bool the original model misclassifies.

    It runs in float32, and a model with random outputs votes.
    """
    rows = success.nonzero().flatten()
    if len(rows):
        success = success.index_copy(0, rows, predicts_wrong(model, adv[rows], labels[rows]))
    return success
