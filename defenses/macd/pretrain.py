"""Algorithm 1: the masked autoencoder, trained on clean images in two phases.

First the pixels alone, then eq. 4: L_mae = MSE(F_o, F_e) + MSE(I_m, P_m), both with weight 1 (G10), where F_o
are the fused visible tokens, F_e those of the whole image, P_m the predicted and I_m the true masked patches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import Batch, DefenseSetup, FrozenModel, KeyedRng, Loss, PassCounts, Stage, train_stage

from .config import MACDConfig
from .mae import MAE, Encoder, FeatureLearning, keep_tokens, patchify, pool_tokens, removed_mse, unpatchify

# What the autoencoder's weights and figures depend on; trainings that differ in other fields share it.
FIELDS = (
    *("teacher_patch", "mae_mask_ratio", "teacher_mask_ratio", "fusion", "feature_target"),
    *("encoder_width", "encoder_depth", "encoder_heads", "decoder_width", "decoder_depth", "decoder_heads"),
    *("mae_epochs", "feature_epochs", "mae_batch_size", "mae_blr", "feature_rate", "mae_weight_decay", "mae_warmup"),
)
COLLAPSED = 0.98  # mean cosine between images above which the features say next to nothing of the image


def stages(setup: DefenseSetup, config: MACDConfig, mae: MAE) -> list[Stage]:
    """Pixels alone, then eq. 4. A pass is one of the encoder or of the decoder on all tokens, or its share on some."""
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
            final_metrics=monitor(mae, config, setup.seed, ()),
            config_fields=FIELDS,
        ),
        train_stage(
            config,
            "mae-feature",
            lambda: FeatureObjective(mae, config),  # built when the first phase is done
            epochs=config.feature_epochs,
            batch_size=config.mae_batch_size,
            optimizer=adamw(config, config.mae_lr * config.feature_rate),
            schedule=warmup_cosine(config, config.feature_epochs),
            augment="none",
            passes=PassCounts(forward=1 + both, weight_grad=1 + both, teacher_forward=int(frozen)),
            final_metrics=monitor(mae, config, setup.seed, ("teacher-collapsed",)),
            config_fields=FIELDS,
        ),
    ]


class PixelObjective(nn.Module):
    """The first phase: reconstruct the masked patches."""

    def __init__(self, mae: MAE, config: MACDConfig) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = mae.encoder, mae.decoder, config  # FL has no part in it

    def forward(self, batch: Batch) -> Loss:
        """Compute the pixel loss; metric "pixel_loss" (squared error a pixel value)."""
        encoder, images = self.encoder, batch.images
        kept = keep_tokens(batch.rng.child("mae-mask"), encoder.count, self.config.mae_mask_ratio)
        predicted = self.decoder(*encoder(images, kept), kept)
        pixel_loss = removed_mse(predicted, patchify(images, encoder.patch), kept)
        return Loss(pixel_loss, {"pixel_loss": pixel_loss})


class FeatureObjective(nn.Module):
    """The second phase: eq. 4, with FL between encoder and decoder.

    Which F_e is the target decides whether the features survive (G9). With both sides of the MSE moving
    ("both", the literal reading) constants are a minimum, and a stopped gradient ("stopgrad") does not help,
    since the same encoder moves the target; so the target comes from the encoder as the first phase left it
    ("frozen"). The gate in FL uses the moving encoder in any case.
    """

    def __init__(self, mae: MAE, config: MACDConfig) -> None:
        super().__init__()
        self.mae, self.config = mae, config
        frozen = config.feature_target == "frozen"
        self.anchor = FrozenModel(copy.deepcopy(mae.encoder)) if frozen else None  # not registered, never trained

    def forward(self, batch: Batch) -> Loss:
        """Compute eq. 4; metrics "pixel_loss" and "feature_loss"."""
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
        """F_e (B, L, D) as the MSE sees it."""
        if self.anchor is not None:
            with torch.no_grad():
                return self.anchor(images)[1]  # type: ignore[no-any-return]
        return whole.detach() if self.config.feature_target == "stopgrad" else whole


@torch.no_grad()
def reconstruct(
    config: MACDConfig, state: Mapping[str, Tensor], images: Tensor, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Mask images and let a trained autoencoder fill them in, as in the paper's figure 2.

    Args:
        state: what the stage "mae-feature" left.
        images: (B, C, H, W) in [0, 1], all of the size it was trained on.

    Returns:
        The images with their removed patches gray, and with the predicted ones there, which may leave [0, 1].
    """
    mae = MAE(config, (images.shape[1], images.shape[2], images.shape[3]), seed).eval()
    mae.load_state_dict({name.removeprefix("mae."): value for name, value in state.items()})
    encoder, true = mae.encoder, patchify(images, config.teacher_patch)
    rng = KeyedRng.of(torch.arange(len(images)), seed, "macd", "reconstruct")
    kept = keep_tokens(rng, encoder.count, config.mae_mask_ratio)
    cls, visible = encoder(images, kept)
    predicted = mae.decoder(cls, mae.fusion(visible, encoder(images)[1]), kept)
    seen = torch.zeros(true.shape[:2], dtype=torch.bool).scatter(1, kept, True).unsqueeze(2)
    masked, filled = torch.where(seen, true, 0.5), torch.where(seen, true, predicted)
    return unpatchify(masked, encoder.patch, encoder.grid), unpatchify(filled, encoder.patch, encoder.grid)


