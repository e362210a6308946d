"""The published code of each defense: repository, and how to run its training step on a `World`.

Each function runs five steps of the published code. Arguments that the scripts read from their command line are set to
the values of our config.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from published import Quiet, namespace, run_definitions, run_loop
from torch import Tensor, nn

CLASSES = 10


@dataclass
class World:
    """What the published code is given.

    Attributes:
        folder: holds the fetched repositories, each in OWNER+NAME.
        batches: (images, labels) of the five steps, float64.
        begin: called with the number of a step before it.
        epoch: counted from 1.
    """

    folder: Path
    student: nn.Module
    teachers: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]
    begin: Callable[[int], None]
    eps: float
    step: float
    inner_steps: int
    config: Any
    epoch: int
    objective: Any = None  # ours, for values that are drawn at its construction
    replay: Any = None  # our draws
    rngs: Any = ()  # random numbers of the batches

    def loader(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, and go to their draws."""
        for number, batch in enumerate(self.batches):
            self.begin(number)
            yield batch

    def minimize(self, loss: Callable[[Tensor, Tensor], Any]) -> None:
        """Take the steps on a published loss function, as the scripts around them do."""
        self.student.train()
        for images, labels in self.loader():
            value = loss(images, labels)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()

    @property
    def attack(self) -> dict[str, Any]:
        """Keyword arguments of the attack in most loss functions."""
        return {"step_size": self.step, "epsilon": self.eps, "perturb_steps": self.inner_steps}


def trades(w: World) -> None:
    space = run_definitions(w.folder / "yaodongyu+TRADES/trades.py", ["trades_loss"], namespace())
    w.minimize(lambda x, y: space["trades_loss"](w.student, x, y, w.optimizer, beta=w.config.beta, **w.attack))


def mart(w: World) -> None:
    space = run_definitions(w.folder / "YisenWang+MART/mart.py", ["mart_loss"], namespace())
    w.minimize(lambda x, y: space["mart_loss"](w.student, x, y, w.optimizer, beta=w.config.beta, **w.attack))


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


