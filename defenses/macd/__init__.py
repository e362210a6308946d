"""MACD: distillation from a masked autoencoder, on adversarial examples that are made once before training.

Paper:   "An Adversarial Contrastive Distillation Algorithm Based on Masked Auto-Encoder", Chinese Journal of
         Computers, 2024, DOI 10.11897/SP.J.1016.2024.02274.
Code:    none is published. "G<n>" marks a decision where the paper contradicts itself or is silent.
Family:  self-supervised, 2024
Cost:    3.4 and 7.4 of the autoencoder, 80 once, then 3
Differs: eq. 4's target F_e comes from a frozen encoder. As printed, its first term is minimized by features that are
         equal for all images (G9).
Expect:  high accuracy on clean images and under transfer, and nearly zero under a white-box attack: the student never
         sees an adversarial example made on itself.

`config` has the settings, `mae` the encoder and decoder, `pretrain` Algorithm 1, `static` the attack, `distill`
Algorithm 2 and `head` the last phase, which only the text describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from robobench.api import DEFENSES, Defense, DefenseSetup, Stage, count_kept, grid_of

from . import distill, head, pretrain, static
from .config import PRESETS, MACDConfig
from .mae import MAE


@DEFENSES.register("macd")
class MACD(Defense):
    """Distillation from a masked autoencoder that gets a few patches of static adversarial examples."""

    Config = MACDConfig
    version = 2
    presets = PRESETS
    requires = {"standard": "standard"}
    model_attributes = ("features", "head")

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return the stages: autoencoder (two), static attack, distillation, and those of the head phase.

        Raises:
            ValueError: the patches do not fill the image, a mask ratio leaves too few of them, or the standard model
                and the student have different architectures.
        """
        config: MACDConfig = self.config
        check_masks(config, setup.image_shape)
        distill.check_same_architecture(setup)
        mae = None if config.contrastive_only else MAE(config, setup.image_shape, setup.seed)
        if mae is not None:
            mae.to(next(setup.model.parameters()).device)
        stages: list[Stage] = []
        if mae is not None:
            stages += pretrain.stages(setup, config, mae)
        if config.attacked_images:
            stages.append(static.stage(setup, config))
        return stages + distill.stages(setup, config, mae) + head.stages(setup, config)

    def visualize(
        self, stage_state: Callable[[str], Mapping[str, Tensor] | None], images: Tensor, seed: int
    ) -> dict[str, Tensor]:
        """Return test images, their masked version and the autoencoder's reconstruction, as in the paper's figure 2."""
        state = stage_state("mae-feature")
        if state is None:
            return {}
        masked, filled = pretrain.reconstruct(self.config, state, images, seed)
        return {"original": images, "masked": masked, "reconstructed": filled}


def check_masks(config: MACDConfig, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless every mask keeps a patch, and the autoencoder's mask removes one."""
    masks = {"mae_mask_ratio": "teacher_patch", "teacher_mask_ratio": "teacher_patch"}
    for name, side in {**masks, "student_mask_ratio": "student_patch"}.items():
        rows, columns = grid_of(image_shape, getattr(config, side), side)
        count, ratio = rows * columns, getattr(config, name)
        kept, most = count_kept(count, ratio), count - (name == "mae_mask_ratio")
        if not 1 <= kept <= most:
            raise ValueError(
                f"{name} {ratio} keeps {kept} of {count} patches, allowed are 1 to {most}; "
                f"choose another ratio, or another {side} for images of {image_shape[1]} x {image_shape[2]}"
            )
