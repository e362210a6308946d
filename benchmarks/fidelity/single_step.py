"""Published code of single-step adversarial training, each on a `World`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from published import Quiet, namespace, run_definitions, run_loop
from torch import Tensor, nn
from world import CLASSES, Sized, World, clamp, per_channel


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
