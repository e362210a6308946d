"""MACD's distillation: masks and pairs, eq. 5 and 6, and the map to the student's width."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.rng import KeyedRng
from robobench.defenses.macd import distill
from robobench.defenses.macd.mae import MAE
from robobench.defenses.macd.pretrain import Teacher
from robobench.models.masked_autoencoder import keep_tokens, patchify, unpatchify
from robobench.training.base import PrecomputedArray
from tests.helpers.macd import IMAGES, SHAPE, TINY, batch_of, objective_of, setup_of, teacher_of

# --- masks and pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch", "ratio", "masked"), [(224, 8, 0.7, 549), (32, 2, 0.7, 179)])
def test_student_mask_zeroes_rounded_number_of_blocks(size, patch, ratio, masked):
    images = torch.ones(3, 3, size, size)
    blocks = patchify(distill.mask_blocks(images, KeyedRng.of(torch.arange(3), "test"), patch, ratio), patch)
    zeroed = (blocks == 0).all(dim=2)
    assert bool(((blocks == 1).all(dim=2) | zeroed).all())
    assert zeroed.sum(dim=1).tolist() == [masked] * 3


def test_teacher_depends_only_on_visible_patches():
    """With gate "full" it depends on all patches."""
    teacher, images = teacher_of(), IMAGES[:4]
    kept = keep_tokens(KeyedRng.of(torch.arange(4), "test"), 16, 0.75)
    removed = torch.ones(4, 16, dtype=torch.bool).scatter(1, kept, False)
    patches = patchify(images, 2)
    hidden = unpatchify(torch.where(removed[..., None], 1 - patches, patches), 2, (4, 4))
    assert torch.equal(teacher(hidden, kept), teacher(images, kept))
    full = teacher_of(replace(TINY, distill_gate="full"))
    assert not torch.allclose(full(hidden, kept), full(images, kept))  # this gate depends on all patches


def spy(objective: distill.DistillObjective) -> dict[str, list[Tensor]]:
    """Record the inputs of teacher and student."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "kept": [], "student": []}
    assert objective.teacher is not None
    teacher, features = objective.teacher.module.forward, objective.model.features

    def record_teacher(images: Tensor, kept: Tensor) -> Tensor:
        seen["teacher"].append(images)
        seen["kept"].append(kept)
        return teacher(images, kept)

    def record_student(images: Tensor) -> Tensor:
        seen["student"].append(images)
        return features(images)  # type: ignore[operator]

    objective.teacher.module.forward = record_teacher  # type: ignore[method-assign]
    objective.model.features = record_student  # type: ignore[assignment]
    return seen


def test_shuffled_images_keep_their_adversarial_examples():
    attacked = PrecomputedArray((255 - IMAGES * 255).round().to(torch.uint8).numpy())
    objective = objective_of(attacked=attacked)
    seen = spy(objective)
    index = torch.tensor([17, 2, 23, 9])
    objective(batch_of(index))
    torch.testing.assert_close(seen["teacher"][0], 1 - IMAGES[index])
    student = seen["student"][0]
    torch.testing.assert_close(student, torch.where(student == 0, 0.0, IMAGES[index]))


def test_masks_are_independent_and_change_every_epoch():
    objective = objective_of()
    seen = spy(objective)
    for epoch in (0, 1):
        objective(batch_of(epoch=epoch))
    student = (patchify(seen["student"][0], 2) > 0).any(dim=2)  # visible blocks, the same grid as the teacher's
    teacher = torch.zeros(24, 16, dtype=torch.bool).scatter(1, seen["kept"][0], True)
    share = (student & teacher).sum() / teacher.sum()
    assert 0.15 < share < 0.45  # 5 of 16 blocks by chance; equal masks would give 1
    assert not torch.equal(seen["kept"][0], seen["kept"][1])
    assert not torch.equal(seen["student"][0], seen["student"][1])


def test_without_masks_both_models_get_full_images():
    objective = objective_of(replace(TINY, mask=False))
    seen = spy(objective)
    objective(batch_of())
    assert seen["kept"] == [None]
    assert torch.equal(seen["student"][0], IMAGES) and torch.equal(seen["teacher"][0], IMAGES)


def test_flip_applies_to_both_images_of_pair():
    config = replace(TINY, augment="flip", mask=False)
    objective = objective_of(config, PrecomputedArray((255 - IMAGES * 255).round().to(torch.uint8).numpy()))
    seen = spy(objective)
    objective(batch_of())
    torch.testing.assert_close(seen["teacher"][0], 1 - seen["student"][0])
    flipped = (seen["student"][0] != IMAGES).flatten(1).any(dim=1)
    assert 0 < flipped.sum() < 24


# --- eq. 5 and 6 --------------------------------------------------------------------------------


def test_eq_5_equals_hand_computed_value():
    student = torch.log(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))  # softmax (1/4, 3/4), (1/2, 1/2)
    teacher = torch.log(torch.tensor([[1.0, 1.0], [1.0, 4.0]]))  # softmax (1/2, 1/2), (1/5, 4/5)
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    second = 0.2 * math.log(2 / 5) + 0.8 * math.log(8 / 5)
    divergence, _ = distill.robust_loss(student, teacher)
    assert divergence.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert distill.robust_loss(teacher, student)[0].item() != pytest.approx(divergence.item(), rel=1e-2)


