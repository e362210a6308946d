"""Compare our defenses with their published code: loss, input gradients of the attack, weights after five steps.

    python benchmarks/fidelity/compare.py FOLDER                     print the table
    python benchmarks/fidelity/compare.py FOLDER --only mart,hat
    python benchmarks/fidelity/compare.py FOLDER --write docs/fidelity.md

FOLDER holds clones of the repositories, each in a folder OWNER+NAME. A repository that is missing gives an empty row.
Both sides have the same small network, batches, random numbers and SGD, in float64. About 20 seconds on one core.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import CASES, Case
from pretraining import ViT, acl, keep_gradient, mimir
from published import Replay, Steps, as_float64, on_cpu_in_float64, record_draws
from torch import Tensor, nn
from world import CLASSES, World

from robobench.core.rng import KeyedRng
from robobench.core.soft_labels import SoftLabels
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import load_defense
from robobench.training.base import Batch, Defense, DefenseSetup, FrozenModel, Train
from robobench.training.context import build_objective

STEPS, BATCH = 5, 8
THREAT = ThreatModel("Linf", 8 / 255)
TOLERANCE = 1e-6
PRETRAINING = (
    Case("acl", "VITA-Group/Adversarial-Contrastive-Learning@399eabd", acl),
    Case("mimir", "xiaoyunxxy/MIMIR@b5bc401", mimir, {"decoder_width": 16, "decoder_heads": 2}, grads=1),
)
HEADER = """# Fidelity to published code

Each defense beside the code of its authors: the same small network (two convolutions, 8 px images, 10 classes), batches
of 8, random numbers and SGD, in float64, Linf 8/255. The published code runs as it is: its functions and its training
loop, on the CPU, with our random numbers. The columns are relative differences of

* **loss**: of the first batch;
* **gradient**: of the input gradients of the first attack, each of length 1, the largest over its steps; 0 without an
  attack;
* **weights**: after five steps, relative to their change since the start. GN is a network with GroupNorm, BN one with
  BatchNorm. All columns but the last are of GN.

All must be below 1e-6, except those of BN with a reason in the last column. A method whose weights agree with GroupNorm
but not with BatchNorm differs only in how BatchNorm's running statistics are updated. `rocl` and `macd` are not in the
table: RoCL's code runs on several GPUs only, and MACD has none.

`acl` and `mimir` are compared in their pre-training, with SGD in place of LARS and AdamW. `mimir` trains a small ViT,
so that both columns are equal; the published masks are drawn in an order that keeps our tokens in place. `fat` has
images of 32 px, and its attack is compared in its first step, after which the code drops images. `fgsm-pgi` is in its
second epoch, and the perturbations that it stores are compared too.

    python benchmarks/fidelity/compare.py FOLDER --write docs/fidelity.md

FOLDER holds clones of the repositories, each in a folder OWNER+NAME.

"""


class SmallNet(nn.Module):
    """Two convolutions and a linear head; records the gradients that reach its input."""

    def __init__(self, norm: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)]
            self.head = nn.Linear(8, CLASSES)
        norms = [nn.BatchNorm2d(8) if norm == "BN" else nn.GroupNorm(2, 8) for _ in layers]
        self.body = nn.Sequential(layers[0], norms[0], nn.Softplus(), layers[1], norms[1], nn.Softplus())
        self.head.weight.data.mul_(4)  # predictions that differ
        self.input_grads: list[Tensor] = []

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, 8)."""
        features: Tensor = self.body(keep_gradient(images, self.input_grads)).mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class RecordingSGD(torch.optim.SGD):
    """SGD that keeps the loss whose backward pass came last before each step."""

    def __init__(self, parameters: list[nn.Parameter], settings: dict[str, float]) -> None:
        super().__init__(parameters, **settings)  # type: ignore[arg-type]
        self.losses: list[float] = []
        self.last = 0.0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.losses.append(self.last)
        super().step()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the value of every tensor whose backward pass is run."""
        real = Tensor.backward

        def backward(tensor: Tensor, *args: object, **kwargs: object) -> None:
            self.last = tensor.item()
            real(tensor, *args, **kwargs)  # type: ignore[no-untyped-call]

        with mock.patch.object(Tensor, "backward", backward):
            yield


@dataclass
class Run:
    """What one side gives: the first loss, the first attack's input gradients, the weights after the last step."""

    loss: float
    input_grads: list[Tensor]
    weights: Tensor


