"""Self-supervised pre-training beside its published code: MIMIR's masked autoencoder and ACL's contrast."""

from __future__ import annotations

import copy
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from published import namespace, record_draws, run_definitions, run_loop
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from world import Meter, Sized, World

from robobench.api import contrastive_view

NO_INIT = mock.patch.object(Tensor, "uniform_", lambda tensor, *_, **__: tensor)  # weights are loaded afterward


class ViT(nn.Module):
    """A timm ViT whose positions are not trained, as in MIMIR; records the gradients that reach its input."""

    def __init__(self, seed: int, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = VisionTransformer(img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=0)
            self.head = nn.Linear(16, classes)
        self.net.get_parameter("pos_embed").requires_grad_(False)
        self.input_grads: list[Tensor] = []

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images, and note the gradients that reach them."""
        return keep_gradient(images, self.input_grads)

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, 3, 8, 8) to the CLS token (B, 16)."""
        features: Tensor = self.net(images)
        return features


def keep_gradient(images: Tensor, found: list[Tensor]) -> Tensor:
    """Return images whose gradients are appended to `found`."""
    if images.requires_grad:
        images = images.view_as(images)
        images.register_hook(lambda grad: found.append(grad.detach().clone()))  # type: ignore[no-untyped-call]
    return images


def mimir(w: World) -> None:
    """Run the pre-training loop on the published autoencoder with our weights, and copy the trained ones back.

    The noise of the published masks is replaced by one whose order keeps our tokens in raster order.
    """
    folder = w.folder / "xiaoyunxxy+MIMIR"
    theirs, student = published_autoencoder(folder, w), cast(ViT, w.student)
    w.optimizer.param_groups[0]["params"] = [p for p in theirs.parameters() if p.requires_grad]

    def mask_noise(count: int, length: int, **_: Any) -> Tensor:
        order = w.replay.queue.pop(0).argsort(dim=1, stable=True)
        kept = int(length * (1 - w.config.mask_ratio))
        order = torch.cat((order[:, :kept].sort(dim=1).values, order[:, kept:]), dim=1)
        return torch.empty(count, length).scatter(1, order, torch.arange(float(length)).expand(count, -1))

    found = run_definitions(folder / "pgd_mae/pgd_mae.py", ["PGD_MAE"], namespace(Attack=object))["PGD_MAE"]
    attacker: Any = found.__new__(found)
    vars(attacker).update(
        model=lambda images: theirs(keep_gradient(images, student.input_grads)), device="cpu", eps=w.eps,
        alpha=w.config.pretrain_relative_step * w.eps, steps=1, random_start=True, targeted=False, upper_limit=1,
        lower_limit=0,
    )  # fmt: skip
    space = namespace(
        model=theirs, optimizer=w.optimizer, data_loader=Sized(w.loader()), epoch=0, accum_iter=1, print_freq=1,
        header="", math=math, lr_sched=Nothing(), misc=Nothing(), log_writer=None, sys=sys,
        loss_scaler=lambda loss, optimizer, **_: (loss.backward(), optimizer.step()),
        attack=lambda images, labels: attacker.forward(images, labels),
        args=Nothing(mask_ratio=w.config.mask_ratio, mi_train="hsic", mi_xpl=w.config.bottleneck),
        metric_logger=Nothing(log_every=lambda loader, *_: loader),
    )  # fmt: skip
    names = ["distmat", "kernelmat", "hsic_normalized_cca"]
    run_definitions(folder / "MI/hsic.py", names, space)
    with (
        mock.patch.object(torch, "rand", mask_noise),
        mock.patch.object(torch, "FloatTensor", torch.DoubleTensor),
        mock.patch.object(torch.cuda.amp, "autocast", lambda: torch.enable_grad()),
    ):
        run_loop(folder / "pretrain.py", "enumerate(metric_logger", space)
    student.net.load_state_dict(theirs.state_dict(), strict=False)


def published_autoencoder(folder: Path, w: World) -> nn.Module:
    """Return the published autoencoder with the weights of ours."""
    sys.path.insert(0, str(folder))
    from timm.models.vision_transformer import Block, PatchEmbed  # type: ignore[attr-defined]
    from util.pos_embed import get_2d_sincos_pos_embed  # type: ignore[import-not-found]

    space = namespace(Block=Block, PatchEmbed=PatchEmbed, get_2d_sincos_pos_embed=get_2d_sincos_pos_embed)
    cls = run_definitions(folder / "models/mae_vit.py", ["MaskedAutoencoderViT"], space)["MaskedAutoencoderViT"]
    c = w.config
    with NO_INIT, mock.patch.object(np, "float", float, create=True):  # a name that numpy dropped
        theirs: nn.Module = cls(
            img_size=8, patch_size=2, embed_dim=16, depth=2, num_heads=2, decoder_embed_dim=c.decoder_width,
            decoder_depth=c.decoder_depth, decoder_num_heads=c.decoder_heads, norm_pix_loss=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        ).double()  # fmt: skip
    ours = w.objective.decoder.state_dict()
    names = {"embed": "decoder_embed", "to_pixels": "decoder_pred", "mask_token": "mask_token"}
    depth = c.decoder_depth
    renamed = {}
    for key, value in ours.items():
        first, _, rest = key.partition(".")
        if first == "blocks":
            number, _, rest = rest.partition(".")
            first = "decoder_norm" if int(number) == depth else f"decoder_blocks.{number}"
        renamed[".".join(part for part in (names.get(first, first), rest) if part)] = value
    missing, unexpected = theirs.load_state_dict({**cast(ViT, w.student).net.state_dict(), **renamed}, strict=False)
    assert not unexpected and set(missing) == {"decoder_pos_embed"}, (missing, unexpected)
    torch.testing.assert_close(theirs.get_parameter("decoder_pos_embed")[0, 1:], w.objective.decoder.positions.double())
    return theirs


class Nothing:
    """Given attributes; all others are functions that do nothing."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0.0


class DualNet(nn.Module):
    """The student with a second set of BatchNorm layers, and their projector: net(images, "normal" or "pgd")."""

    def __init__(self, student: Any, projector: nn.Module) -> None:
        super().__init__()
        self.pgd, self.normal, self.projector = student, copy.deepcopy(student), projector
        for n, layer in enumerate(student.body):
            if not isinstance(layer, nn.BatchNorm2d):
                self.normal.body[n] = layer  # shared

    def forward(self, images: Tensor, name: str) -> Tensor:
        """Embed images with the BatchNorm layers of this name."""
        projected: Tensor = self.projector(getattr(self, name).features(images), name)
        return projected


def acl(w: World) -> None:
    """Run the pre-training loop with our views, and our initial projector in theirs."""
    folder = w.folder / "VITA-Group+Adversarial-Contrastive-Learning"
    student: Any = w.student
    space = namespace(args=Nothing(ACL_DS=True, pgd_iter=w.inner_steps, print_freq=10**9), time=Nothing(), epoch=0)
    run_definitions(folder / "models/resnet_multi_bn.py", ["batch_norm_multiple", "proj_head"], space)
    run_definitions(folder / "utils.py", ["pair_cosine_similarity", "nt_xent"], space)
    run_definitions(folder / "train_simCLR.py", ["PGD_contrastive"], space)
    with NO_INIT:
        projector = space["proj_head"](student.head.in_features, ["normal", "pgd"]).double()
    ours = w.objective.embedder.projector
    for number in range(3):
        linear, norm = ours[3 * number], ours[3 * number + 1]
        getattr(projector, f"fc{number + 1}").load_state_dict(linear.state_dict())
        for part in getattr(projector, f"bn{number + 1}").bn_list:
            part.load_state_dict(norm.state_dict())
    model = DualNet(w.student, projector)
    w.optimizer.param_groups[0]["params"] = list(model.parameters())
    rngs = list(w.rngs)

    def pairs() -> Any:
        """Give the views as the published loader does: (B, 2, C, H, W)."""
        for images, _ in w.loader():
            rng, names = rngs.pop(0), ("color_jitter", "grayscale_prob", "hflip", "min_crop_area")
            values = {name: getattr(w.config, name) for name in names}
            with record_draws([]):
                views = [contrastive_view(images, rng.child("view", i), **values) for i in (1, 2)]
            drop = len(w.replay.queue) - 2  # the starts of both views are drawn last
            del w.replay.queue[:drop]
            yield torch.stack(views, dim=1)

    def uniform(like: Tensor) -> Tensor:
        first, second = w.replay.queue.pop(0), w.replay.queue.pop(0)
        return torch.stack((first, second), dim=1).flatten(0, 1)

    space |= {
        "model": model, "optimizer": w.optimizer, "scheduler": Nothing(), "train_loader": Sized(pairs()),
        "losses": Meter(), "data_time_meter": Meter(), "train_time_meter": Meter(), "end": 0.0, "log": Nothing(),
    }  # fmt: skip
    attack = space["PGD_contrastive"]
    space["PGD_contrastive"] = lambda *given, **more: attack(*given, eps=w.eps, alpha=w.step, **more)
    with mock.patch.object(torch, "rand_like", uniform):
        run_loop(folder / "train_simCLR.py", "enumerate(train_loader)", space)
    grads = student.input_grads  # theirs are ordered by image, ours by view
    grads[:] = [grad.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) for grad in grads]
