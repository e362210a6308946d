"""Compare five training steps with published loops: TRADES-AWP, DM-Improves-AT and Bag of Tricks, in float64.

    python benchmarks/fidelity/services.py FOLDER

FOLDER holds clones of github.com/csdongxian/AWP, wzekai99/DM-Improves-AT and P2333/Bag-of-Tricks-for-AT. Their
functions are read from these files and run beside ours, with our batches and our random starts; nothing of them is
stored here. The network has no BatchNorm, which the published loops update three times a step and ours twice. Weight
decay is 0 with AWP: there it acts on the perturbed weights, here on the weights; the size of that is printed too.

Exit status 1 if weights differ by more than 1e-6, relative to their norm.
"""

from __future__ import annotations

import argparse
import ast
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.rng import KeyedRng
from robobench.core.soft_labels import SoftLabels
from robobench.core.threat import ThreatModel
from robobench.defenses.at import ATConfig, ATObjective
from robobench.defenses.trades import TradesConfig, TradesObjective
from robobench.training.accumulation import one_step
from robobench.training.averaging import WeightAverage
from robobench.training.base import Batch
from robobench.training.context import TrainRuntime
from robobench.training.optimizer import make_optimizer

STEPS, BATCH, CLASSES, TOLERANCE = 5, 16, 10, 1e-6
THREAT = ThreatModel("Linf", 8 / 255)
RUNTIME = TrainRuntime("cpu", "fp32", 0)