def flat(module: nn.Module) -> Tensor:
    """Return all parameters of a module in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def batches(case: Case) -> list[Batch]:
    """Return the batches of all steps: random images and labels."""
    generator, out = torch.Generator().manual_seed(0), []
    smoothing = getattr(make_defense(case).config, "label_smoothing", 0.0)
    for step in range(STEPS):
        index = torch.arange(step * BATCH, (step + 1) * BATCH)
        images = torch.rand(BATCH, 3, case.side, case.side, generator=generator, dtype=torch.float64)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        labels = SoftLabels.of(labels, smoothing) if smoothing else labels
        out.append(Batch(images, labels, index, case.epoch, KeyedRng.of(index, "fidelity", case.epoch)))
    return out


def make_defense(case: Case) -> Defense:
    """Build a defense with the case's config."""
    cls = load_defense(case.defense)
    made: Defense = cls(cls.Config(**case.changes))
    return made


def make_student(case: Case, norm: str) -> Any:
    """Return the network that is trained, with its initial weights."""
    return (ViT(0, CLASSES) if case.run is mimir else SmallNet(norm, 0)).double()


def make_teachers(defense: Defense, norm: str) -> dict[str, nn.Module]:
    """Return a random network for each role, in eval mode without parameter gradients."""
    nets = {role: SmallNet(norm, seed).double().eval() for seed, role in enumerate(sorted(defense.requires), 1)}
    return {role: net.requires_grad_(False) for role, net in nets.items()}


def sgd_settings(stage: Train, objective: nn.Module) -> dict[str, float]:
    """Return the optimizer settings of our stage."""
    group = stage.optimizer(objective).param_groups[0]
    settings = {name: group.get(name, 0.0) for name in ("lr", "momentum", "weight_decay")}
    return {**settings, "lr": min(settings["lr"], 0.2)}  # LARS has other rates


def run_ours(case: Case, norm: str) -> tuple[Run, nn.Module, Steps, Any]:
    """Take five steps of our defense.

    Returns:
        The run, a copy of the objective before it, and the draws of every step.
    """
    defense, student = make_defense(case), make_student(case, norm)
    teachers = {role: FrozenModel(net) for role, net in make_teachers(defense, norm).items()}
    setup = DefenseSetup(
        model=student, threat=THREAT, num_classes=CLASSES, image_shape=(3, case.side, case.side),
        train_size=STEPS * BATCH, required_models=teachers,
    )  # fmt: skip
    stage = defense.stages(setup)[0]
    assert isinstance(stage, Train)
    objective: Any = build_objective(stage, "cpu").double().train()
    if case.defense == "absld":  # as after some epochs
        objective.temperatures.copy_(torch.linspace(0.5, 2.0, 2 * CLASSES).view(2, CLASSES))
    before, settings = copy.deepcopy(objective), sgd_settings(stage, objective)
    if stage.image_state:  # as after an epoch
        before.state = stage.image_state
        stage.image_state.open(None)
        index, values = torch.arange(STEPS * BATCH), torch.rand(STEPS * BATCH, *stage.image_state.shape)
        values[:, 0] = THREAT.eps * (2 * values[:, 0] - 1)
        stage.image_state.write(index, case.epoch - 1, values - 0.5 * torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1))
    optimizer = RecordingSGD(list(objective.parameters()), settings)
    draws: Steps = []
    first_grads: list[Tensor] = []
    with optimizer.watch(), mock.patch.object(Tensor, "float", as_float64):
        for batch in (batch for batch in batches(case) for _ in range(stage.replays)):
            draws.append([])
            with record_draws(draws[-1]):
                loss = objective(batch)
            first_grads = first_grads or list(student.input_grads)
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
    steps = case.grads or getattr(defense.config, "inner_steps", 1)
    return Run(optimizer.losses[0], first_grads[:steps], flat(student)), before, draws, stage


