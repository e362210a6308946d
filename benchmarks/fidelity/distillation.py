"""Published code of adversarial distillation, each on a `World`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from published import namespace, run_definitions, run_loop
from torch import nn
from world import CLASSES, ProgressBar, Sized, World


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