def test_second_term_is_two_minus_two_cosines():
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    expected = (2 - 2 * F.cosine_similarity(student, teacher)).mean()
    torch.testing.assert_close(distill.robust_loss(student, teacher)[1], expected)


def test_kl_is_zero_only_for_equal_distributions():
    student, teacher = torch.randn(50, 9), torch.randn(50, 9)
    assert all(distill.robust_loss(s[None], t[None])[0] > 0 for s, t in zip(student, teacher, strict=True))
    assert distill.robust_loss(teacher + 3, teacher)[0].item() == pytest.approx(0, abs=1e-6)


def test_relu_features_limit_cosine_to_0_71():
    """Against the random directions of the fixed map."""
    target = torch.randn(200, 64) @ distill.semi_orthogonal(64, 2048, 0).T
    best = F.cosine_similarity(target.relu(), target)  # the nearest vector without negative values
    torch.testing.assert_close(best, torch.full((200,), math.sqrt(0.5)), rtol=0, atol=0.04)


def gradients(metric: str) -> tuple[distill.DistillObjective, dict[str, Tensor]]:
    objective = objective_of()
    loss = objective(batch_of())
    part = loss.metrics["class_loss"] if metric == "class" else loss.total - loss.metrics["class_loss"]
    parameters = dict(objective.named_parameters())
    found = torch.autograd.grad(part, list(parameters.values()), allow_unused=True)
    return objective, {n: torch.zeros(1) if g is None else g for n, g in zip(parameters, found, strict=True)}


def test_robust_loss_trains_backbone_only():
    objective, found = gradients("robust")
    assert found["model.body.0.weight"].abs().sum() > 0
    assert found["model.head.weight"].abs().sum() < 1e-6  # rounding of total - class_loss
    assert objective.teacher is not None
    assert not any(p.requires_grad for p in objective.teacher.module.parameters())
    assert not any("teacher" in name or "encoder" in name for name in objective.state_dict())


def test_class_loss_trains_backbone_and_head():
    _, found = gradients("class")
    assert found["model.body.0.weight"].abs().sum() > 0 and found["model.head.weight"].abs().sum() > 0


def test_total_is_sum_of_its_parts():
    loss = objective_of()(batch_of())
    distance = 2 - 2 * loss.metrics["cosine"]
    torch.testing.assert_close(loss.total, loss.metrics["kl"] + distance + loss.metrics["class_loss"])


def test_bf16_loss_is_float32_and_close():
    objective = objective_of().eval()
    plain = objective(batch_of()).total
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(batch_of()).total
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.05, atol=0.05)


def test_student_first_swaps_the_sides_of_kl():
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    swapped = distill.robust_loss(student, teacher, teacher_first=False)[0]
    torch.testing.assert_close(swapped, distill.robust_loss(teacher, student)[0])


def test_mean_fill_is_zero_after_normalization():
    images, rng, mean = torch.rand(3, 3, 8, 8), KeyedRng.of(torch.arange(3), "test"), torch.tensor([0.2, 0.4, 0.6])
    zeroed = distill.mask_blocks(images, rng, 2, 0.7) == 0
    filled = distill.mask_blocks(images, rng, 2, 0.7, mean.view(3, 1, 1))
    expected = torch.where(zeroed, torch.zeros(()), images - mean.view(3, 1, 1))
    torch.testing.assert_close(filled - mean.view(3, 1, 1), expected)


def test_cls_feature_is_output_of_cls_token():
    mae, images = MAE(TINY, SHAPE, 0), IMAGES[:4]
    expected = mae.encoder(images)[0][:, 0]
    assert torch.equal(Teacher(mae.encoder, mae.fusion, "self", feature="cls")(images, None), expected)
    assert not torch.allclose(Teacher(mae.encoder, mae.fusion, "self")(images, None), expected)


def test_class_weight_zero_leaves_labels_out():
    objective = objective_of(replace(TINY, class_weight=0.0))
    objective(batch_of()).total.backward()
    assert not objective.model.head.weight.grad.any()  # type: ignore[union-attr]


# --- the map to the student's width -------------------------------------------------------------


def test_fixed_map_is_semi_orthogonal_and_seeded():
    basis = distill.semi_orthogonal(12, 40, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(12), rtol=0, atol=1e-6)
    one, other = torch.randn(20, 12), torch.randn(20, 12)
    mapped = F.cosine_similarity(one @ basis.T, other @ basis.T)
    torch.testing.assert_close(mapped, F.cosine_similarity(one, other), rtol=0, atol=1e-5)
    assert torch.equal(basis, distill.semi_orthogonal(12, 40, 3))
    assert not torch.equal(basis, distill.semi_orthogonal(12, 40, 4))
    narrow = distill.semi_orthogonal(40, 12, 3)
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(12), rtol=0, atol=1e-6)


def test_student_projector_is_trained_but_not_kept():
    setup, config = setup_of(), replace(TINY, feature_map="student-projector", attacked_images=False)
    objective = distill.make_objective(setup, config, MAE(config, SHAPE, 0))
    objective(batch_of()).total.backward()
    assert objective.projector is not None
    assert all(p.grad is not None for p in objective.projector.parameters())
    assert not any("projector" in name for name in setup.model.state_dict())
    assert objective.teacher is not None and objective.teacher(IMAGES, None).shape == (24, 8)
