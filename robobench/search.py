"""Runs an iterative attack: the core owns stopping, restarts and compaction, the attack owns the step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.losses import errs
from robobench.randomness import Noise
from robobench.standin import stand_in
from robobench.threat import per_image

if TYPE_CHECKING:
    from robobench.api import IterativeAttack

A = TypeVar("A")

STOPS = ("first", "never")
FULL = (  # what torch, cuBLAS and cuDNN say in errors of no class of their own
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class State:
    """Where an iterative attack stands, per image: every tensor has B rows and is compacted together.

    `memory` holds what an attack remembers between steps (momentum, best loss), `iteration` counts
    the steps taken, `restart` the starts before this one.
    """

    images: Tensor
    labels: Tensor
    adv: Tensor
    noise: Noise
    memory: dict[str, Tensor] = field(default_factory=dict)
    iteration: int = 0
    restart: int = 0

    def __getitem__(self, keep: Tensor) -> State:
        """Keep only some images: `keep` is (B,) bool, or their rows."""
        return replace(
            self,
            images=self.images[keep],
            labels=self.labels[keep],
            adv=self.adv[keep],
            noise=self.noise[keep],
            memory={name: value[keep] for name, value in self.memory.items()},
        )

    def moved(self, adv: Tensor, **memory: Tensor) -> State:
        """Return the state after a step: new images, updated memory, one more iteration."""
        return replace(self, adv=adv, memory={**self.memory, **memory}, iteration=self.iteration + 1)


@dataclass(frozen=True)
class Found:
    """What a search found: images (B, C, H, W), and which the model got wrong (B,) bool."""

    adv: Tensor
    fooled: Tensor


_kept: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("kept", default=None)
_untold: ContextVar[list[Callable[[], None]] | None] = ContextVar("untold", default=None)


@contextmanager
def recorded() -> Iterator[dict[str, list[Tensor]]]:
    """Keep the way of every search inside the block, by the attack's name.

    Each part of a batch that was run at once leaves a float tensor (E, 3): a row for each of E looks at the model
    (`attack.steps` + 1 a restart), holding the number of images, their mean cross-entropy in nats (that of their last
    look for those that left) and the fraction fallen so far.
    """
    kept: dict[str, list[Tensor]] = {}
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


@contextmanager
def halvings(say: Callable[[], None]) -> Iterator[None]:
    """Call `say` at the first batch inside the block that memory does not hold, instead of a warning at every one."""
    token = _untold.set([say])
    try:
        yield
    finally:
        _untold.reset(token)


def in_halves(what: str, run: Callable[..., A], *batch: Any) -> list[A]:
    """Run a function of a batch, in halves where it does not fit into memory (and say so).

    Args:
        what: named in the warning.
        batch: what `run` takes, each with a row for each image.

    Returns:
        What `run` gave for each part, in order; one part where memory suffices.
    """
    parts: list[A] = []
    begin, size = 0, len(batch[0])
    while begin < len(batch[0]) or not parts:
        try:
            parts.append(run(*(rows[begin : begin + size] for rows in batch)))
            begin += size
            size = min(size, len(batch[0]) - begin)
            continue
        except Exception as err:
            if size < 2 or not out_of_memory(err):
                raise
        # Outside the handler, so that the failed attempt's tensors are free.
        untold = _untold.get()
        if untold is None:
            warnings.warn(f"{what}: {size} images do not fit into memory; halved", stacklevel=3)
        elif untold:
            untold.pop()()
        size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts


def search(
    attack: IterativeAttack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: Noise,
    stop: str = "first",
) -> Found:
    """Run an iterative attack on a batch, in halves where it does not fit into memory (and say so).

    Args:
        stop: "first": an image leaves at its first success and the rest is compacted (for verdicts);
            "never": every image spends the full budget and what the attack calls its result, by default
            the last iterate, is returned (for transfer sets, and to compare images with other
            libraries). With restarts, "never" keeps the result of the first restart that succeeds.

    Raises:
        ValueError: an unknown `stop`.
    """
    if stop not in STOPS:
        raise ValueError(f"stop must be one of {', '.join(STOPS)}, got '{stop}'")
    if len(images) == 0:
        return Found(images.clone(), torch.zeros(0, dtype=torch.bool, device=images.device))
    attack.prepare(model, images)
    kept = _kept.get()
    trace = None if kept is None else kept.setdefault(attack.name, [])

    def run(images: Tensor, labels: Tensor, noise: Noise) -> Found:
        return _search(attack, model, images, labels, noise, stop, trace)

    parts = in_halves(f"attack '{attack.name}'", run, images, labels, noise)
    return Found(torch.cat([part.adv for part in parts]), torch.cat([part.fooled for part in parts]))


def out_of_memory(err: Exception) -> bool:
    """Say whether an error means that memory ran out: on a device, in torch's CPU allocator, or in Python."""
    return isinstance(err, (MemoryError, torch.OutOfMemoryError)) or any(text in str(err) for text in FULL)


