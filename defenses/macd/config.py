"""MACD's settings: the paper's values by default, smaller autoencoders as presets.

"G<n>" numbers the places where the paper contradicts itself or is silent, with the decision made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robobench.api import TrainConfig


@dataclass(frozen=True, kw_only=True)
class MACDConfig(TrainConfig):
    """The paper's values. TrainConfig's fields are for the student."""

    # The student: section 4.1, which does not state batch size, schedule and augmentation (G25, G19).
    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    augment: str = "none"  # none | flip (the same for the clean image and its adversarial example, G19)

    # The masked autoencoder: ViT-Base (G24), 12 and 8 layers. Patches are in pixels of the training images.
    teacher_patch: int = 16  # side length; 16 at 224 px: 196 tokens (G2)
    mae_mask_ratio: float = 0.85  # 3 visible tokens to 17 masked (G1)
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    # Training of the autoencoder: epochs from section 3.1, optimizer of the MAE paper (G20).
    mae_epochs: int = 100  # pixel loss only
    feature_epochs: int = 20  # eq. 4
    mae_batch_size: int = 64
    mae_blr: float = 1.5e-4  # base learning rate; the rate is mae_blr * mae_batch_size / 256
    feature_rate: float = 1.0  # the rate of eq. 4's phase, as a fraction of the first phase's
    mae_weight_decay: float = 0.05
    mae_warmup: float = 0.1  # warm-up, as a fraction of each phase; then cosine to zero
    fusion: str = "pooled"  # of the module FL: pooled | cross_attention (G7)
    feature_target: str = "frozen"  # F_e in eq. 4: frozen | stopgrad | both (G9)

    # The static attack: PGD-40 on the standard model (G17).
    attacked_images: bool = True  # False: the teacher gets clean images (table 7)
    static_steps: int = 40
    static_relative_step: float = 0.25  # step size in units of eps: 2/255 at 8/255

    # Distillation.
    teacher_mask_ratio: float = 0.75
    student_patch: int = 8  # side length; 8 at 224 px: 784 blocks
    student_mask_ratio: float = 0.7
    mask: bool = True  # False: neither teacher nor student is masked (table 8)
    contrastive_only: bool = False  # True: no teacher; the student is on both sides of eq. 5 (table 9, G4)
    distill_gate: str = "self"  # FL's input F_e: self (visible tokens) | full (all tokens) (G6)
    feature_map: str = "fixed"  # maps features to one width: fixed | student-projector (G11)
    teacher_feature: str = "tokens"  # T_out before the map: tokens (mean without CLS) | cls (G23)
    mask_fill: str = "zero"  # the student's masked pixels: zero, in [0, 1] | mean (zero after normalization) (G16)
    kl_order: str = "teacher-first"  # KL of eq. 5: teacher-first, KL(T || S) | student-first (G12)
    contrast_weight: float = 1.0  # of eq. 5's second term (G13)
    class_weight: float = 1.0  # of L_class in the distillation; 0: labels are used by the head phase only (G14)

    # The head phase (sections 3.2 and 4.1): backbone frozen, clean and unmasked images with labels. Algorithm 2 does
    # not have it: head_epochs=0 and bn_recalibrate=false.
    bn_recalibrate: bool = True  # recompute BatchNorm's statistics on these images (G15)
    head_epochs: int = 50  # on features that are computed once (G14)
    head_lr: float = 0.003  # section 4.1's only learning rate; cosine to zero, momentum and weight decay as above

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("augment", "none", "flip")  # separate crops would break the pairs
        self.require("eps_rampup", self.eps_rampup == 0, "0 (the attack is made once, before training)")
        for name in ("encoder_depth", "decoder_depth", "mae_batch_size", "static_steps"):
            self.require(name, getattr(self, name) >= 1, ">= 1")
        for name in ("teacher_patch", "student_patch"):
            self.require(name, getattr(self, name) >= 1, ">= 1 pixel")
        for name in ("mae_epochs", "feature_epochs", "head_epochs"):
            self.require(name, getattr(self, name) >= 0, ">= 0")
        for side in ("encoder", "decoder"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            self.require(f"{side}_heads", heads >= 1, ">= 1")
            divides = width > 0 and width % 4 == 0 and width % heads == 0
            self.require(f"{side}_width", divides, f"a multiple of 4 and of {side}_heads = {heads}")
        self.require("mae_mask_ratio", 0 < self.mae_mask_ratio < 1, "between 0 and 1")
        for name in ("teacher_mask_ratio", "student_mask_ratio"):
            self.require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        for name in ("mae_blr", "feature_rate", "head_lr"):
            self.require(name, getattr(self, name) > 0, "> 0")
        for name in ("contrast_weight", "class_weight"):
            self.require(name, getattr(self, name) >= 0, ">= 0")
        self.require("mae_weight_decay", self.mae_weight_decay >= 0, ">= 0")
        self.require("mae_warmup", 0 <= self.mae_warmup < 1, "in [0, 1)")
        self.require("static_relative_step", self.static_relative_step > 0, "> 0")
        self.one_of("fusion", "pooled", "cross_attention")
        self.one_of("feature_target", "frozen", "stopgrad", "both")
        self.one_of("distill_gate", "self", "full")
        self.one_of("feature_map", "fixed", "student-projector")
        self.one_of("teacher_feature", "tokens", "cls")
        self.one_of("mask_fill", "zero", "mean")
        self.one_of("kl_order", "teacher-first", "student-first")

    @property
    def mae_lr(self) -> float:
        """Peak learning rate of the autoencoder."""
        return self.mae_blr * self.mae_batch_size / 256

    @property
    def head_config(self) -> TrainConfig:
        """Training settings of the head."""
        return TrainConfig(
            epochs=self.head_epochs,
            batch_size=self.batch_size,
            lr=self.head_lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="cosine",
            augment="none",
        )


# The presets keep the paper's training of the student; a run's preset would change it otherwise.
_STUDENT = {
    "epochs": 10,
    "batch_size": 64,
    "lr": 0.003,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "augment": "none",
    "eps_rampup": 0.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {  # 32 px digits on two CPU cores: the paper's proportions with a small ViT (G28)
        **_STUDENT,
        "teacher_patch": 4,  # 64 tokens: 10 visible in the MAE, 16 in the distillation
        "student_patch": 2,
        "encoder_width": 32,
        "encoder_heads": 2,
        "decoder_width": 16,
        "decoder_heads": 1,
        "mae_epochs": 12,
        "feature_epochs": 1,
        "mae_batch_size": 16,  # many small steps: the first few hundred only learn the mean image
        "mae_blr": 0.024,
        "feature_rate": 0.01,  # at higher rates the features of different images become alike
    },
    "quick:large": {  # on top of quick, for models that are slow on a CPU
        "encoder_depth": 4,
        "decoder_depth": 2,
        "static_steps": 5,
        "epochs": 2,
        "batch_size": 32,
        "mae_epochs": 26,  # about 1,000 steps of 640 images; after a few hundred the features still are the mean image
    },
    "cifar": {  # native 32 px on one GPU
        **_STUDENT,
        "teacher_patch": 4,
        "student_patch": 2,
        "encoder_width": 192,
        "encoder_heads": 3,
        "decoder_width": 128,
        "decoder_heads": 4,
        "batch_size": 128,
        "mae_batch_size": 256,
        "mae_blr": 1.5e-3,
        "feature_rate": 0.1,
    },
}
