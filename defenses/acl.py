"""ACL: contrastive pre-training on clean and attacked views, with BatchNorm of their own, then TRADES.

Paper:   Jiang et al., "Robust Pre-Training by Adversarial Contrastive Learning", NeurIPS 2020, arXiv:2010.13337; its
         best variant, "dual stream".
Code:    github.com/VITA-Group/Adversarial-Contrastive-Learning (no license: read, not copied); defaults follow its
         commands for CIFAR-10.
Family:  self-supervised, 2020
Cost:    4k + 12, then 2k + 7
Differs: views are made from float images on the device, with color operations before the crop. The warm-up of the
         learning rate changes every step.
Kept:    both views are attacked together, in Linf from uniform noise that is not clipped to [0, 1]. TRADES starts with
         the BatchNorm of the attacked views.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    contrastive_view,
    eval_mode,
    gather_batch,
    kl,
    lars,
    seed_from,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class ACLConfig(AdvTrainConfig):
    """Published values; TrainConfig's fields are for the pre-training."""

    epochs: int = 1000
    batch_size: int = 512
    lr: float = 5.0
    weight_decay: float = 1e-6
    schedule: str = "cosine"
    warmup: float = 10 / 1000
    augment: str = "none"  # the views are the augmentation
    inner_steps: int = 5
    temperature: float = 0.5
    color_jitter: float = 0.4  # strength for brightness, contrast, saturation; a quarter of it for hue
    grayscale_prob: float = 0.2
    hflip: bool = True  # horizontal flip with probability 1/2
    min_crop_area: float = 0.1  # smallest crop, as a fraction of the image area
    tune_epochs: int = 100
    tune_batch_size: int = 128
    tune_lr: float = 0.1
    tune_weight_decay: float = 2e-4
    tune_drops: tuple[float, ...] = (40 / 100, 60 / 100)
    tune_augment: str = "crop-flip"
    tune_inner_steps: int = 10
    beta: float = 6.0  # weight of TRADES' robust term

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("augment", "none")
        self.require("temperature", self.temperature > 0, "> 0")
        self.require("color_jitter", 0 <= self.color_jitter <= 1, "in [0, 1]")
        self.require("grayscale_prob", 0 <= self.grayscale_prob <= 1, "in [0, 1]")
        self.require("min_crop_area", 0 < self.min_crop_area <= 1, "in (0, 1]")
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("tune_inner_steps", self.tune_inner_steps >= 1, ">= 1")

    @property
    def tune_config(self) -> AdvTrainConfig:
        """Training settings of the adversarial fine-tuning: SGD. Services are those of the pre-training."""
        values = {name: getattr(self, name) for name in AdvTrainConfig.__dataclass_fields__}
        return replace(
            AdvTrainConfig(**values),
            epochs=self.tune_epochs,
            batch_size=self.tune_batch_size,
            lr=self.tune_lr,
            weight_decay=self.tune_weight_decay,
            schedule="step",
            drops=self.tune_drops,
            warmup=0.0,
            augment=self.tune_augment,
            inner_steps=self.tune_inner_steps,
        )