def run_published(case: Case, norm: str, folder: Path, draws: Steps, before: Any, stage: Train) -> Run:
    """Take five steps of the published code, from the same weights and with the same draws."""
    defense, student, config = make_defense(case), make_student(case, norm), make_defense(case).config
    teachers, replay = make_teachers(defense, norm), Replay(draws)
    if hasattr(before, "guide"):
        teachers["guide"] = copy.deepcopy(before.guide)
    optimizer = RecordingSGD(list(student.parameters()), sgd_settings(stage, before))
    world = World(
        folder=folder,
        student=student.train(),
        teachers=teachers,
        optimizer=optimizer,
        batches=[(batch.images.clone(), batch.labels.as_subclass(Tensor)) for batch in batches(case)],
        begin=replay.begin,
        eps=THREAT.eps,
        step=getattr(config, "relative_step", 0.0) * THREAT.eps,
        inner_steps=getattr(config, "inner_steps", 1),
        config=config,
        epoch=case.epoch + 1,
        objective=before,
        replay=replay,
        rngs=[batch.rng for batch in batches(case)],
    )
    with on_cpu_in_float64(replay), optimizer.watch():
        case.run(world)
    return Run(optimizer.losses[0], student.input_grads[: case.grads or world.inner_steps], flat(student))


def compare(case: Case, norm: str, folder: Path) -> tuple[float, float, float]:
    """Return the relative differences of loss, input gradients and weights."""
    ours, before, draws, stage = run_ours(case, norm)
    theirs = run_published(case, norm, folder, draws, before, stage)
    pairs = zip(ours.input_grads, theirs.input_grads, strict=True)
    grads = [float((a / a.norm() - b / b.norm()).norm()) for a, b in pairs]
    change = (theirs.weights - flat(make_student(case, norm))).norm()
    loss = abs(ours.loss - theirs.loss) / abs(theirs.loss)
    return loss, max(grads, default=0.0), float((ours.weights - theirs.weights).norm() / change)


def rows(folder: Path, only: list[str]) -> Iterator[tuple[list[str], bool]]:
    """Yield a table row for each case, and whether it agrees as far as it must."""
    for case in (*CASES, *PRETRAINING):
        if only and case.defense not in only:
            continue
        name = " ".join([case.defense, *(f"{field}={value}" for field, value in case.changes.items())])
        repository, _, commit = case.repository.partition("@")
        link = f"[{repository}](https://github.com/{repository}/tree/{commit})"
        if not (folder / repository.replace("/", "+")).is_dir():
            yield [f"`{name}`", link, "", "", "", "", "not fetched"], True
            continue
        loss, grad, weights = compare(case, "GN", folder)
        bn_loss, bn_grad, bn_weights = compare(case, "BN", folder)
        agrees = max(loss, grad, weights) < TOLERANCE and (
            bool(case.difference) or max(bn_loss, bn_grad, bn_weights) < TOLERANCE
        )
        figures = [f"{value:.0e}" for value in (loss, grad, weights, bn_weights)]
        yield [f"`{name}`", link, *figures, case.difference if bn_weights >= TOLERANCE else ""], agrees


def main() -> int:
    """Print or write the table; status 1 if a row does not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the fetched repositories")
    parser.add_argument("--only", default="", help="comma-separated defenses")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"no folder '{options.folder}'; clone the repositories into folders OWNER+NAME", file=sys.stderr)
        return 2
    torch.set_default_dtype(torch.float64)
    columns = ["defense", "code", "loss", "gradient", "weights, GN", "weights, BN", "difference with BN"]
    lines, good = [columns, ["---"] * len(columns)], True
    for cells, agrees in rows(options.folder, options.only.split(",") if options.only else []):
        lines.append(cells)
        good &= agrees
        print(" | ".join(cells), "" if agrees else " <- DIFFERENT", flush=True)
    if options.write:
        options.write.write_text(HEADER + "".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
