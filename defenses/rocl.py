"""RoCL: adversarial contrastive pre-training without labels, then a classifier head.

Paper:   Kim, Tack and Hwang, "Adversarial Self-Supervised Contrastive Learning", NeurIPS 2020, arXiv:2006.07589.
Code:    github.com/Kim-Minseon/RoCL (no license: read, not copied); defaults follow its commands.
Family:  self-supervised, 2020
Cost:    2k + 16; 1 for the epochs of the head
Differs: the step size is 0.25 eps; the code has 0.007 / 0.0314. The attack embeds its target view once; the code
         embeds it in every step (equal in eval mode). Views are made from float images on the device, without
         rounding to uint8 between color operations. The learning rate changes every step, not every epoch.
         "fine-tune" is adversarial training from the pre-trained weights; the code's version leaves BatchNorm in
         eval mode after the first batch.
Kept:    only the anchor of a similarity gets a gradient. The third view of an image is in the denominator. The cosine
         schedule has the length of the whole training, although it begins after the warm-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

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
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    attack_mode,
    contrastive_view,
    eval_mode,
    gather_batch,
    lars,
    linear_head_stages,
    lr_schedule,
    pgd_ascent,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class RoCLConfig(AdvTrainConfig):
    """Published values; TrainConfig's fields are for the pre-training. The presets are shorter and reach less."""

    epochs: int = 1000
    batch_size: int = 512
    lr: float = 1.5  # peak; the warm-up starts at 1/15 of it
    lr_warmup: float = 10 / 1000  # warm-up, as a fraction of training
    weight_decay: float = 1e-6
    schedule: str = "cosine"
    augment: str = "none"  # the views are the augmentation
    color_jitter: float = 0.4  # strength for brightness, contrast, saturation; a quarter of it for hue
    grayscale_prob: float = 0.2
    hflip: bool = True  # horizontal flip with probability 1/2
    min_crop_area: float = 0.08  # smallest crop, as a fraction of the image area
    inner_steps: int = 7
    temperature: float = 0.5  # tau
    regularizer: float = 1 / 256  # lambda: weight of the contrast of the attacked and the target view
    projection: int = 2048  # hidden width of the projector; its output has 128 values
    head: str = "linear"  # how the head is trained: linear | robust-linear | fine-tune (whole model, attacked)
    head_epochs: int = 150
    head_batch_size: int = 1024
    head_lr: float = 0.1
    head_weight_decay: float = 5e-4
    head_drops: tuple[float, ...] = (30 / 150, 50 / 150, 100 / 150)
    head_inner_steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("augment", "none")
        self.require("lr_warmup", 0 <= self.lr_warmup < 1, "in [0, 1)")
        self.require("color_jitter", 0 <= self.color_jitter <= 1, "in [0, 1]")
        self.require("grayscale_prob", 0 <= self.grayscale_prob <= 1, "in [0, 1]")
        self.require("min_crop_area", 0 < self.min_crop_area <= 1, "in (0, 1]")
        self.require("temperature", self.temperature > 0, "> 0")
        self.require("regularizer", self.regularizer >= 0, ">= 0")
        for name in ("head_inner_steps", "projection"):
            self.require(name, getattr(self, name) >= 1, ">= 1")
        self.one_of("head", "linear", "robust-linear", "fine-tune")
        _ = self.head_config  # checks the head's values

    @property
    def head_config(self) -> TrainConfig:
        """Training settings of the head: SGD, no augmentation."""
        return TrainConfig(
            epochs=self.head_epochs,
            batch_size=self.head_batch_size,
            lr=self.head_lr,
            momentum=self.momentum,
            weight_decay=self.head_weight_decay,
            drops=self.head_drops,
            augment="none",
        )


# Chosen on held-out training images (docs/paper.md): the published rate does not converge after a short pre-training.
_HEAD = {"head_batch_size": 128, "head_lr": 0.01}