class Sized:
    """An iterator with a length, which only the learning rate of the script needs."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        return 1


def per_channel(value: float) -> Tensor:
    return torch.full((3, 1, 1), value)


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    return torch.max(torch.min(x, torch.as_tensor(high)), torch.as_tensor(low))


def fast_at(w: World) -> None:
    space = namespace(
        model=w.student, opt=w.optimizer, epsilon=per_channel(w.eps), alpha=per_channel(w.step), clamp=clamp,
        lower_limit=torch.zeros(1), upper_limit=torch.ones(1), criterion=nn.CrossEntropyLoss(),
        scheduler=SimpleNamespace(step=lambda: None), args=SimpleNamespace(delta_init="random"),
        train_loader=w.loader(), train_loss=0, train_acc=0, train_n=0,
    )  # fmt: skip
    run_loop(w.folder / "locuslab+fast_adversarial/CIFAR10/train_fgsm.py", "enumerate(train_loader)", space)


def free_at(w: World) -> None:
    space = namespace(
        model=w.student, opt=w.optimizer, epsilon=per_channel(w.eps), clamp=clamp, lower_limit=torch.zeros(1),
        upper_limit=torch.ones(1), criterion=nn.CrossEntropyLoss(), scheduler=SimpleNamespace(step=lambda: None),
        args=SimpleNamespace(minibatch_replays=w.config.replays), delta=w.objective.delta.clone().requires_grad_(True),
        train_loader=w.loader(), train_loss=0, train_acc=0, train_n=0,
    )  # fmt: skip
    run_loop(w.folder / "locuslab+fast_adversarial/CIFAR10/train_free.py", "enumerate(train_loader)", space)


def n_fgsm(w: World) -> None:
    utils = SimpleNamespace(clamp=clamp, lower_limit=torch.zeros(1), upper_limit=torch.ones(1))
    space = namespace(
        model=w.student, opt=w.optimizer, epsilon=per_channel(w.eps), alpha=per_channel(w.step), attack_utils=utils,
        scheduler=SimpleNamespace(step=lambda: None), iter_count=0, train_loss=0, train_acc=0, train_n=0,
        args=SimpleNamespace(dataset="CIFAR10", unif=w.config.noise, clip=-1),
        train_loader=((x, y, None) for x, y in w.loader()),
    )  # fmt: skip
    run_loop(w.folder / "pdejorge+N-FGSM/train.py", "enumerate(train_loader)", space)


def gradalign(w: World) -> None:
    space = namespace(
        model=w.student, opt=w.optimizer, eps=w.eps, half_prec=False, double_bp=True, clamp=clamp, epoch=1, iteration=1,
        lr_schedule=lambda t: w.optimizer.param_groups[0]["lr"], loss_function=nn.CrossEntropyLoss(),
        data=SimpleNamespace(shapes_dict={"cifar10": (50000,)}), time=SimpleNamespace(time=lambda: 0), time_train=0,
        args=SimpleNamespace(
            minibatch_replay=1, attack="fgsm", attack_init="zero", fgsm_alpha=w.config.relative_step, batch_size=128,
            dataset="cifar10", grad_align_cos_lambda=w.config.weight, eval_iter_freq=10**9,
        ),
        train_batches=Sized(w.loader()),
        **dict.fromkeys(("train_loss", "train_reg", "train_acc", "train_n", "grad_norm_x", "avg_delta_l2"), 0),
    )  # fmt: skip
    folder = w.folder / "tml-epfl+understanding-fast-adv-training"
    names = ["get_uniform_delta", "get_input_grad", "l2_norm_batch", "sign", "backward"]
    run_definitions(folder / "utils.py", names, space)
    space["utils"] = SimpleNamespace(**{name: space[name] for name in names})
    real = torch.zeros  # `torch.zeros(1).cuda()[0]` and get_uniform_delta make float32
    torch.zeros = lambda *shape, **kwargs: real(*shape, **{"dtype": torch.float64, **kwargs})
    try:
        run_loop(folder / "train.py", "enumerate(train_batches)", space)
    finally:
        torch.zeros = real


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


class Meter:
    """Stands for the script's meters and progress bar."""

    avg = val = 0.0
    elapsed_td = eta_td = suffix = ""

    def update(self, *_: Any) -> None: ...

    def next(self) -> None: ...


def ard(w: World) -> None:
    file = w.folder / "goldblum+AdversariallyRobustDistillation/main.py"
    space = run_definitions(file, ["AttackPGD"], namespace())
    net = space["AttackPGD"](w.student, {"step_size": w.step, "epsilon": w.eps, "num_steps": w.inner_steps})
    space |= {
        "net": net.train(), "basic_net": w.student, "teacher_net": w.teachers["robust"], "optimizer": w.optimizer,
        "KL_loss": nn.KLDivLoss(), "XENT_loss": nn.CrossEntropyLoss(), "train_loss": 0,
        "iterator": ProgressBar(w.loader()), "args": SimpleNamespace(alpha=w.config.alpha, temp=w.config.temperature),
    }  # fmt: skip
    run_loop(file, "enumerate(iterator)", space)


