"""Algorithm 2: distillation of the frozen teacher's features of masked adversarial examples into the student.

T_out are the teacher's features of the masked adversarial example. S_out are the student's features of the clean image
with blocks set to zero, in [0, 1] space (G16). The two masks are independent. Eq. 5 is the distance between S_out and
T_out, eq. 6 the cross-entropy of the student's head. Training minimizes their sum (G14). The head phase follows, in
`head`.
"""

from __future__ import annotations

from dataclasses import fields

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
    PrecomputedArray,
    Stage,
    flip,
    fork_stream,
    grid_of,
    join_stream,
    keep_tokens,
    kl,
    seed_from,
    train_stage,
)

from .config import MACDConfig
from .mae import MAE
from .pretrain import Teacher

HEAD_FIELDS = ("bn_recalibrate", "head_epochs", "head_lr")  # that the distillation does not depend on


def stages(setup: DefenseSetup, config: MACDConfig, mae: MAE | None) -> list[Stage]:
    """Return the distillation.

    A teacher pass is one of the encoder on all tokens; a part of the tokens counts as its share.
    """
    student_passes = 1 + (mae is None)  # without a teacher the student gets both images
    teacher_passes = 0.0 if mae is None else 1.0
    if mae is not None and config.mask:
        teacher_passes = mae.encoder.share(config.teacher_mask_ratio) + (config.distill_gate == "full")
    return [
        train_stage(
            config,
            "distill",
            lambda: make_objective(setup, config, mae),
            augment="none",  # the objective flips the pairs
            passes=PassCounts(forward=student_passes, weight_grad=student_passes, teacher_forward=teacher_passes),
            config_fields=tuple(f.name for f in fields(config) if f.name not in HEAD_FIELDS),
        )
    ]


def check_same_architecture(setup: DefenseSetup) -> None:
    """Raise ValueError unless the student can start as a copy of the standard model, with the same preprocessing."""
    student, standard = setup.model, setup.required_models["standard"].module
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (student, standard)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the student starts as a copy of the standard model, but their architectures differ; use one model for both"
        )
    for name in ("image_size", "interpolation", "mean", "std"):
        ours, theirs = (getattr(model, name, None) for model in (student, standard))
        if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
            same = ours.is_meta or torch.equal(ours, theirs)
        else:
            same = ours == theirs
        if not same:
            raise ValueError(
                f"the student starts as a copy of the standard model, but {name} differs: {ours} (student), "
                f"{theirs} (standard); use one model for both"
            )


def make_objective(setup: DefenseSetup, config: MACDConfig, mae: MAE | None) -> DistillObjective:
    """Copy the standard model's weights into the student, and freeze the trained encoder and FL as its teacher."""
    setup.model.load_state_dict(setup.required_models["standard"].module.state_dict())
    attacked = setup.precomputed["static-attack"] if config.attacked_images else None
    if mae is None:
        return DistillObjective(setup.model, None, attacked, config)
    width: int = setup.model.head.in_features  # type: ignore[union-attr,assignment]
    teacher, projector = Teacher(mae.encoder, mae.fusion, config.distill_gate, feature=config.teacher_feature), None
    if config.feature_map == "fixed":
        teacher.feature_map = semi_orthogonal(config.encoder_width, width, setup.seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(setup.seed, "macd", "projector"))
            projector = nn.Linear(width, config.encoder_width)
    teacher.to(next(setup.model.parameters()).device)
    return DistillObjective(setup.model, FrozenModel(teacher), attacked, config, projector)