class Teacher(nn.Module):
    """E and FL as the distillation uses them: F_o, averaged over tokens, then mapped to the student's width.

    `feature_map` (F, D) is the fixed map, or None. CLS stays out (G23).
    """

    feature_map: Tensor | None

    def __init__(self, encoder: Encoder, fusion: FeatureLearning, gate: str, feature_map: Tensor | None = None) -> None:
        super().__init__()
        self.encoder, self.fusion, self.gate = encoder, fusion, gate
        self.register_buffer("feature_map", feature_map)

    def forward(self, images: Tensor, kept: Tensor | None) -> Tensor:
        """T_out (B, F), or (B, D) without a map; with gate "self" only the patches in `kept` count."""
        _, visible = self.encoder(images, kept)
        whole = self.encoder(images)[1] if self.gate == "full" and kept is not None else visible  # G6
        pooled: Tensor = self.fusion(visible, whole).mean(dim=1)
        if self.feature_map is None:
            return pooled
        with torch.autocast(images.device.type, enabled=False):
            return F.linear(pooled, self.feature_map)


def between_image_cosine(features: Tensor) -> float:
    """Mean cosine between the features (B, D) of different images: 1 when they all are the same."""
    count, total = len(features), F.normalize(features.double(), dim=1).sum(0).square().sum().item()
    return (total - count) / (count * (count - 1)) if count > 1 else 0.0


def monitor(
    mae: MAE, config: MACDConfig, seed: int, flags: tuple[str, ...]
) -> Callable[[Tensor], tuple[dict[str, float], list[str]]]:
    """Return the figure that shows a collapsed teacher, on the masking of the distillation.

    The spread of the tokens inside an image would not show it (G9). `flags` are raised when it is too high.
    """

    @torch.no_grad()
    def measure(images: Tensor) -> tuple[dict[str, float], list[str]]:
        rng = KeyedRng.of(torch.arange(len(images), device=images.device), seed, "macd", "monitor")
        kept = keep_tokens(rng, mae.encoder.count, config.teacher_mask_ratio)
        cosine = between_image_cosine(Teacher(mae.encoder, mae.fusion, "self")(images, kept))
        return {"between_image_cosine": cosine}, list(flags) if cosine > COLLAPSED else []

    return measure


def adamw(config: MACDConfig, lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the factory of MAE's AdamW: no weight decay on biases and one-dimensional parameters."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        trained = [p for p in objective.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.mae_weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)  # many small tensors

    return build


def warmup_cosine(config: MACDConfig, epochs: int) -> Callable[[float], float]:
    """Return the factor on the rate of a phase of `epochs`: linear growth, then half a cosine to zero."""
    warm = config.mae_warmup * epochs

    def factor(epoch: float) -> float:
        if epoch < warm:
            return epoch / warm
        return 0.5 * (1 + math.cos(math.pi * min((epoch - warm) / max(epochs - warm, 1e-12), 1.0)))

    return factor
