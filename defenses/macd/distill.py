"""Algorithm 2: the student learns from what the frozen teacher makes of a few patches of the attacked image.

T_out comes from the attacked image, split into patches and masked; S_out from the clean image with blocks set
to zero, in [0, 1] space (G16). The two masks are drawn apart. Eq. 5 pulls S_out to T_out, eq. 6 is the
cross-entropy of the student's classifier; one step descends their sum (G14).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    Batch,
    DefenseSetup,
    FrozenModel,
    KeyedRng,
    Loss,
    PassCounts,
    PrecomputedArray,
    Stage,
    eval_mode,
    flip,
    fork_stream,
    join_stream,
    kl,
    seed_from,
    train_stage,
)

from .config import MACDConfig
from .mae import MAE, Encoder, grid_of, keep_tokens
from .pretrain import Teacher


def stages(setup: DefenseSetup, config: MACDConfig, mae: MAE | None) -> list[Stage]:
    """Distillation, and where the config asks for them the BatchNorm pass and then the classifier alone.

    A pass of the teacher is one of the encoder on all tokens; on some of them it is their share of a pass.
    """
    twice = 1 + (mae is None)  # without a teacher the student sees both images
    looks = 0.0 if mae is None else 1.0
    if mae is not None and config.mask:
        looks = mae.encoder.share(config.teacher_mask_ratio) + (config.distill_gate == "full")
    made: list[Stage] = [
        train_stage(
            config,
            "distill",
            lambda: begin(setup, config, mae),
            augment="none",  # a joint flip is the objective's own
            passes=PassCounts(forward=twice, weight_grad=twice, teacher_forward=looks),
        )
    ]
    if config.bn_recalibrate:
        made.append(
            train_stage(
                config,
                "bn-recalibrate",
                lambda: Recalibrate(setup.model),
                epochs=1,
                augment="none",
                passes=PassCounts(forward=1),
            )
        )
    if config.head_epochs:
        made.append(
            train_stage(
                config,
                "head",
                lambda: HeadObjective(setup.model),
                epochs=config.head_epochs,
                augment="none",
                passes=PassCounts(forward=1),
            )
        )
    return made


def check_start(setup: DefenseSetup) -> None:
    """Raise ValueError unless the student can begin as a copy of the standard network, which sees images as it does."""
    ours, theirs = setup.model, setup.required_models["standard"].module
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError("the student begins as a copy of the standard network, which has other weights; use one model")
    for name in ("image_size", "interpolation", "mean", "std"):
        mine, its = (getattr(network, name, None) for network in (ours, theirs))
        if isinstance(mine, Tensor) and isinstance(its, Tensor):
            same = mine.is_meta or torch.equal(mine, its)
        else:
            same = mine == its
        if not same:
            raise ValueError(
                f"the standard network has another {name} ({its}) than the student ({mine}); use one model"
            )


def begin(setup: DefenseSetup, config: MACDConfig, mae: MAE | None) -> DistillObjective:
    """Copy the standard model into the student, and freeze the trained encoder and FL as its teacher."""
    setup.model.load_state_dict(setup.required_models["standard"].module.state_dict())
    attacked = setup.precomputed["static-attack"] if config.attacked_images else None
    if mae is None:
        return DistillObjective(setup.model, None, attacked, config)
    width: int = setup.model.head.in_features  # type: ignore[union-attr,assignment]
    teacher, projector = Teacher(mae.encoder, mae.fusion, config.distill_gate), None
    if config.feature_map == "fixed":
        teacher.feature_map = semi_orthogonal(config.encoder_width, width, setup.seed)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(setup.seed, "macd", "projector"))
            projector = nn.Linear(width, config.encoder_width)
    teacher.to(next(setup.model.parameters()).device)
    return DistillObjective(setup.model, FrozenModel(teacher), attacked, config, projector)


class DistillObjective(nn.Module):
    """Eq. 5 and 6 of a batch.

    Holds the student (and a projector, which is dropped at test) as its own; the teacher and the attacked
    images are looked at only. Without a teacher both sides of eq. 5 are the student's (G4), and the gradient
    flows into both, as the formula is printed.

    A student whose features come out of a ReLU has no negative ones, so that against the zero-mean random
    directions of the fixed map the metric "cosine" cannot exceed about 0.71 (G11). BatchNorm's running
    statistics are those of masked images (G15).
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
        self.teacher, self.attacked, self.config = teacher, attacked, config  # none of them registered

    def forward(self, batch: Batch) -> Loss:
        """Compute L_robust + L_class; metrics "kl" (nats), "cosine" (of S_out and T_out), "class_loss"."""
        clean, attacked = batch.images, batch.images
        if self.attacked is not None:
            attacked = self.attacked[batch.index]
        if self.config.augment == "flip":
            clean, attacked = (flip(images, batch.rng.child("flip")) for images in (clean, attacked))

        beside = fork_stream(attacked.device) if self.teacher else None  # it need not wait for the student
        features = self.model.features(self._masked(clean, batch.rng.child("student-mask")))  # type: ignore[operator]
        class_loss = F.cross_entropy(self.model.head(features), batch.labels)  # type: ignore[operator]  # eq. 6
        student = features if self.projector is None else self.projector(features).float()
        with torch.cuda.stream(beside):
            target = self._target(attacked, batch.rng.child("teacher-mask"))
        divergence, distance = robust_loss(student, join_stream(beside, target))
        metrics = {"kl": divergence, "cosine": 1 - distance / 2, "class_loss": class_loss}
        return Loss(divergence + distance + class_loss, metrics)

    def _target(self, attacked: Tensor, rng: KeyedRng) -> Tensor:
        """T_out (B, F)."""
        config = self.config
        if self.teacher is None:
            return self.model.features(self._masked(attacked, rng))  # type: ignore[operator,no-any-return]
        encoder: Encoder = self.teacher.module.encoder  # type: ignore[assignment]
        kept = keep_tokens(rng, encoder.count, config.teacher_mask_ratio) if config.mask else None
        with torch.no_grad():
            return self.teacher(attacked, kept)  # type: ignore[no-any-return]

    def _masked(self, images: Tensor, rng: KeyedRng) -> Tensor:
        """The student's input: blocks of the image set to zero."""
        config = self.config
        return mask_blocks(images, rng, config.student_patch, config.student_mask_ratio) if config.mask else images