@DEFENSES.register("rocl")
class RoCL(Defense):
    """Adversarial contrastive pre-training without labels, then a linear head."""

    Config = RoCLConfig
    version = 2
    model_attributes = ("features", "head")
    presets: ClassVar = {
        # Few epochs need a high learning rate. Digits have no color and must not be flipped.
        "quick": {
            "lr": 10.0,
            "lr_warmup": 1 / 12,
            "weight_decay": 1e-6,
            "schedule": "cosine",
            "color_jitter": 0.0,
            "grayscale_prob": 0.0,
            "hflip": False,
            "min_crop_area": 0.5,
            "inner_steps": 2,
            "relative_step": 0.5,
            "projection": 512,
            **_HEAD,
        },
        "quick:large": {"epochs": 4, "lr_warmup": 1 / 4, "batch_size": 64},
        "cifar": {
            "epochs": 200,
            "batch_size": 512,
            "lr": 1.5,
            "schedule": "cosine",
            "weight_decay": 1e-6,
            "augment": "none",
            "lr_warmup": 10 / 200,
            **_HEAD,
        },
        # The number of iterations that section 4.4 of the MACD paper states for RoCL.
        "paper": {"epochs": 150, "lr_warmup": 10 / 150},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return the stages: pre-training of encoder and projector without labels, then the head."""
        cfg: RoCLConfig = self.config
        model, head, steps = setup.model, cfg.head_config, cfg.inner_steps
        projector = make_projector(setup, cfg.projection)
        pretrain = train_stage(
            self.config,
            "pretrain",
            lambda: RoCLObjective(model, projector, setup.threat, cfg),
            optimizer=lars(cfg),
            schedule=warmup_schedule(cfg),
            passes=PassCounts(forward=steps + 6, input_grad=steps, weight_grad=5),
            whole_batch=True,  # the other images of a batch are the negatives
        )
        if cfg.head == "linear":
            return [pretrain, *linear_head_stages(setup, head, "linear-eval", cfg)]
        attack = cfg.head_inner_steps
        attacked_head = train_stage(
            head,
            "fine-tune" if cfg.head == "fine-tune" else "linear-eval",
            lambda: RoCLHeadObjective(model, setup.threat, cfg),
            # The gradient of the linear layer itself is negligible.
            passes=PassCounts(forward=attack + 1, input_grad=attack, weight_grad=float(cfg.head == "fine-tune")),
        )
        return [pretrain, attacked_head]


class RoCLObjective(nn.Module):
    """NT-Xent of two views and an attacked view, plus lambda times NT-Xent of the attacked and its target view."""

    def __init__(self, model: nn.Module, projector: nn.Module, threat: ThreatModel, config: RoCLConfig) -> None:
        super().__init__()
        self.model, self.projector, self.threat, self.config = model, projector, threat, config
        get_head(model).requires_grad_(False)  # not used in pre-training

    def embed(self, images: Tensor) -> Tensor:
        """Compute projected features: (B, C, H, W) -> (B, 128)."""
        return cast(Tensor, self.projector(self.model.features(images)))  # type: ignore[operator]

    def forward(self, batch: Batch) -> Loss:
        """Draw two views, attack the first one against the second, and compute the loss, a mean over anchors."""
        cfg = self.config
        first, second = (draw_view(batch.images, batch.rng.child("view", i), cfg) for i in (1, 2))
        adv = self.inner_maximization(first, second, batch)
        contrast = nt_xent(self.embed(torch.cat((first, second, adv))), 3, cfg.temperature).mean()
        regularizer = nt_xent(self.embed(torch.cat((adv, second))), 2, cfg.temperature).mean()
        total = contrast + cfg.regularizer * regularizer
        return Loss(total, {"contrast": contrast.detach(), "adv_contrast": regularizer.detach()})

    def inner_maximization(self, first: Tensor, second: Tensor, batch: Batch) -> Tensor:
        """Maximize the contrastive loss of view `first` with target `second`, in the ball around `first`."""
        cfg, threat = self.config, self.config.threat_at_epoch(self.threat, batch.epoch)
        start = threat.random_start(first, batch.rng.child("start"))
        with cfg.inner_attack_mode(self.model, self.projector):
            with torch.no_grad():
                target = self.embed(second)

            def objective(adv: Tensor) -> Tensor:
                # Keys are detached, so each image affects the loss of its anchor only.
                return nt_xent(torch.cat((self.embed(adv), target)), 2, cfg.temperature)[: len(adv)]

            return cfg.pgd_ascent(objective, start, first, threat)


def nt_xent(embeddings: Tensor, views: int, temperature: float) -> Tensor:
    """Compute the NT-Xent loss of each embedding: (V b, D), ordered by view -> (V b,).

    The loss of an anchor is a sum over its V - 1 positives (the other views of its image). The denominator has all
    other V B - 1 embeddings. Only the anchor's side of a similarity gets a gradient. With one process b = B. With
    several, each has the anchors of its b images, and the embeddings of the whole batch as keys.
    """
    count = len(embeddings) // views
    with torch.autocast(embeddings.device.type, enabled=False):  # bf16 is too coarse for the exponent
        unit = F.normalize(embeddings.float())
        keys, begin = gather_batch(unit.detach().view(views, count, -1).transpose(0, 1))  # (B, V, D)
        weights = (unit @ keys.transpose(0, 1).flatten(0, 1).T / temperature).exp()  # (V b, V B)
    columns = torch.arange(weights.shape[1], device=unit.device)
    anchors = columns.view(views, -1)[:, begin : begin + count].flatten()  # their columns
    weights = weights.masked_fill(anchors[:, None] == columns, 0.0)
    shares = weights / (weights.sum(1, keepdim=True) + 1e-8)
    shift = len(keys) * torch.arange(1, views, device=unit.device)
    positives = shares.gather(1, (anchors[:, None] + shift) % len(columns))  # (V b, V - 1)
    return -(positives + 1e-8).log().sum(1)


def get_head(model: nn.Module) -> nn.Module:
    """Return the model's linear head, one of `model_attributes`."""
    return cast(nn.Module, model.head)


def make_projector(setup: DefenseSetup, width: int) -> nn.Module:
    """Build the projector (Linear, ReLU, Linear to 128 values) from the run's seed, on the model's device."""
    weight = next(setup.model.parameters())
    with eval_mode(setup.model), torch.no_grad():
        images = torch.zeros(1, *setup.image_shape, device=weight.device, dtype=weight.dtype)
        features = setup.model.features(images).shape[1]  # type: ignore[operator]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.seed)
        projector = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 128))
    return projector.to(weight.device)


