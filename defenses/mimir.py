"""MIMIR: a masked autoencoder on attacked images with an information bottleneck, then adversarial training.

Paper:   Xu et al., "MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness", 2023,
         arXiv:2312.04960.
Code:    github.com/xiaoyunxxy/MIMIR (no license: read, not copied); defaults follow script/train_cifar10.sh, which
         trains a ViT-S with patches of 2 px on generated images too (`--extra`).
Family:  self-supervised, 2023
Cost:    5 once (a quarter of it for a ViT), then 2k + 3
Reports: CIFAR-10, Linf 8/255, ViT-S: 88.11 % clean, 53.18 % AutoAttack (README).
Differs: the code trains ViTs only. Here a timm ViT with one prefix token is trained as there; any other model gets the
         attacked image with gray in place of the removed patches, and the decoder sees its pooled features only. A
         ViT has timm's initial weights and trained positions, and no weight decay on them. Kept tokens stay in raster
         order, so that the bottleneck compares images patch by patch; in the code their order is random.
Kept:    the attack maximizes the error of reconstructing the attacked image itself, with another mask than the
         training step, and its gradient also flows through the target. The bottleneck is added, so that training
         lowers the dependence of attacked image and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    KeyedRng,
    Loss,
    MAEDecoder,
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    attack_mode,
    count_kept,
    gather_batch,
    grid_of,
    keep_tokens,
    patchify,
    pgd_ascent,
    seed_from,
    take_tokens,
    train_stage,
)

BANDWIDTH = 5.0  # sigma of the Gaussian kernels, in units of sqrt(dimension)
RIDGE = 1e-5  # regularizer of their inverses


@dataclass(frozen=True, kw_only=True)
class MIMIRConfig(AdvTrainConfig):
    """Published values. TrainConfig's fields are for the adversarial training after the pre-training."""

    epochs: int = 50
    lr: float = 0.025  # 0.05 * 128 / 256
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    decay_norms: bool = False
    layer_decay: float = 0.65
    schedule: str = "cosine"
    warmup: float = 5 / 50
    label_smoothing: float = 0.1
    pretrain_epochs: int = 800
    pretrain_batch_size: int = 512
    pretrain_lr: float = 3e-4  # 1.5e-4 * 512 / 256
    pretrain_warmup: float = 40 / 800  # warm-up, as a fraction of the pre-training
    pretrain_weight_decay: float = 0.05
    pretrain_relative_step: float = 1.25  # step size of the one attack step, in units of eps: 10/255 at 8/255
    mask_ratio: float = 0.75
    bottleneck: float = 1e-5  # weight of HSIC(x', z); lambda in the paper
    patch: int = 2  # side length in pixels; a ViT has its own
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("mask_ratio", 0 < self.mask_ratio < 1, "between 0 and 1")
        self.require("bottleneck", self.bottleneck >= 0, ">= 0")
        self.require("pretrain_relative_step", self.pretrain_relative_step > 0, "> 0")
        for name in ("patch", "decoder_depth", "decoder_heads"):
            self.require(name, getattr(self, name) >= 1, ">= 1")
        divides = (
            self.decoder_width > 0 and self.decoder_width % 4 == 0 and self.decoder_width % self.decoder_heads == 0
        )
        self.require("decoder_width", divides, f"a multiple of 4 and of decoder_heads = {self.decoder_heads}")
        _ = self.pretrain_config  # checks its values

    @property
    def pretrain_config(self) -> TrainConfig:
        """Training settings of the pre-training: AdamW, as in the MAE paper."""
        return TrainConfig(
            epochs=self.pretrain_epochs,
            batch_size=self.pretrain_batch_size,
            lr=self.pretrain_lr,
            optimizer="adamw",
            adam_beta2=0.95,
            decay_norms=False,
            weight_decay=self.pretrain_weight_decay,
            schedule="cosine",
            warmup=self.pretrain_warmup,
            augment=self.augment,
            eps_rampup=self.eps_rampup,
        )


