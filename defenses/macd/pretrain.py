"""Algorithm 1: the masked autoencoder, trained on clean images in two phases.

The first phase has the pixel loss only. The second has eq. 4: L_mae = MSE(F_o, F_e) + MSE(I_m, P_m), both with
weight 1 (G10). F_o are the fused visible tokens, F_e the tokens of the whole image, P_m the predicted and I_m the true
masked patches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    Batch,
    DefenseSetup,
    FrozenModel,
    KeyedRng,
    Loss,
    MAEEncoder,
    PassCounts,
    Stage,
    keep_tokens,
    patchify,
    removed_mse,
    train_stage,
    unpatchify,
)

from .config import MACDConfig
from .mae import MAE, FeatureLearning, pool_tokens

CONFIG_FIELDS = (  # that the two stages depend on; trainings that differ in other fields share the autoencoder
    *("teacher_patch", "mae_mask_ratio", "teacher_mask_ratio", "fusion", "feature_target"),
    *("encoder_width", "encoder_depth", "encoder_heads", "decoder_width", "decoder_depth", "decoder_heads"),
    *("mae_epochs", "feature_epochs", "mae_batch_size", "mae_blr", "feature_rate", "mae_weight_decay", "mae_warmup"),
)
COLLAPSED = 0.98  # mean cosine between images, above which the features hardly depend on the image


def stages(setup: DefenseSetup, config: MACDConfig, mae: MAE) -> list[Stage]:
    """Return both phases. A pass is one of encoder or decoder on all tokens, or its share on some of them."""
    frozen, both = config.feature_target == "frozen", 1 + mae.encoder.share(config.mae_mask_ratio)
    return [
        train_stage(
            config,
            "mae-pretrain",
            PixelObjective(mae, config),
            epochs=config.mae_epochs,
            batch_size=config.mae_batch_size,
            optimizer=adamw(config, config.mae_lr),
            schedule=warmup_cosine(config, config.mae_epochs),
            augment="none",
            passes=PassCounts(forward=both, weight_grad=both),
            final_metrics=collapse_monitor(mae, config, setup.seed, ()),
            config_fields=CONFIG_FIELDS,
        ),
        train_stage(
            config,
            "mae-feature",
            lambda: FeatureObjective(mae, config),  # built after the first phase
            epochs=config.feature_epochs,
            batch_size=config.mae_batch_size,
            optimizer=adamw(config, config.mae_lr * config.feature_rate),
            schedule=warmup_cosine(config, config.feature_epochs),
            augment="none",
            passes=PassCounts(forward=1 + both, weight_grad=1 + both, teacher_forward=int(frozen)),
            final_metrics=collapse_monitor(mae, config, setup.seed, ("teacher-collapsed",)),
            config_fields=CONFIG_FIELDS,
        ),
    ]


class PixelObjective(nn.Module):
    """Pixel loss of the first phase: reconstruct the masked patches."""

    def __init__(self, mae: MAE, config: MACDConfig) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = mae.encoder, mae.decoder, config  # without FL

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss; metric "pixel_loss" (squared error per pixel value)."""
        encoder, images = self.encoder, batch.images
        kept = keep_tokens(batch.rng.child("mae-mask"), encoder.count, self.config.mae_mask_ratio)
        predicted = self.decoder(*encoder(images, kept), kept)
        pixel_loss = removed_mse(predicted, patchify(images, encoder.patch), kept)
        return Loss(pixel_loss, {"pixel_loss": pixel_loss})


class FeatureObjective(nn.Module):
    """Loss of the second phase: eq. 4, with FL between encoder and decoder.

    The choice of the target F_e decides whether the features collapse (G9). If both sides of the MSE are trained
    ("both", the literal reading), constant features are a minimum. Stopping the gradient ("stopgrad") does not help,
    since the target still comes from the trained encoder. By default the target comes from a frozen copy of the
    encoder after the first phase ("frozen"). FL always uses the trained encoder.
    """

    def __init__(self, mae: MAE, config: MACDConfig) -> None:
        super().__init__()
        self.mae, self.config = mae, config
        frozen = config.feature_target == "frozen"
        self.anchor = FrozenModel(copy.deepcopy(mae.encoder)) if frozen else None  # not registered, not trained

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss; metrics "pixel_loss" and "feature_loss"."""
        encoder, images = self.mae.encoder, batch.images
        kept = keep_tokens(batch.rng.child("mae-mask"), encoder.count, self.config.mae_mask_ratio)
        cls, visible = encoder(images, kept)
        _, whole = encoder(images)
        fused = self.mae.fusion(visible, whole)
        feature_loss = F.mse_loss(fused, pool_tokens(self._target(images, whole), fused.shape[1]))  # G8
        predicted = self.mae.decoder(cls, fused, kept)
        pixel_loss = removed_mse(predicted, patchify(images, encoder.patch), kept)
        metrics = {"pixel_loss": pixel_loss, "feature_loss": feature_loss}
        return Loss(feature_loss + pixel_loss, metrics)

    def _target(self, images: Tensor, whole: Tensor) -> Tensor:
        """Return the MSE's target F_e (B, L, D)."""
        if self.anchor is not None:
            with torch.no_grad():
                return self.anchor(images)[1]  # type: ignore[no-any-return]
        return whole.detach() if self.config.feature_target == "stopgrad" else whole