class ProgressBar:
    """A loader with tqdm's method."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def set_description(self, *_: Any) -> None: ...


def iad(w: World) -> None:
    second = w.config.variant == "II"
    file = w.folder / "ZFancy+IAD" / ("IAD-II.py" if second else "IAD-I.py")
    space = run_definitions(file, ["AttackPGD"], namespace())
    net = space["AttackPGD"](w.student, {"step_size": w.step, "epsilon": w.eps, "num_steps": w.inner_steps})
    c = w.config
    space |= {
        "net": net.train(), "basic_net": w.student, "teacher_net": w.teachers["robust"], "optimizer": w.optimizer,
        "teacher_st_net": w.teachers.get("clean"), "KL_loss": nn.KLDivLoss(reduce=False),
        "XENT_loss": nn.CrossEntropyLoss(), "train_loss": 0, "iterator": ProgressBar(w.loader()), "epoch": w.epoch - 1,
        "args": SimpleNamespace(
            alpha=c.a, alpha1=c.a1, alpha2=c.a2, beta=c.beta, temp=c.temperature, begin=c.first_introspection
        ),
    }  # fmt: skip
    run_loop(file, "enumerate(iterator)", space)


def mtard(w: World) -> None:
    folder = w.folder / "zhaoshiji123+MTARD/mtard"
    space = namespace(
        student=w.student, teacher=w.teachers["robust"], teacher_nat=w.teachers["clean"], optimizer=w.optimizer,
        epsilon=w.eps, init_loss_nat=None, init_loss_adv=None, bert=w.config.beta, weight_learn_rate=w.config.eta,
        weight={"adv_loss": 0.5, "nat_loss": 0.5}, trainloader=w.loader(),
    )  # fmt: skip
    run_definitions(folder / "mtard_loss.py", ["mtard_inner_loss_ce"], space)
    file = folder / "mtard_resnet18_cifar10.py"
    run_loop(file, "enumerate(trainloader)", run_definitions(file, ["kl_loss"], space))


def rslad(w: World) -> None:
    folder = w.folder / "zibojia+RSLAD"
    space = namespace(
        student=w.student, teacher=w.teachers["robust"], optimizer=w.optimizer, epsilon=w.eps, trainloader=w.loader()
    )
    run_definitions(folder / "rslad_loss.py", ["rslad_inner_loss"], space)
    file = folder / "resnet18_rslad_cifar10.py"
    run_loop(file, "enumerate(trainloader)", run_definitions(file, ["kl_loss"], space))


def absld(w: World) -> None:
    folder = w.folder / "zhaoshiji123+ABSLD"
    adv, clean = w.objective.temperatures
    space = namespace(
        student=w.student, teacher=w.teachers["robust"], optimizer=w.optimizer, epsilon=w.eps, trainloader=w.loader(),
        class_labels_temp_adv=adv, class_labels_temp_nat=clean, class_labels_total_loss_adv=torch.zeros(CLASSES),
        class_labels_total_loss_nat=torch.zeros(CLASSES), ce_loss=nn.CrossEntropyLoss(reduce=False),
    )  # fmt: skip
    run_definitions(folder / "absld_loss.py", ["absld_inner_loss"], space)
    file = folder / "resnet18_absld_cifar10.py"
    run_loop(file, "enumerate(trainloader)", run_definitions(file, ["kl_loss"], space))


def saad(w: World) -> None:
    folder, c = w.folder / "HongsinLee+saad", w.config
    space = namespace(
        student=w.student, teacher=w.teachers["robust"], optimizer=w.optimizer, trainloader=Sized(w.loader()),
        epoch=w.epoch, progress_bar=SimpleNamespace(prog=lambda *_: None),
        args=SimpleNamespace(
            lambda_inner=c.linear_correction, gamma=c.gamma, igdm_alpha=c.gradient_weight, epochs=c.epochs, beta=c.beta
        ),
    )  # fmt: skip
    run_definitions(folder / "attacks.py", ["saad_inner_loss"], space)
    run_definitions(folder / "utils.py", ["samplewise_kl_div", "samplewise_renyi_entropy"], space)
    run_loop(folder / "saad.py", "enumerate(trainloader)", space)


def igdm(w: World) -> None:
    folder = w.folder / "HongsinLee+saad"
    space = namespace(
        student=w.student, teacher=w.teachers["robust"], optimizer=w.optimizer, trainloader=Sized(w.loader()),
        epoch=w.epoch, progress_bar=SimpleNamespace(prog=lambda *_: None),
        criterion_kl=nn.KLDivLoss(reduction="batchmean"),
        args=SimpleNamespace(igdm_alpha=w.config.gradient_weight),
    )  # fmt: skip
    attack = run_definitions(folder / "attacks.py", ["adaad_inner_loss"], space)["adaad_inner_loss"]
    # The script exchanges step size and radius; exchanging them again gives the attack that it means.
    space["adaad_inner_loss"] = lambda *models, step_size, epsilon: attack(
        *models, step_size=epsilon, epsilon=step_size
    )
    run_loop(folder / "igdm.py", "enumerate(trainloader)", space)


def adaad(w: World) -> None:
    folder, c = w.folder / "boyellow+AdaAD", w.config
    space = namespace(
        net=w.student, teacher_net=w.teachers["robust"], optimizer=w.optimizer, trainloader=Sized(w.loader()),
        use_cuda=False, epoch=w.epoch - 1, train_loss=0, adv_correct=0, correct=0, total=0, train_adv_correct=0,
        num_classes=CLASSES, correct_ori=0, utils=SimpleNamespace(progress_bar=lambda *_: None),
        args=SimpleNamespace(
            method="AdaAD" if c.form == "adaad" else "AdaAD_with_IAD1", step_size=255 * w.step, epsilon=255 * w.eps,
            num_steps=w.inner_steps, AdaAD_alpha=c.alpha, IAD_alpha=1.0, IAD_beta=c.beta,
            IAD_begin=c.first_introspection, temp=c.temperature, dataset="CIFAR10", rand_init=True, BN_eval=True,
        ),
    )  # fmt: skip
    run_definitions(folder / "AT_helper.py", ["adaad_inner_loss"], space)
    run_loop(folder / "main.py", "enumerate(trainloader)", space)


def gaussian(w: World) -> None:
    space = namespace(
        model=w.student, optimizer=w.optimizer, criterion=nn.CrossEntropyLoss(), noise_sd=w.config.sigma,
        loader=Sized(w.loader()), time=SimpleNamespace(time=lambda: 0), end=0, epoch=0,
        accuracy=lambda *_, **__: (torch.zeros(1), torch.zeros(1)), args=SimpleNamespace(print_freq=10**9),
        **{name: Meter() for name in ("losses", "top1", "top5", "batch_time", "data_time")},
    )  # fmt: skip
    run_loop(w.folder / "locuslab+smoothing/code/train.py", "enumerate(loader)", space)


def fgsm_pgi(w: World) -> None:
    """Run the loop of an epoch. Its momentum is divided by the batch's sum of gradients, ours by their mean."""
    images, labels = (torch.cat(parts) for parts in zip(*w.batches, strict=True))
    index, size, state = torch.arange(len(images)), len(w.batches[0][0]), w.objective.state
    delta, momentum = state.read(index, w.epoch - 1).double().unbind(1)
    space = namespace(
        model=w.student, opt=w.optimizer, epsilon=per_channel(w.eps), alpha=per_channel(w.step), clamp=clamp,
        lower_limit=torch.zeros(1), upper_limit=torch.ones(1), cifar_x=images, cifar_y=labels, batch_size=size,
        all_delta=delta.clone(), all_momentum=momentum / size, cur_order=index.numpy(), iter_num=len(w.batches),
        batch_idx=-size, num_of_example=len(images), atta_aug=lambda x, _: (x, {}), scheduler=Quiet(),
        train_loss=0, train_acc=0, train_n=0,
        args=SimpleNamespace(factor=0.6, momentum_decay=w.config.decay, lamda=w.config.consistency),
    )  # fmt: skip
    file = w.folder / "jiaxiaojunQAQ+FGSM-PGI/FGSM_MEP.py"
    run_loop(file, "range(iter_num)", run_definitions(file, ["_label_smoothing", "LabelSmoothLoss"], space))
    written = state.read(index, w.epoch)
    torch.testing.assert_close(written[:, 0], space["all_delta"].to(torch.float32))
    torch.testing.assert_close(written[:, 1], (size * space["all_momentum"]).to(torch.float32))