class DistillObjective(nn.Module):
    """Eq. 5 plus eq. 6.

    Only the student and its projector (unused at test time) are registered; the teacher and the adversarial examples
    are not. Without a teacher both sides of eq. 5 are the student's (G4), and the gradient flows into both, as printed.

    Features after a ReLU are not negative. Against the zero-mean random directions of the fixed map, the metric
    "cosine" can therefore not exceed about 0.71 (G11). BatchNorm's running statistics are those of masked images (G15).
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: FrozenModel | None,
        attacked: PrecomputedArray | None,
        config: MACDConfig,
        projector: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.projector = model, projector
        self.teacher, self.attacked, self.config = teacher, attacked, config  # not registered

    def forward(self, batch: Batch) -> Loss:
        """Compute L_robust + L_class; metrics "kl" (nats), "cosine" (of S_out and T_out) and "class_loss"."""
        clean, attacked = batch.images, batch.images
        if self.attacked is not None:
            attacked = self.attacked[batch.index]
        if self.config.augment == "flip":
            clean, attacked = (flip(images, batch.rng.child("flip")) for images in (clean, attacked))

        stream = fork_stream(attacked.device) if self.teacher else None  # runs beside the student's forward pass
        features = self.model.features(self._masked(clean, batch.rng.child("student-mask")))  # type: ignore[operator]
        class_loss = F.cross_entropy(self.model.head(features), batch.labels)  # type: ignore[operator]  # eq. 6
        student = features if self.projector is None else self.projector(features).float()
        with torch.cuda.stream(stream):
            target = self._target(attacked, batch.rng.child("teacher-mask"))
        weights, first = self.config, self.config.kl_order == "teacher-first"
        divergence, distance = robust_loss(student, join_stream(stream, target), teacher_first=first)
        metrics = {"kl": divergence, "cosine": 1 - distance / 2, "class_loss": class_loss}
        total = divergence + weights.contrast_weight * distance + weights.class_weight * class_loss
        return Loss(total, metrics)

    def _target(self, attacked: Tensor, rng: KeyedRng) -> Tensor:
        """Return T_out (B, F)."""
        config = self.config
        if self.teacher is None:
            return self.model.features(self._masked(attacked, rng))  # type: ignore[operator,no-any-return]
        encoder: MAEEncoder = self.teacher.module.encoder  # type: ignore[assignment]
        kept = keep_tokens(rng, encoder.count, config.teacher_mask_ratio) if config.mask else None
        with torch.no_grad():
            return self.teacher(attacked, kept)  # type: ignore[no-any-return]

    def _masked(self, images: Tensor, rng: KeyedRng) -> Tensor:
        """Return the student's input: images with blocks set to zero."""
        config, fill = self.config, None
        if not config.mask:
            return images
        if config.mask_fill == "mean":
            fill = self.model.mean
        return mask_blocks(images, rng, config.student_patch, config.student_mask_ratio, fill)  # type: ignore[arg-type]


def robust_loss(student: Tensor, teacher: Tensor, *, teacher_first: bool = True) -> tuple[Tensor, Tensor]:
    """Compute the terms of eq. 5 from features (B, F), each a mean over the batch (G13).

    Returns:
        KL(softmax(T_out) || softmax(S_out)), or KL(S || T), with the softmax over the features (G12), and the squared
        distance of the unit vectors, 2 - 2 cos.
    """
    unit_student, unit_teacher = (F.normalize(x, dim=1, eps=1e-12) for x in (student, teacher))
    divergence = kl(teacher, student) if teacher_first else kl(student, teacher)
    return divergence.mean(), (unit_student - unit_teacher).square().sum(dim=1).mean()


def mask_blocks(images: Tensor, rng: KeyedRng, patch: int, mask_ratio: float, fill: Tensor | None = None) -> Tensor:
    """Set a fraction of each image's square blocks, rounded to whole blocks, to zero or to the color `fill` (C, 1, 1).

    Images are (B, C, H, W).
    """
    rows, columns = grid_of((images.shape[1], images.shape[2], images.shape[3]), patch, "student_patch")
    kept = keep_tokens(rng, rows * columns, mask_ratio)
    visible = torch.zeros(len(images), rows * columns, device=images.device).scatter(1, kept, 1.0)
    visible = visible.view(-1, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images * visible if fill is None else torch.where(visible > 0, images, fill)


def semi_orthogonal(width: int, features: int, seed: int) -> Tensor:
    """Draw the fixed map (features, width) from the teacher's width to the student's number of features (G11).

    Its columns are orthonormal, so that it preserves norms and cosines. If the student has fewer features, its rows are
    orthonormal, and it is a projection.
    """
    rng = KeyedRng.of(torch.arange(max(width, features)), seed, "macd", "feature-map")
    q, r = torch.linalg.qr(rng.normal(min(width, features)).double())
    basis: Tensor = (q * r.diagonal().sign()).float()  # the signs of a QR depend on the library
    return basis if features >= width else basis.T.contiguous()