@torch.no_grad()
def reconstruct(
    config: MACDConfig, state: Mapping[str, Tensor], images: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mask images and reconstruct them with a trained autoencoder, as in the paper's figure 2.

    Args:
        state: state dict of the stage "mae-feature".
        images: (B, C, H, W) in [0, 1], of the size used in training.

    Returns:
        The images with gray in place of the removed patches, and with the predicted patches, which may leave [0, 1].
    """
    mae = MAE(config, (images.shape[1], images.shape[2], images.shape[3]), seed).eval()
    mae.load_state_dict({name.removeprefix("mae."): value for name, value in state.items()})
    encoder, true = mae.encoder, patchify(images, config.teacher_patch)
    rng = KeyedRng.of(torch.arange(len(images)), seed, "macd", "reconstruct")
    kept = keep_tokens(rng, encoder.count, config.mae_mask_ratio)
    cls, visible = encoder(images, kept)
    predicted = mae.decoder(cls, mae.fusion(visible, encoder(images)[1]), kept)
    visible_patches = torch.zeros(true.shape[:2], dtype=torch.bool).scatter(1, kept, True).unsqueeze(2)
    masked, filled = torch.where(visible_patches, true, 0.5), torch.where(visible_patches, true, predicted)
    return unpatchify(masked, encoder.patch, encoder.grid), unpatchify(filled, encoder.patch, encoder.grid)


class Teacher(nn.Module):
    """E and FL in the distillation: F_o, averaged over tokens without CLS, then mapped to the student's width.

    With feature "cls" the output of the CLS token takes the place of F_o (G23).

    Attributes:
        feature_map: (F, D), the fixed map; None for no map.
    """

    feature_map: Tensor | None

    def __init__(
        self,
        encoder: MAEEncoder,
        fusion: FeatureLearning,
        gate: str,
        feature_map: Tensor | None = None,
        feature: str = "tokens",
    ) -> None:
        super().__init__()
        self.encoder, self.fusion, self.gate, self.feature = encoder, fusion, gate, feature
        self.register_buffer("feature_map", feature_map)

    def forward(self, images: Tensor, kept: Tensor | None) -> Tensor:
        """Return T_out (B, F), or (B, D) without a map. With gate "self" it depends on the patches in `kept` only."""
        cls, visible = self.encoder(images, kept)
        if self.feature == "cls":
            pooled: Tensor = cls[:, 0]
        else:
            whole = self.encoder(images)[1] if self.gate == "full" and kept is not None else visible  # G6
            pooled = self.fusion(visible, whole).mean(dim=1)
        if self.feature_map is None:
            return pooled
        with torch.autocast(images.device.type, enabled=False):
            return F.linear(pooled, self.feature_map)


def between_image_cosine(features: Tensor) -> float:
    """Return the mean cosine between features (B, D) of different images; 1 if all are equal."""
    count, total = len(features), F.normalize(features.double(), dim=1).sum(0).square().sum().item()
    return (total - count) / (count * (count - 1)) if count > 1 else 0.0


def collapse_monitor(
    mae: MAE, config: MACDConfig, seed: int, flags: tuple[str, ...]
) -> Callable[[Tensor], tuple[dict[str, float], list[str]]]:
    """Return a function that measures the cosine between images, with the masks of the distillation.

    A high value means a collapsed teacher, and sets `flags`. The variance of tokens within an image does not show a
    collapse (G9).
    """

    @torch.no_grad()
    def measure(images: Tensor) -> tuple[dict[str, float], list[str]]:
        rng = KeyedRng.of(torch.arange(len(images), device=images.device), seed, "macd", "monitor")
        kept = keep_tokens(rng, mae.encoder.count, config.teacher_mask_ratio)
        cosine = between_image_cosine(Teacher(mae.encoder, mae.fusion, "self")(images, kept))
        return {"between_image_cosine": cosine}, list(flags) if cosine > COLLAPSED else []

    return measure


def adamw(config: MACDConfig, lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes the MAE paper's AdamW: no weight decay on biases and one-dimensional parameters."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.mae_weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)  # faster for many small tensors

    return build


def warmup_cosine(config: MACDConfig, epochs: int) -> Callable[[float], float]:
    """Return the learning rate's factor over a phase of `epochs`: linear warm-up, then half a cosine to zero."""
    warm = config.mae_warmup * epochs

    def factor(epoch: float) -> float:
        if epoch < warm:
            return epoch / warm
        return 0.5 * (1 + math.cos(math.pi * min((epoch - warm) / max(epochs - warm, 1e-12), 1.0)))

    return factor