def warmup_schedule(config: RoCLConfig) -> Callable[[float], float]:
    """Return the learning rate's factor: linear from 1/15 to 1 over the warm-up, then the config's schedule."""
    main, warmup = lr_schedule(config), config.lr_warmup * config.epochs

    def factor(epoch: float) -> float:
        return (1 + 14 * epoch / warmup) / 15 if epoch < warmup else main(epoch - warmup)

    return factor


class RoCLHeadObjective(nn.Module):
    """Cross-entropy on adversarial examples: of the head on the frozen encoder, or of the whole model ("fine-tune")."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: RoCLConfig) -> None:
        super().__init__()
        # Registered modules are trained; the tuple keeps the encoder unregistered.
        self.trained = model if config.head == "fine-tune" else get_head(model)
        self.backbone, self.threat, self.config = (model,), threat, config
        get_head(model).requires_grad_(True)

    def forward(self, batch: Batch) -> Loss:
        """Compute the mean cross-entropy."""
        (model,), images = self.backbone, self.inner_maximization(batch)
        if self.config.head != "fine-tune":
            with eval_mode(model), torch.no_grad():
                images = model.features(images)  # type: ignore[operator]
        return Loss(F.cross_entropy(self.trained(images), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the model's cross-entropy in eval mode, from a uniform random start clamped to [0, 1]."""
        (model,), cfg, threat = self.backbone, self.config, self.threat
        start = threat.random_start(batch.images, batch.rng.child("start"))

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(model(adv), batch.labels, reduction="none")

        with attack_mode(model):
            return pgd_ascent(
                objective, start, batch.images, threat, cfg.head_inner_steps, cfg.relative_step * threat.eps
            )


def draw_view(images: Tensor, rng: KeyedRng, config: RoCLConfig) -> Tensor:
    """Draw a random view of each image."""
    return contrastive_view(
        images,
        rng,
        color_jitter=config.color_jitter,
        grayscale_prob=config.grayscale_prob,
        hflip=config.hflip,
        min_crop_area=config.min_crop_area,
    )