@DEFENSES.register("mimir")
class MIMIR(Defense):
    """Masked autoencoder on attacked images with an information bottleneck, then adversarial training."""

    Config = MIMIRConfig
    version = 1
    model_attributes = ("features", "head")
    presets: ClassVar = {
        # SGD at the preset's rate: the published rates are for the layers of a ViT.
        "quick": {
            "optimizer": "sgd",
            "decay_norms": True,
            "layer_decay": 1.0,
            "warmup": 0.0,
            "weight_decay": 5e-4,
            "label_smoothing": 0.0,
            "inner_steps": 5,
            "pretrain_epochs": 12,
            "pretrain_batch_size": 64,
            "pretrain_lr": 1e-3,
            "pretrain_warmup": 0.1,
            "patch": 4,
            "decoder_width": 32,
            "decoder_depth": 1,
            "decoder_heads": 2,
        },
        "quick:large": {"inner_steps": 3, "pretrain_epochs": 4},
        "cifar": {"schedule": "cosine", "lr": 0.025, "weight_decay": 0.05, "patch": 4},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return the pre-training without labels, and the adversarial training.

        Raises:
            ValueError: the patches do not fill the image, or a mask keeps none of them, or all.
        """
        cfg: MIMIRConfig = self.config
        pretraining, steps = MIMIRObjective(setup.model, setup.threat, cfg, setup), cfg.inner_steps
        share = pretraining.share
        return [
            train_stage(
                cfg.pretrain_config,
                "pretrain",
                pretraining,
                passes=PassCounts(forward=2 * share, input_grad=share, weight_grad=share),
                whole_batch=True,  # the bottleneck compares the images of a batch
            ),
            train_stage(
                cfg,
                "fine-tune",
                lambda: FineTuneObjective(setup.model, setup.threat, cfg),
                passes=PassCounts(forward=steps + 1, input_grad=steps, weight_grad=1),
            ),
        ]


class MIMIRObjective(nn.Module):
    """MSE of the removed patches of x, predicted from the visible patches of x', plus lambda * HSIC(x', z).

    Attributes:
        share: fraction of a forward pass that an encoding costs: 1, or that of the visible tokens of a ViT.
    """

    def __init__(self, model: nn.Module, threat: ThreatModel, config: MIMIRConfig, setup: DefenseSetup) -> None:
        super().__init__()
        self.model, self.threat, self.config, vit = model, threat, config, find_vit(model)
        cast(nn.Module, model.head).requires_grad_(False)  # not used in pre-training
        shape, self.patch, self.norm = setup.image_shape, config.patch, nn.Identity()
        if vit is None:
            self.grid = grid_of(shape, self.patch, "patch")
            width = cast(nn.Linear, model.head).in_features
        else:
            self.patch, self.grid, width = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size, vit.embed_dim
            if isinstance(vit.norm, nn.Identity):  # it has its norm after pooling, which begins in the next stage
                self.norm = nn.LayerNorm(width, eps=1e-6)  # type: ignore[assignment]
        self.count = self.grid[0] * self.grid[1]  # L
        kept = count_kept(self.count, config.mask_ratio)
        if not 1 <= kept < self.count:
            raise ValueError(
                f"mask_ratio {config.mask_ratio} keeps {kept} of {self.count} patches, allowed are 1 to "
                f"{self.count - 1}; choose another ratio or patch"
            )
        self.share = 1.0 if vit is None else kept / self.count
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(setup.seed, "mimir", "decoder"))
            self.decoder = MAEDecoder(
                width,
                self.grid,
                shape[0] * self.patch**2,
                config.decoder_width,
                config.decoder_depth,
                config.decoder_heads,
            )
        self.to(next(model.parameters()).device)

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss; metrics "pixel_loss" and "hsic" (between 0 and the batch size)."""
        adv, kept = self.inner_maximization(batch), self.draw_mask(batch.rng.child("mask"))
        errors, latent = self.errors(adv, batch.images, kept)
        pixel_loss = errors.mean()
        dependence = hsic(gather_batch(latent.flatten(1))[0], gather_batch(adv.flatten(1))[0])
        total = pixel_loss + self.config.bottleneck * dependence
        return Loss(total, {"pixel_loss": pixel_loss.detach(), "hsic": dependence.detach()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Take one ascent step on the reconstruction error of x' itself, from a uniform random start in the ball."""
        threat = self.config.pretrain_config.threat_at_epoch(self.threat, batch.epoch)
        start = threat.random_start(batch.images, batch.rng.child("start"))
        kept = self.draw_mask(batch.rng.child("attack-mask"))

        def objective(adv: Tensor) -> Tensor:
            return self.errors(adv, adv, kept)[0]

        with attack_mode(self):
            return pgd_ascent(
                objective, start, batch.images, threat, 1, self.config.pretrain_relative_step * threat.eps
            )

    def draw_mask(self, rng: KeyedRng) -> Tensor:
        """Draw the patches (B, n) that stay visible."""
        return keep_tokens(rng, self.count, self.config.mask_ratio)

    def errors(self, adv: Tensor, target: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct `target` from the visible patches of `adv`.

        Returns:
            The squared error per value of each image (B,), over removed patches normalized to mean 0 and variance 1,
            and the latent tokens z (B, m, D).
        """
        vit = find_vit(self.model)
        if vit is None:
            latent = self.model.features(gray_out(adv, kept, self.patch, self.grid))[:, None]  # type: ignore[operator]
            predicted = self.decoder(latent, latent[:, :0], kept[:, :0])
        else:
            prepared = self.model.prepare(adv)  # type: ignore[operator]
            target = prepared if target is adv else self.model.prepare(target)  # type: ignore[operator]
            latent = self.norm(encode_visible(vit, prepared, kept)).float()
            predicted = self.decoder(latent[:, :1], latent[:, 1:], kept)
        patches = patchify(target, self.patch)
        variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
        patches = (patches - mean) / (variance + 1e-6).sqrt()
        removed = torch.ones(patches.shape[:2], device=adv.device, dtype=patches.dtype).scatter(1, kept, 0.0)
        return ((predicted - patches).square().mean(2) * removed).sum(1) / removed.sum(1), latent


def find_vit(model: nn.Module) -> Any:
    """Return the timm ViT with one prefix token inside a model, or None."""
    net: Any = getattr(model, "net", model)
    parts = ("patch_embed", "_pos_embed", "norm_pre", "blocks", "norm")
    return net if all(hasattr(net, part) for part in parts) and net.num_prefix_tokens == 1 else None


def encode_visible(vit: Any, images: Tensor, kept: Tensor) -> Tensor:
    """Return CLS and the tokens at `kept` (B, n) of a timm ViT, after its last norm: (B, 1 + n, D)."""
    tokens = vit._pos_embed(vit.patch_embed(images))
    tokens = torch.cat((tokens[:, :1], take_tokens(tokens[:, 1:], kept)), dim=1)
    return cast(Tensor, vit.norm(vit.blocks(vit.norm_pre(tokens))))


def gray_out(images: Tensor, kept: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Replace all patches but those at `kept` (B, n) by 0.5: (B, C, H, W) -> (B, C, H, W)."""
    visible = torch.zeros(len(images), grid[0] * grid[1], device=images.device, dtype=images.dtype)
    visible = visible.scatter(1, kept, 1.0).view(-1, 1, *grid)
    visible = visible.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images * visible + 0.5 * (1 - visible)


def hsic(x: Tensor, y: Tensor) -> Tensor:
    """Return the normalized Hilbert-Schmidt independence criterion of x (B, D) and y (B, E): 0 if independent.

    trace(Rx Ry) with R = K (K + B ridge I)^-1, where K is the centered Gaussian kernel of the batch.

    Source: Ma, Lewis and Kleijn, "The HSIC Bottleneck", AAAI 2020, arXiv:1908.01580.
    """
    with torch.autocast(x.device.type, enabled=False):
        first, second = (dependence_operator(values.float()) for values in (x, y))
        return (first * second.T).sum()


def dependence_operator(values: Tensor) -> Tensor:
    """Return K (K + B ridge I)^-1 of values (B, D): (B, B)."""
    count, dims = values.shape
    norms = values.square().sum(1)
    distances = (norms[:, None] - 2 * values @ values.T + norms).abs()
    kernel = (-distances / (2 * BANDWIDTH**2 * dims)).exp()
    centered = kernel - kernel.mean(1, keepdim=True)
    eye = torch.eye(count, device=values.device, dtype=values.dtype)
    solution: Tensor = torch.linalg.solve(centered + RIDGE * count * eye, centered, left=False)
    return solution


class FineTuneObjective(nn.Module):
    """Mean cross-entropy on PGD examples from a uniform random start."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: MIMIRConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        cast(nn.Module, model.head).requires_grad_(True)

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss."""
        return Loss(F.cross_entropy(self.model(self.inner_maximization(batch)), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the cross-entropy."""
        threat = self.config.threat_at_epoch(self.threat, batch.epoch)

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = threat.random_start(batch.images, batch.rng.child("start"))
        with self.config.inner_attack_mode(self.model):
            return self.config.pgd_ascent(objective, start, batch.images, threat)