@DEFENSES.register("acl")
class ACL(Defense):
    """Contrastive pre-training on clean and attacked views without labels, then TRADES."""

    Config = ACLConfig
    version = 1
    model_attributes = ("features", "head")
    presets: ClassVar = {
        # Few epochs need a high learning rate. Digits have no color and must not be flipped.
        "quick": {
            "lr": 10.0,
            "weight_decay": 1e-6,
            "schedule": "cosine",
            "warmup": 1 / 12,
            "color_jitter": 0.0,
            "grayscale_prob": 0.0,
            "hflip": False,
            "min_crop_area": 0.5,
            "inner_steps": 2,
            "relative_step": 0.5,
            "tune_epochs": 12,
            "tune_augment": "none",
            "tune_inner_steps": 5,
        },
        "quick:large": {"epochs": 4, "warmup": 1 / 4, "batch_size": 64, "tune_epochs": 7, "tune_batch_size": 32},
        "cifar": {
            "epochs": 200,
            "batch_size": 512,
            "lr": 5.0,
            "weight_decay": 1e-6,
            "schedule": "cosine",
            "warmup": 10 / 200,
            "augment": "none",
            "tune_epochs": 50,
        },
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return the stages: pre-training of encoder and projector without labels, then TRADES."""
        cfg: ACLConfig = self.config
        projector, steps, tune = make_projector(setup), cfg.inner_steps, cfg.tune_inner_steps
        return [
            train_stage(
                cfg,
                "pretrain",
                lambda: ACLObjective(setup.model, projector, setup.threat, cfg),
                optimizer=lars(cfg),
                passes=PassCounts(forward=2 * steps + 4, input_grad=2 * steps, weight_grad=4),
                whole_batch=True,  # the other images of a batch are the negatives
            ),
            train_stage(
                cfg.tune_config,
                "fine-tune",
                lambda: TuneObjective(setup.model, setup.threat, cfg),
                passes=PassCounts(forward=tune + 3, input_grad=tune, weight_grad=2),
            ),
        ]


class Embedder(nn.Module):
    """Projected features of images: (B, C, H, W) -> (B, D)."""

    def __init__(self, model: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.model, self.projector = model, projector

    def forward(self, images: Tensor) -> Tensor:
        """Embed images."""
        return cast(Tensor, self.projector(self.model.features(images))).float()  # type: ignore[operator]


class ACLObjective(nn.Module):
    """Mean of the contrast of two clean views and of the same views attacked, each with its own BatchNorm layers."""

    def __init__(self, model: nn.Module, projector: nn.Module, threat: ThreatModel, config: ACLConfig) -> None:
        super().__init__()
        self.embedder, self.threat, self.config = Embedder(model, projector), threat, config
        cast(nn.Module, model.head).requires_grad_(False)  # not used in pre-training
        norms = {name: m for name, m in self.embedder.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self.norm_names = list(norms)
        self.norms_of_clean = nn.ModuleList(copy.deepcopy(norm) for norm in norms.values())  # the model has the others

    def forward(self, batch: Batch) -> Loss:
        """Draw two views, attack both and compute the loss; metrics "contrast" and "adv_contrast"."""
        cfg, rng = self.config, batch.rng
        views = torch.cat(
            [
                contrastive_view(
                    batch.images,
                    rng.child("view", i),
                    color_jitter=cfg.color_jitter,
                    grayscale_prob=cfg.grayscale_prob,
                    hflip=cfg.hflip,
                    min_crop_area=cfg.min_crop_area,
                )
                for i in (1, 2)
            ]
        )
        adv = self.attack_views(views, batch)
        adv_contrast = nt_xent(self.embedder(adv), cfg.temperature).mean()
        contrast = nt_xent(self.embed_clean(views), cfg.temperature).mean()
        metrics = {"contrast": contrast.detach(), "adv_contrast": adv_contrast.detach()}
        return Loss((contrast + adv_contrast) / 2, metrics)

    def attack_views(self, views: Tensor, batch: Batch) -> Tensor:
        """Maximize the contrast of both views (2B, C, H, W), in the balls around them."""
        cfg, threat = self.config, self.config.threat_at_epoch(self.threat, batch.epoch)
        rngs, first = [batch.rng.child("start", i) for i in (1, 2)], batch.images
        if threat.norm == "Linf":
            start = views + threat.eps * (2 * torch.cat([rng.uniform_like(first) for rng in rngs]) - 1)
        else:
            pairs = zip(views.chunk(2), rngs, strict=True)
            start = torch.cat([threat.random_start(view, rng) for view, rng in pairs])
        with cfg.inner_attack_mode(self.embedder):
            return cfg.pgd_ascent(lambda adv: nt_xent(self.embedder(adv), cfg.temperature), start, views, threat)

    def embed_clean(self, images: Tensor) -> Tensor:
        """Embed images with the BatchNorm layers of clean images."""
        layers = zip(self.norm_names, self.norms_of_clean, strict=True)
        values = {
            f"{name}.{key}": value
            for name, norm in layers
            for key, value in (*norm.named_parameters(), *norm.named_buffers())
        }
        return cast(Tensor, functional_call(self.embedder, values, (images,)))


def nt_xent(embeddings: Tensor, temperature: float) -> Tensor:
    """Compute SimCLR's NT-Xent loss of each embedding: (2b, D), all first views, then all second ones -> (2b,).

    The positive of an anchor is the other view of its image; the denominator has all other 2B - 1 embeddings. With one
    process b = B. With several, each has the anchors of its b images.
    """
    with torch.autocast(embeddings.device.type, enabled=False):  # bf16 is too coarse for the exponent
        unit = F.normalize(embeddings.float())
        pairs, begin = gather_batch(torch.stack(unit.chunk(2), dim=1))  # (B, 2, D)
        logits = unit @ pairs.transpose(0, 1).flatten(0, 1).T / temperature  # (2b, 2B)
        count = torch.arange(begin, begin + len(unit) // 2, device=unit.device)
        first, second = count, count + len(pairs)
        logits = logits.scatter(1, torch.cat((first, second))[:, None], -torch.inf)  # not against itself
        return F.cross_entropy(logits, torch.cat((second, first)), reduction="none")


def make_projector(setup: DefenseSetup) -> nn.Module:
    """Build the projector, three linear layers with BatchNorm, from the run's seed, on the model's device."""
    weight = next(setup.model.parameters())
    with eval_mode(setup.model), torch.no_grad():
        images = torch.zeros(1, *setup.image_shape, device=weight.device, dtype=weight.dtype)
        width = setup.model.features(images).shape[1]  # type: ignore[operator]
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_from(setup.seed, "acl", "projector"))
        for number in range(3):
            layers += [nn.Linear(width, width, bias=number == 0), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(weight.device)


class TuneObjective(nn.Module):
    """TRADES: CE(S(x), y) + beta * KL(p_S(x) || p_S(x'))."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: ACLConfig) -> None:
        super().__init__()
        self.model, self.threat, self.beta, self.config = model, threat, config.beta, config.tune_config
        cast(nn.Module, model.head).requires_grad_(True)

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss; metrics "clean_loss" and "robust_kl", each a mean over the batch."""
        adv = self.inner_maximization(batch)
        logits = self.model(batch.images)
        clean_loss, robust = F.cross_entropy(logits, batch.labels), kl(logits, self.model(adv)).mean()
        return Loss(clean_loss + self.beta * robust, {"clean_loss": clean_loss.detach(), "robust_kl": robust.detach()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_S(x) || p_S(x')), as TRADES does."""
        return self.config.kl_ascent(self.model, batch, self.threat)
