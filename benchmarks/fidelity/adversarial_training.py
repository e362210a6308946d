"""Published code of multi-step adversarial training and of training with noise, each on a `World`."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from published import namespace, run_definitions, run_loop
from torch import Tensor, nn
from world import CLASSES, Meter, Sized, World


def at(w: World) -> None:
    space = namespace(
        model=w.student, opt=w.optimizer, epsilon=w.eps, pgd_alpha=w.step, lower_limit=0.0, upper_limit=1.0,
        normalize=lambda x: x, criterion=nn.CrossEntropyLoss(), lr_schedule=lambda t: w.optimizer.param_groups[0]["lr"],
        args=SimpleNamespace(
            eval=False, mixup=False, attack="pgd", attack_iters=w.inner_steps, restarts=1, norm="l_inf", l1=0
        ),
        train_batches=Sized({"input": x, "target": y} for x, y in w.loader()), epoch=0,
        train_loss=0, train_acc=0, train_robust_loss=0, train_robust_acc=0, train_n=0,
        clamp=lambda x, low, high: torch.max(torch.min(x, torch.as_tensor(high)), torch.as_tensor(low)),
    )  # fmt: skip
    file = w.folder / "locuslab+robust_overfitting/train_cifar.py"
    run_loop(file, "enumerate(train_batches)", run_definitions(file, ["attack_pgd"], space))


def trades(w: World) -> None:
    space = run_definitions(w.folder / "yaodongyu+TRADES/trades.py", ["trades_loss"], namespace())
    w.minimize(lambda x, y: space["trades_loss"](w.student, x, y, w.optimizer, beta=w.config.beta, **w.attack))


def mart(w: World) -> None:
    space = run_definitions(w.folder / "YisenWang+MART/mart.py", ["mart_loss"], namespace())
    w.minimize(lambda x, y: space["mart_loss"](w.student, x, y, w.optimizer, beta=w.config.beta, **w.attack))


def hat(w: World) -> None:
    def frozen(model: nn.Module) -> Any:
        return torch.no_grad()

    space = namespace(accuracy=lambda *_: 0.0, ctx_noparamgrad_and_eval=frozen)
    loss = run_definitions(w.folder / "imrahulr+hat/core/utils/hat.py", ["hat_loss"], space)["hat_loss"]
    more = {"h": w.config.h, "beta": w.config.beta, "gamma": w.config.gamma, "hr_model": w.teachers["helper"]}
    w.minimize(lambda x, y: loss(w.student, x, y, w.optimizer, **w.attack, **more)[0])


def lbgat(w: World) -> None:
    space = run_definitions(w.folder / "dvlab-research+LBGAT/lbgat.py", ["lbgat_loss"], namespace())
    guide = w.teachers["guide"].train().requires_grad_(True)
    w.optimizer.add_param_group({"params": list(guide.parameters())})
    more = {**w.attack, "beta": w.config.beta}
    w.minimize(lambda x, y: space["lbgat_loss"](w.student, guide, x, y, w.optimizer, **more))


def ikl(w: World) -> None:
    space = namespace(
        model=w.student, optimizer=w.optimizer, NUM_CLASSES=CLASSES, epsilon=w.eps,
        epoch=w.epoch, epoch_scale=w.config.epochs / 200, weight=torch.full((CLASSES, CLASSES), 1 / CLASSES),
        args=SimpleNamespace(
            epochs=w.config.epochs, train_budget="high", norm="l_inf", alpha=w.config.alpha, beta=w.config.beta,
            T=w.config.temperature, aug="basic", awp_warmup=10**9,
        ),
        WEIGHT=torch.zeros(CLASSES, CLASSES), train_loader=w.loader(), start_wa=[], tau_list=[], exp_avgs=[],
        accuracy=lambda *_, **__: (torch.zeros(1), torch.zeros(1)), losses=Meter(), top1=Meter(), batch_time=Meter(),
        time=SimpleNamespace(time=lambda: 0), end=0, awp_adversary=None,
    )  # fmt: skip
    file = w.folder / "jiequancui+DKL/DKLv1/Adv-training-dkl/train_dkl_cifar10.py"
    space["bar"], space["train_loader"] = Meter(), Sized(w.loader())
    run_loop(file, "enumerate(train_loader)", run_definitions(file, ["dkl_loss", "perturb_input"], space))


def fat(w: World) -> None:
    space = run_definitions(
        w.folder / "zjfheart+Friendly-Adversarial-Training/earlystop.py", ["earlystop"], namespace()
    )
    images = torch.cat([batch for batch, _ in w.batches])

    def noise(*_: Any) -> Tensor:
        """Give the draws of the images that still move."""
        moving = sys._getframe(1).f_locals["iter_clean_data"]
        rows = [int((images == image).flatten(1).all(1).nonzero()) % len(w.batches[0][0]) for image in moving]
        found: Tensor = w.replay.queue.pop(0)[rows]
        return found

    def uniform(low: float, high: float, _: Any) -> Any:
        return (low + (high - low) * w.replay.queue.pop(0)).numpy()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        adv, target, *_ = space["earlystop"](
            w.student, x, y, w.step, w.eps, w.inner_steps, w.config.tau(w.epoch - 1), "uniform_randominit", "cent",
            omega=w.config.noise,
        )  # fmt: skip
        w.student.train()
        return F.cross_entropy(w.student(adv), target)

    with mock.patch.object(torch, "randn", noise), mock.patch.object(np.random, "uniform", uniform):
        w.minimize(loss)


def gaussian(w: World) -> None:
    space = namespace(
        model=w.student, optimizer=w.optimizer, criterion=nn.CrossEntropyLoss(), noise_sd=w.config.sigma,
        loader=Sized(w.loader()), time=SimpleNamespace(time=lambda: 0), end=0, epoch=0,
        accuracy=lambda *_, **__: (torch.zeros(1), torch.zeros(1)), args=SimpleNamespace(print_freq=10**9),
        **{name: Meter() for name in ("losses", "top1", "top5", "batch_time", "data_time")},
    )  # fmt: skip
    run_loop(w.folder / "locuslab+smoothing/code/train.py", "enumerate(loader)", space)