def _search(
    attack: IterativeAttack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: Noise,
    stop: str,
    trace: list[Tensor] | None,
) -> Found:
    """Search one part of the batch; see `search`."""
    adv = images.clone()
    fooled = torch.zeros(len(labels), dtype=torch.bool, device=images.device)
    left = torch.arange(len(labels), device=images.device)  # images still searched, by row
    watch = None if trace is None else Watch(len(labels), images.device)
    seen = stand_in(attack, model, images, labels) if stop == "first" else model
    for restart in range(attack.restarts):
        state = attack.start(images[left], labels[left], noise[left].child("restart", restart))
        state, rows = replace(state, restart=restart), left
        for _ in range(attack.steps):
            visited = state.adv
            state, logits = attack.step(seen, state)
            wrong = fallen(attack, logits, visited, state)
            if seen is not model:
                wrong = confirmed(model, visited, state.labels, wrong)
            if watch is not None:
                watch.look(logits, state.labels, rows, wrong)
            if stop == "first" and bool(wrong.any()):
                adv[rows[wrong]], fooled[rows[wrong]] = visited[wrong], True
                stay = (~wrong).nonzero().flatten()
                state, rows = state[stay], rows[stay]
                if len(rows) == 0:
                    break
        if len(rows):
            with torch.no_grad():
                logits = model(state.adv)
                result = last = attack.finish(state, logits)
                if stop == "first":
                    last = state.adv
                elif result is not state.adv:
                    logits = model(result)
                wrong = fallen(attack, logits, last, state)
                if seen is not model and result is not state.adv:  # it may err where the stand-in did not see it
                    best = fallen(attack, model(result), result, state)
                    last, wrong = torch.where(per_image(best, last), result, last), wrong | best
            if watch is not None:
                watch.look(logits, state.labels, rows, wrong)
            adv[rows], fooled[rows] = result, wrong
            adv[rows[wrong]] = last[wrong]
        left = left[~fooled[left]]
        if len(left) == 0:
            break
    if trace is not None and watch is not None:
        trace.append(torch.stack(watch.rows).cpu())
    return Found(adv, fooled)


def fallen(attack: IterativeAttack, logits: Tensor, adv: Tensor, state: State) -> Tensor:
    """Say which images (B,) count as fallen at `adv`, where the model gives `logits`."""
    wrong = errs(logits, state.labels)
    if attack.wanders:
        wrong &= attack.threat.distance(adv, state.images) <= attack.threat.eps
    return wrong


def confirmed(model: nn.Module, adv: Tensor, labels: Tensor, wrong: Tensor) -> Tensor:
    """Say which of the images marked `wrong` (B,) bool the model gets wrong in float32."""
    rows = wrong.nonzero().flatten()
    if len(rows):
        with torch.no_grad():
            wrong = wrong.index_copy(0, rows, errs(model(adv[rows]), labels[rows]))
    return wrong


class Watch:
    """Mean loss and fraction fallen at every look."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.loss = torch.zeros(count, device=device)
        self.fallen = torch.zeros(count, dtype=torch.bool, device=device)
        self.rows: list[Tensor] = []

    def look(self, logits: Tensor, labels: Tensor, rows: Tensor, wrong: Tensor) -> None:
        """Take in the logits of the images at `rows`."""
        self.loss[rows] = F.cross_entropy(logits.detach().float(), labels, reduction="none")
        self.fallen[rows] |= wrong
        count = torch.tensor(float(len(self.loss)), device=self.loss.device)
        self.rows.append(torch.stack((count, self.loss.mean(), self.fallen.float().mean())))