def liet(w: World) -> None:
    c, folder = w.config, w.folder / "fzjcdt+LIET"
    space = run_definitions(folder / "utils/custom_loss.py", ["CustomCrossEntropyLoss"], namespace())
    space |= {
        "model": w.student, "opt": w.optimizer, "eps": w.eps, "train_loader": w.loader(), "train_correct": 0,
        "configs": {
            "eps": 8, "li_update": c.update_steps, "class_num": CLASSES, "image_size": w.batches[0][0].shape[2],
            "min_mask_ratio": c.min_mask, "max_mask_ratio": c.max_mask, "tau": 1.0,
        },
        "criterion": space["CustomCrossEntropyLoss"](c.smoothing), "cur_lambda": c.consistency * w.epoch / c.epochs,
        "exp_avg": dict(w.student.state_dict()),
        **dict.fromkeys(("total_forward_num", "total_backward_num", "train_num"), 0),
    }  # fmt: skip

    def draw(like: Any) -> Tensor:
        """Stand for torch.rand(1) and torch.rand_like."""
        found: Tensor = w.replay.queue.pop(0)
        return found.flatten()[:1] if isinstance(like, int) else found.clone()

    with mock.patch.object(torch, "rand", draw), mock.patch.object(torch, "rand_like", draw):
        run_loop(folder / "main.py", "enumerate(train_loader)", space)


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


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        repository: OWNER/NAME@COMMIT of the code that was compared.
        changes: config fields that differ from the defaults.
        difference: why weights differ with BatchNorm; they must agree with GroupNorm all the same.
    side: of the images, in pixels.
    grads: number of input gradients that are compared; 0: one for every attack step.
    """

    defense: str
    repository: str
    run: Callable[[World], None]
    changes: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0  # counted from 0
    difference: str = ""
    side: int = 8
    grads: int = 0


MORE_PASSES = "the code makes more forward passes in train mode (see Differs)"
EVAL = "ours attacks in eval mode (see Differs)"
CASES = (
    Case("at", "locuslab/robust_overfitting@c47a25c", at, {"attack_bn_mode": "train"}),
    Case("trades", "yaodongyu/TRADES@6e8e11b", trades, {}, 0, MORE_PASSES),
    Case("fast-at", "locuslab/fast_adversarial@54f7287", fast_at, {}, 0, EVAL),
    Case("iad", "ZFancy/IAD@a8091a8", iad, {}, 100),
    Case("iad", "ZFancy/IAD@a8091a8", iad, {"variant": "II"}, 100),
    Case("mtard", "zhaoshiji123/MTARD@6480a1b", mtard),
    Case("adaad", "boyellow/AdaAD@9e5c6e5", adaad, {}, 0, MORE_PASSES),
    Case("adaad", "boyellow/AdaAD@9e5c6e5", adaad, {"form": "adaiad"}, 100, MORE_PASSES),
    Case("gaussian", "locuslab/smoothing@78a4d94", gaussian),
    Case("mart", "YisenWang/MART@2d83e17", mart),
    Case("n-fgsm", "pdejorge/N-FGSM@0a9e4f0", n_fgsm),
    Case("free-at", "locuslab/fast_adversarial@54f7287", free_at, {"batch_size": 8}),
    Case("gradalign", "tml-epfl/understanding-fast-adv-training@ceed494", gradalign),
    Case("fgsm-pgi", "jiaxiaojunQAQ/FGSM-PGI@fc15cfe", fgsm_pgi, {}, 1),
    Case("liet", "fzjcdt/LIET@8b2d3b8", liet, {}, 49, grads=2),
    Case("fat", "zjfheart/Friendly-Adversarial-Training@80a0640", fat, {}, 60, side=32, grads=1),
    Case("hat", "imrahulr/hat@3177a4f", hat),
    Case("lbgat", "dvlab-research/LBGAT@f7f33f0", lbgat, {}, 0, MORE_PASSES),
    Case("lbgat", "dvlab-research/LBGAT@f7f33f0", lbgat, {"beta": 6.0}),
    Case("ikl", "jiequancui/DKL@c5e8ad2", ikl, {}, 99),
    Case("ard", "goldblum/AdversariallyRobustDistillation@779ade3", ard),
    Case("ard", "goldblum/AdversariallyRobustDistillation@779ade3", ard, {"alpha": 0.5}),
    Case("rslad", "zibojia/RSLAD@c40e04f", rslad),
    Case("absld", "zhaoshiji123/ABSLD@7407c3a", absld),
    Case("saad", "HongsinLee/saad@295121c", saad, {}, 99, MORE_PASSES),
    Case("saad", "HongsinLee/saad@295121c", saad, {"beta": 1.0, "gamma": 2.0}, 99),
    Case("igdm", "HongsinLee/saad@295121c", igdm, {}, 99),
)