class HeadObjective(nn.Module):
    """Cross-entropy of the classifier alone, on the finished features of clean, unmasked images (G14)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head = model.head
        self.backbone = (model,)  # in a tuple: not registered, so neither trained nor stored with this stage

    def forward(self, batch: Batch) -> Loss:
        """Compute the mean cross-entropy; metric "class_loss"."""
        (model,) = self.backbone
        with torch.no_grad(), eval_mode(model):
            features = model.features(batch.images)  # type: ignore[operator]
        class_loss = F.cross_entropy(self.head(features), batch.labels)  # type: ignore[operator]
        return Loss(class_loss, {"class_loss": class_loss})


class Recalibrate(nn.Module):
    """BatchNorm's running statistics, averaged anew over clean, unmasked images; no parameter moves (G15)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None  # the plain mean over the batches of the pass

    @torch.no_grad()
    def forward(self, batch: Batch) -> Loss:
        """Pass the batch through the model in train mode; the loss has no gradient, so no step follows."""
        self.model(batch.images)
        return Loss(batch.images.new_zeros(()))


def robust_loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 5: KL(softmax(T_out) || softmax(S_out)) and the squared distance of the unit vectors, 2 - 2 cos.

    Features (B, F) both; the softmax goes over the features (G12). Both terms are means over the batch, with
    weight 1 (G13).
    """
    unit_student, unit_teacher = (F.normalize(x, dim=1, eps=1e-12) for x in (student, teacher))
    return kl(teacher, student).mean(), (unit_student - unit_teacher).square().sum(dim=1).mean()


def mask_blocks(images: Tensor, rng: KeyedRng, patch: int, mask_ratio: float) -> Tensor:
    """Set a share of an image's square blocks, rounded to whole blocks, to zero: (B, C, H, W) both ways."""
    rows, columns = grid_of((images.shape[1], images.shape[2], images.shape[3]), patch, "student_patch")
    kept = keep_tokens(rng, rows * columns, mask_ratio)
    visible = torch.zeros(len(images), rows * columns, device=images.device).scatter(1, kept, 1.0)
    visible = visible.view(-1, 1, rows, columns).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return images * visible


def semi_orthogonal(width: int, features: int, seed: int) -> Tensor:
    """Draw the fixed map (features, width) from the teacher's width to the student's (G11).

    Its columns are orthonormal, so that it keeps lengths and cosines. Where the student is the narrower of
    the two its rows are, and it is a projection.
    """
    rng = KeyedRng.of(torch.arange(max(width, features)), seed, "macd", "feature-map")
    q, r = torch.linalg.qr(rng.normal(min(width, features)).double())
    basis: Tensor = (q * r.diagonal().sign()).float()  # QR leaves the signs to the library
    return basis if features >= width else basis.T.contiguous()