def make_net() -> nn.Module:
    """Return a small convolutional network in float64."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 16, 3, 2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(16 * 9, CLASSES)).double()


def batches() -> list[Batch]:
    """Return the batches of the five steps, with plain labels."""
    generator, found = torch.Generator().manual_seed(1), []
    for step in range(STEPS):
        images = torch.rand(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        index = torch.arange(BATCH)
        found.append(Batch(images, labels, index, step, KeyedRng.of(index, 0, "train", step)))
    return found


def functions_of(file: Path, *names: str, **globals_: Any) -> SimpleNamespace:
    """Return functions and classes of a file, executed with the given globals; the rest of the file is not run."""
    nodes = [n for n in ast.parse(file.read_text()).body if getattr(n, "name", None) in names]
    space: dict[str, Any] = {"nn": nn, "F": F, "np": np, "torch": torch, **globals_}
    exec(compile(ast.Module(nodes, []), str(file), "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute inside the block."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def train_ours(objective: nn.Module, config: Any, average: WeightAverage | None = None) -> None:
    """Take the five steps with our training core."""
    optimizer = make_optimizer(config)(objective)
    for step, batch in enumerate(batches(), start=1):
        if config.label_smoothing:
            batch = Batch(batch.images, SoftLabels.of(batch.labels, config.label_smoothing), batch.index, 0, batch.rng)
        one_step(RUNTIME, objective.train(), optimizer, batch, services=config)
        if average:
            average.after_step(step, STEPS, 128)


def relative_difference(one: nn.Module, two: nn.Module) -> float:
    """Return the largest difference of a tensor, relative to its norm."""
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return max(float((p - q).detach().norm() / p.detach().norm()) for p, q in pairs)


def trades_awp(folder: Path, weight_decay: float = 0.0) -> float:
    """Compare with trades_AWP/train_trades_cifar.py and utils_awp.py."""
    ours, theirs = make_net(), make_net()
    config = TradesConfig(lr=0.05, weight_decay=weight_decay, inner_steps=4, awp_gamma=0.01)
    train_ours(TradesObjective(ours, THREAT, config), config)
    place = folder / "AWP" / "trades_AWP"
    utils = functions_of(place / "utils_awp.py", "diff_in_weights", "add_into_weights", "TradesAWP", EPS=1e-20)
    vars(utils)["TradesAWP"].calc_awp.__globals__["OrderedDict"] = dict
    proxy = copy.deepcopy(theirs)
    adversary = utils.TradesAWP(theirs, proxy, torch.optim.SGD(proxy.parameters(), lr=0.01), config.awp_gamma)
    args = SimpleNamespace(num_steps=config.inner_steps, norm="l_inf", awp_warmup=0, beta=config.beta)
    quiet: Callable[..., Any] = lambda *a, **k: SimpleNamespace(  # noqa: E731
        update=lambda *a: None, next=lambda: None, finish=lambda: None, avg=0, val=0, elapsed_td=0, eta_td=0
    )
    code = functions_of(
        place / "train_trades_cifar.py", "perturb_input", "train",
        args=args, device="cpu", epsilon=THREAT.eps, step_size=config.relative_step * THREAT.eps, AverageMeter=quiet,
        Bar=quiet, time=SimpleNamespace(time=lambda: 0.0), accuracy=lambda *a, **k: (torch.zeros(1), torch.zeros(1)),
        print=lambda *a: None,
    )  # fmt: skip
    made = batches()
    starts = iter([batch.rng.child("start").normal_like(batch.images) for batch in made])
    optimizer = torch.optim.SGD(theirs.parameters(), lr=config.lr, momentum=0.9, weight_decay=weight_decay)
    with patched(torch, "randn", lambda shape: next(starts)):
        code.train(theirs, [(b.images, b.labels) for b in made], optimizer, 1, adversary)
    return relative_difference(ours, theirs)


def dm_improves_at(folder: Path) -> tuple[float, float]:
    """Compare with gowal21uncovering/utils/trades.py and watrain.py: weights, and averaged weights."""
    ours, theirs = make_net(), make_net()
    config = TradesConfig(
        lr=0.05, nesterov=True, weight_decay=5e-4, inner_steps=4, beta=5.0, label_smoothing=0.1, average="ema",
        average_decay=0.995, average_start=0.4, epochs=1, clip_grad=0.5,
    )  # fmt: skip
    average, averaged = WeightAverage(ours, config, 1), copy.deepcopy(theirs)
    made = batches()
    noise = [2 * b.rng.child("start").uniform_like(b.images) - 1 for b in made]
    starts = iter([b.images + THREAT.eps * n for b, n in zip(made, noise, strict=True)])  # theirs is uniform, clamped
    with patched(KeyedRng, "normal_like", lambda rng, images: (next(starts).clamp(0, 1) - images) / 0.001):
        train_ours(TradesObjective(ours, THREAT, config), config, average)
    place = folder / "DM-Improves-AT"
    losses = functions_of(place / "core/utils/utils.py", "SmoothCrossEntropyLoss", "track_bn_stats")
    trades = functions_of(
        place / "gowal21uncovering/utils/trades.py", "trades_loss",
        **vars(losses), accuracy=lambda *a: 0.0, Variable=lambda value, **k: value,
    )  # fmt: skip
    ema = functions_of(place / "gowal21uncovering/utils/watrain.py", "ema_update").ema_update
    optimizer = torch.optim.SGD(theirs.parameters(), lr=config.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    moves = iter([THREAT.eps * n for n in noise])
    fake = SimpleNamespace(uniform_=lambda low, high: SimpleNamespace(cuda=lambda: next(moves)))
    with patched(torch, "FloatTensor", lambda shape: fake):
        for step, batch in enumerate(made, start=1):
            loss, _ = trades.trades_loss(
                theirs, batch.images, batch.labels, optimizer, config.relative_step * THREAT.eps, THREAT.eps,
                config.inner_steps, config.beta, label_smoothing=0.1,
            )  # fmt: skip
            loss.backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), config.clip_grad)
            optimizer.step()
            ema(averaged, theirs, step, decay_rate=0.995, warmup_steps=0.4 * STEPS)
    return relative_difference(ours, theirs), relative_difference(average.module, averaged)


def bag_of_tricks(folder: Path) -> float:
    """Compare with train_cifar.py: PGD in eval mode, smoothing not in the attack. Its s / (K - 1) is our s / K."""
    ours, theirs = make_net(), make_net()
    smoothing = 0.2
    config = ATConfig(lr=0.05, inner_steps=4, label_smoothing=smoothing * CLASSES / (CLASSES - 1))
    train_ours(ATObjective(ours, THREAT, config), config)
    bounds = {"lower_limit": torch.zeros((), dtype=torch.float64), "upper_limit": torch.ones((), dtype=torch.float64)}
    file = folder / "Bag-of-Tricks-for-AT" / "train_cifar.py"
    code = functions_of(file, "attack_pgd", "clamp", "LabelSmoothingLoss", normalize=lambda images: images, **bounds)
    criterion = code.LabelSmoothingLoss(smoothing=smoothing)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    for batch in batches():
        start = THREAT.random_start(batch.images, batch.rng.child("start")) - batch.images
        with patched(Tensor, "uniform_", lambda delta, *limits, start=start: delta.copy_(start)):
            attack = (THREAT.eps, config.relative_step * THREAT.eps, config.inner_steps, 1, "l_inf")
            delta, _ = code.attack_pgd(theirs, batch.images, batch.labels, *attack, BNeval=True)
        optimizer.zero_grad()
        loss = criterion(theirs(code.clamp(batch.images + delta, *bounds.values())), batch.labels)
        loss.backward()
        optimizer.step()
    return relative_difference(ours, theirs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_default_dtype(torch.float64)
    with patched(Tensor, "cuda", lambda tensor, *a, **k: tensor), patched(Tensor, "float", Tensor.double):
        weights, averaged = dm_improves_at(folder)
        found = {
            "TRADES-AWP": trades_awp(folder),
            "DM-Improves-AT": weights,
            "DM-Improves-AT, average": averaged,
            "Bag of Tricks": bag_of_tricks(folder),
        }
        decayed = trades_awp(folder, 5e-4)
    for name, difference in found.items():
        print(f"{name}: relative difference after {STEPS} steps {difference:.1e}")
    print(f"TRADES-AWP with weight decay 5e-4, which acts on other weights there: {decayed:.1e}")
    return int(any(not difference <= TOLERANCE for difference in found.values()))


if __name__ == "__main__":
    sys.exit(main())
