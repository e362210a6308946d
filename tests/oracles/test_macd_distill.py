"""MACD's static attack and distillation (Algorithm 2, eq. 5 and 6), its stages, presets and config errors."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import Batch, Frozen, Loss, Produce, Produced, Setup, Train
from robobench.defenses.macd import MACD, PRESETS, MACDConfig, distill, static
from robobench.defenses.macd.mae import MAE, keep_tokens, patchify, unpatchify
from robobench.defenses.macd.pretrain import Teacher
from robobench.randomness import Noise
from robobench.threat import ThreatModel
from tests.toys import LinearTwoClass, TinyBatchNormNet, color_blobs

TINY = MACDConfig(
    teacher_patch=2,
    student_patch=2,
    encoder_width=8,
    encoder_depth=1,
    encoder_heads=2,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=2,
    batch_size=12,
    lr=0.05,
    mae_epochs=2,
    feature_epochs=2,
    mae_batch_size=12,
    mae_blr=0.02,
    static_steps=4,
)
SHAPE, EPS = (3, 8, 8), 8 / 255
IMAGES, LABELS = color_blobs(24)
IMAGES = (IMAGES * 255).round() / 255  # on the grid, so that the attack is stored as uint8


def batch_of(index: Tensor | None = None, epoch: int = 0, images: Tensor = IMAGES) -> Batch:
    index = torch.arange(len(images)) if index is None else index
    return Batch(images[index], LABELS[index], index, epoch, Noise.of(index, "test", epoch))


def setup_of(config: MACDConfig = TINY, norm: str = "Linf", eps: float = EPS, on_grid: bool = True) -> Setup:
    torch.manual_seed(0)
    return Setup(
        model=TinyBatchNormNet(channels=16),
        threat=ThreatModel(norm, eps),
        config=config,
        num_classes=3,
        image_shape=SHAPE,
        train_size=len(IMAGES),
        on_grid=on_grid,
        required={"standard": Frozen(TinyBatchNormNet(channels=16))},
    )


def teacher_of(config: MACDConfig = TINY) -> Frozen:
    mae = MAE(config, SHAPE, 0)
    return Frozen(Teacher(mae.encoder, mae.fusion, config.distill_gate, distill.semi_orthogonal(8, 16, 0)))


def objective_of(config: MACDConfig = TINY, attacked: Produced | None = None) -> distill.DistillObjective:
    torch.manual_seed(0)
    teacher = None if config.contrastive_only else teacher_of(config)
    return distill.DistillObjective(TinyBatchNormNet(channels=16), teacher, attacked, config)


def run(setup: Setup) -> dict[str, list[Loss]]:
    """Drive the stages by hand, as the core does: every loss, by stage."""
    losses: dict[str, list[Loss]] = {}
    for stage in MACD(setup.config).stages(setup):
        if isinstance(stage, Produce):
            setup.produced[stage.name] = Produced(stage.function(batch_of()).numpy())
            continue
        objective = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
        optimizer = stage.optimizer(objective)
        objective.train()
        losses[stage.name] = []
        for epoch in range(stage.epochs):
            for index in torch.arange(len(IMAGES)).split(stage.batch_size):
                loss = objective(batch_of(index, epoch))
                if loss.total.requires_grad:
                    loss.total.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                losses[stage.name].append(loss)
    return losses


def state(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- the static attack --------------------------------------------------------------------------


def test_on_a_linear_model_the_static_attack_reaches_the_closed_form_worst_case():
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.full((5, *SHAPE), 0.5), torch.tensor([0, 0, 1, 1, 0])  # some right, some wrong
    config = MACDConfig(static_steps=40)
    attack = static.static_attack(Frozen(model), ThreatModel("Linf", EPS), config, on_grid=False)
    index = torch.arange(5)
    adv = attack(Batch(images, labels, index, 0, Noise.of(index, "test")))
    drop = (model.gap(images) - model.gap(adv)) * torch.where(labels == 0, 1, -1)
    torch.testing.assert_close(drop, (EPS * model.w.norm(1)).expand(5), rtol=1e-4, atol=1e-6)


def test_the_static_attack_of_an_image_does_not_depend_on_its_batch_and_moves_no_statistics():
    setup = setup_of(on_grid=False)
    stage = static.stage(setup)
    before = state(setup.required["standard"].module)
    whole = stage.function(batch_of())
    part = stage.function(batch_of(torch.tensor([7, 3, 19])))
    torch.testing.assert_close(whole[torch.tensor([7, 3, 19])], part, rtol=0, atol=1e-6)
    assert same(before, setup.required["standard"].module.state_dict())
    assert stage.passes is not None and stage.passes.teacher_units == 2 * TINY.static_steps


def test_attacked_images_are_stored_as_uint8_and_stay_in_the_ball():
    setup = setup_of()
    stored = static.stage(setup).function(batch_of())
    assert stored.dtype == torch.uint8
    read = Produced(stored.numpy())[torch.arange(len(IMAGES))]
    setup.threat.check(read, IMAGES, "the stored static attack")
    assert (read - IMAGES).abs().amax().item() == pytest.approx(EPS)  # the whole radius is used


def test_rounding_to_uint8_puts_the_ball_back():
    clean = torch.tensor([[10.0, 250.0, 3.0]]) / 255
    adv = torch.tensor([[14.6, 254.9, -1.0]]) / 255
    assert static.to_grid(adv, clean, 4).tolist() == [[14, 254, 0]]


@pytest.mark.parametrize(
    ("norm", "eps", "on_grid"), [("L2", 128 / 255, True), ("Linf", 0.1, True), ("Linf", EPS, False)]
)
def test_attacked_images_stay_float32_where_uint8_would_move_them(norm, eps, on_grid):
    setup = setup_of(norm=norm, eps=eps, on_grid=on_grid)
    stored = static.stage(setup).function(batch_of())
    assert stored.dtype == torch.float32
    setup.threat.check(stored, IMAGES, "the static attack")


# --- masks and pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "patch", "ratio", "masked"), [(224, 8, 0.7, 549), (32, 2, 0.7, 179)])
def test_the_student_mask_zeroes_exactly_the_rounded_number_of_whole_blocks(size, patch, ratio, masked):
    images = torch.ones(3, 3, size, size)
    blocks = patchify(distill.mask_blocks(images, Noise.of(torch.arange(3), "test"), patch, ratio), patch)
    zeroed = (blocks == 0).all(dim=2)
    assert bool(((blocks == 1).all(dim=2) | zeroed).all())
    assert zeroed.sum(dim=1).tolist() == [masked] * 3


def test_the_teacher_sees_only_the_patches_in_sight():
    teacher, images = teacher_of(), IMAGES[:4]
    kept = keep_tokens(Noise.of(torch.arange(4), "test"), 16, 0.75)
    removed = torch.ones(4, 16, dtype=torch.bool).scatter(1, kept, False)
    patches = patchify(images, 2)
    hidden = unpatchify(torch.where(removed[..., None], 1 - patches, patches), 2, (4, 4))
    assert torch.equal(teacher(hidden, kept), teacher(images, kept))
    full = teacher_of(replace(TINY, distill_gate="full"))
    assert not torch.allclose(full(hidden, kept), full(images, kept))  # the option lets the attack through


def spy(objective: distill.DistillObjective) -> dict[str, list[Tensor]]:
    """Record what teacher and student are given."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "kept": [], "student": []}
    assert objective.teacher is not None
    teacher, features = objective.teacher.module.forward, objective.model.features

    def look_teacher(images: Tensor, kept: Tensor) -> Tensor:
        seen["teacher"].append(images)
        seen["kept"].append(kept)
        return teacher(images, kept)

    def look_student(images: Tensor) -> Tensor:
        seen["student"].append(images)
        return features(images)  # type: ignore[operator]

    objective.teacher.module.forward = look_teacher  # type: ignore[method-assign]
    objective.model.features = look_student  # type: ignore[assignment]
    return seen


def test_each_clean_image_stays_paired_with_its_own_attacked_one_when_batches_are_shuffled():
    attacked = Produced((255 - IMAGES * 255).round().to(torch.uint8).numpy())
    objective = objective_of(attacked=attacked)
    seen = spy(objective)
    index = torch.tensor([17, 2, 23, 9])
    objective(batch_of(index))
    torch.testing.assert_close(seen["teacher"][0], 1 - IMAGES[index])
    student = seen["student"][0]
    torch.testing.assert_close(student, torch.where(student == 0, 0.0, IMAGES[index]))


def test_teacher_and_student_masks_are_drawn_apart_and_anew_every_epoch():
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


def test_without_masks_both_networks_see_whole_images():
    objective = objective_of(replace(TINY, mask=False))
    seen = spy(objective)
    objective(batch_of())
    assert seen["kept"] == [None]
    assert torch.equal(seen["student"][0], IMAGES) and torch.equal(seen["teacher"][0], IMAGES)


def test_a_flip_turns_the_clean_and_the_attacked_image_together():
    config = replace(TINY, augment="flip", mask=False)
    objective = objective_of(config, Produced((255 - IMAGES * 255).round().to(torch.uint8).numpy()))
    seen = spy(objective)
    objective(batch_of())
    torch.testing.assert_close(seen["teacher"][0], 1 - seen["student"][0])
    turned = (seen["student"][0] != IMAGES).flatten(1).any(dim=1)
    assert 0 < turned.sum() < 24


# --- eq. 5 and 6 --------------------------------------------------------------------------------


def test_eq_5_on_two_samples_is_what_a_pencil_gives():
    student = torch.log(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))  # softmax (1/4, 3/4), (1/2, 1/2)
    teacher = torch.log(torch.tensor([[1.0, 1.0], [1.0, 4.0]]))  # softmax (1/2, 1/2), (1/5, 4/5)
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    second = 0.2 * math.log(2 / 5) + 0.8 * math.log(8 / 5)
    divergence, _ = distill.robust_loss(student, teacher)
    assert divergence.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert distill.robust_loss(teacher, student)[0].item() != pytest.approx(divergence.item(), rel=1e-2)


def test_the_second_term_is_two_minus_two_cosines():
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    expected = (2 - 2 * F.cosine_similarity(student, teacher)).mean()
    torch.testing.assert_close(distill.robust_loss(student, teacher)[1], expected)


def test_the_divergence_is_never_negative_and_zero_only_for_equal_distributions():
    student, teacher = torch.randn(50, 9), torch.randn(50, 9)
    assert all(distill.robust_loss(s[None], t[None])[0] > 0 for s, t in zip(student, teacher, strict=True))
    assert distill.robust_loss(teacher + 3, teacher)[0].item() == pytest.approx(0, abs=1e-6)


def test_a_student_without_negative_features_reaches_a_cosine_of_071_at_most_against_the_map():
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


def test_the_robust_loss_reaches_the_backbone_and_not_the_classifier_nor_the_teacher():
    objective, found = gradients("robust")
    assert found["model.body.0.weight"].abs().sum() > 0
    assert found["model.head.weight"].abs().sum() < 1e-6  # rounding of total - class_loss
    assert objective.teacher is not None
    assert not any(p.requires_grad for p in objective.teacher.module.parameters())
    assert not any("teacher" in name or "encoder" in name for name in objective.state_dict())


def test_the_class_loss_reaches_backbone_and_classifier():
    _, found = gradients("class")
    assert found["model.body.0.weight"].abs().sum() > 0 and found["model.head.weight"].abs().sum() > 0


def test_the_total_is_the_plain_sum_of_its_parts():
    loss = objective_of()(batch_of())
    distance = 2 - 2 * loss.metrics["cosine"]
    torch.testing.assert_close(loss.total, loss.metrics["kl"] + distance + loss.metrics["class_loss"])


def test_under_bf16_the_loss_is_float32_and_near_the_float32_one():
    objective = objective_of().eval()
    plain = objective(batch_of()).total
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(batch_of()).total
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0.05, atol=0.05)


# --- the map to the student's width -------------------------------------------------------------


def test_the_fixed_map_is_semi_orthogonal_keeps_cosines_and_depends_on_the_seed():
    basis = distill.semi_orthogonal(12, 40, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(12), rtol=0, atol=1e-6)
    one, other = torch.randn(20, 12), torch.randn(20, 12)
    mapped = F.cosine_similarity(one @ basis.T, other @ basis.T)
    torch.testing.assert_close(mapped, F.cosine_similarity(one, other), rtol=0, atol=1e-5)
    assert torch.equal(basis, distill.semi_orthogonal(12, 40, 3))
    assert not torch.equal(basis, distill.semi_orthogonal(12, 40, 4))
    narrow = distill.semi_orthogonal(40, 12, 3)
    torch.testing.assert_close(narrow @ narrow.T, torch.eye(12), rtol=0, atol=1e-6)


def test_the_students_own_projector_is_trained_and_left_behind():
    setup = setup_of(replace(TINY, feature_map="student-projector", attacked_images=False))
    objective = distill.begin(setup, MAE(setup.config, SHAPE, 0))
    objective(batch_of()).total.backward()
    assert objective.projector is not None
    assert all(p.grad is not None for p in objective.projector.parameters())
    assert not any("projector" in name for name in setup.model.state_dict())
    assert objective.teacher is not None and objective.teacher(IMAGES, None).shape == (24, 8)


# --- stages -------------------------------------------------------------------------------------


def names(**changes: object) -> list[str]:
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    return [stage.name for stage in MACD(config).stages(setup_of(config))]


def test_the_config_decides_which_stages_there_are():
    assert names() == ["mae-pretrain", "mae-feature", "static-attack", "distill"]
    assert names(attacked_images=False) == ["mae-pretrain", "mae-feature", "distill"]
    assert names(contrastive_only=True) == ["static-attack", "distill"]
    assert names(head_epochs=2, bn_recalibrate=True)[-3:] == ["distill", "head", "bn-recalibrate"]


def test_the_whole_method_runs_and_changes_no_network_it_only_looks_at():
    setup = setup_of(replace(TINY, head_epochs=2, bn_recalibrate=True))
    standard = setup.required["standard"].module
    before = state(standard)
    losses = run(setup)
    assert same(before, standard.state_dict()) and not standard.training
    for stage in losses.values():
        assert all(bool(v.isfinite()) for loss in stage for v in (loss.total, *loss.metrics.values()))
    assert set(losses["distill"][0].metrics) == {"kl", "cosine", "class_loss"}
    class_losses = [loss.metrics["class_loss"].item() for loss in losses["distill"]]
    assert class_losses[-1] < class_losses[0]
    assert losses["head"][-1].total < losses["head"][0].total


def test_two_runs_of_one_seed_end_in_the_same_weights():
    ends = []
    for _ in range(2):
        setup = setup_of()
        run(setup)
        ends.append(state(setup.model))
    assert same(*ends)


def test_the_student_begins_as_the_standard_model_and_the_teacher_stays_as_it_was():
    setup = setup_of()
    setup.produced["static-attack"] = Produced((IMAGES * 255).round().to(torch.uint8).numpy())
    mae = MAE(TINY, SHAPE, 0)
    assert not same(state(setup.model), setup.required["standard"].module.state_dict())
    objective = distill.begin(setup, mae).train()
    assert same(state(setup.model), setup.required["standard"].module.state_dict())
    assert objective.teacher is not None and not objective.teacher.module.training
    before = state(objective.teacher.module)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for epoch in range(3):
        objective(batch_of(epoch=epoch)).total.backward()
        optimizer.step()
    assert same(before, objective.teacher.module.state_dict())
    assert objective.teacher.module.encoder.embed.weight.grad is None  # type: ignore[union-attr]


def test_contrastive_only_puts_the_student_on_both_sides_with_its_own_blocks():
    attacked = Produced((255 - IMAGES * 255).round().to(torch.uint8).numpy())
    objective = objective_of(replace(TINY, contrastive_only=True), attacked)
    seen: list[Tensor] = []
    objective.model.body.register_forward_hook(lambda module, args, out: seen.append(args[0]))  # type: ignore[union-attr]
    loss = objective(batch_of())
    clean, literal = seen
    torch.testing.assert_close(clean, torch.where(clean == 0, 0.0, IMAGES))
    torch.testing.assert_close(literal, torch.where(literal == 0, 0.0, 1 - IMAGES))
    assert not torch.equal(clean == 0, literal == 0)
    assert loss.total.requires_grad


class Counter:
    """Counts the forwards and weight gradients of a module."""

    def __init__(self, module: nn.Module, weight: nn.Parameter) -> None:
        self.forward = self.weight_grad = 0
        module.register_forward_hook(lambda *_: setattr(self, "forward", self.forward + 1))
        if weight.requires_grad:
            weight.register_hook(lambda grad: setattr(self, "weight_grad", self.weight_grad + 1))


@pytest.mark.parametrize("changes", [{}, {"distill_gate": "full"}, {"mask": False, "distill_gate": "full"}])
def test_the_distillation_makes_the_passes_it_declares(changes):
    setup = setup_of(replace(TINY, attacked_images=False, **changes))
    stage = MACD(setup.config).stages(setup)[-1]
    assert isinstance(stage, Train) and stage.passes is not None and not isinstance(stage.objective, nn.Module)
    objective = stage.objective()
    model, encoder = setup.model, objective.teacher.module.encoder  # type: ignore[union-attr]
    student = Counter(model.body, model.body[0].weight)  # type: ignore[arg-type,index]
    teacher = Counter(encoder, encoder.cls)  # type: ignore[arg-type,union-attr]
    objective(batch_of()).total.backward()
    assert student.forward == stage.passes.forward and student.weight_grad == stage.passes.weight_grad
    assert teacher.forward == stage.passes.teacher_forward


def test_the_autoencoder_makes_the_passes_it_declares():
    setup = setup_of()
    for stage in MACD(TINY).stages(setup)[:2]:
        assert isinstance(stage, Train) and stage.passes is not None
        objective = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
        mae = getattr(objective, "mae", objective)
        parts = [Counter(mae.encoder, mae.encoder.cls), Counter(mae.decoder, mae.decoder.mask_token)]
        anchor = getattr(objective, "anchor", None)
        looks = [Counter(anchor.module, anchor.module.cls)] if anchor else []
        objective(batch_of()).total.backward()
        assert sum(part.forward for part in parts) == stage.passes.forward == stage.passes.weight_grad
        assert sum(look.forward for look in looks) == stage.passes.teacher_forward


def test_the_head_stage_moves_the_head_alone_and_restores_the_mode():
    setup = setup_of(replace(TINY, head_epochs=1))
    stage = MACD(setup.config).stages(setup)[-1]
    setup.model.train()
    before = state(setup.model)
    objective = stage.objective()  # type: ignore[union-attr,operator]
    optimizer = stage.optimizer(objective)  # type: ignore[union-attr]
    objective(batch_of()).total.backward()
    optimizer.step()
    moved = {name for name, value in setup.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head.weight", "head.bias"} and setup.model.training


def test_recalibration_moves_batchnorm_buffers_alone_to_the_mean_over_clean_batches():
    setup = setup_of(replace(TINY, bn_recalibrate=True))
    stage = MACD(setup.config).stages(setup)[-1]
    before = {name: p.clone() for name, p in setup.model.named_parameters()}
    objective = stage.objective().train()  # type: ignore[union-attr,operator]
    for index in torch.arange(24).split(12):
        assert not objective(batch_of(index)).total.requires_grad
    assert same(before, dict(setup.model.named_parameters()))
    convolved = setup.model.body[0](IMAGES)  # type: ignore[index,operator]
    torch.testing.assert_close(setup.model.body[1].running_mean, convolved.mean((0, 2, 3)))  # type: ignore[index]


# --- presets and errors -------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    config = MACDConfig()
    assert (config.epochs, config.lr, config.momentum, config.weight_decay) == (10, 0.003, 0.9, 5e-4)
    assert (config.mae_epochs, config.feature_epochs, config.static_steps) == (100, 20, 40)
    assert (config.mae_mask_ratio, config.teacher_mask_ratio, config.student_mask_ratio) == (0.85, 0.75, 0.7)
    assert (config.teacher_patch, config.student_patch) == (16, 8)
    assert (config.encoder_width, config.encoder_depth, config.decoder_width, config.decoder_depth) == (
        768,
        12,
        512,
        8,
    )


@pytest.mark.parametrize("layers", [("quick",), ("quick", "quick:large"), ("cifar",)])
def test_presets_resolve_to_valid_configs_whatever_the_run_gives_other_defenses(layers):
    base = {"epochs": 99, "lr": 0.1, "schedule": "one-cycle", "augment": "crop-flip", "eps_warmup": 0.3}
    values = {**base, "batch_size": 1, **{k: v for layer in layers for k, v in PRESETS[layer].items()}}
    config = MACDConfig(**values)
    assert (config.lr, config.schedule, config.batch_size > 1) == (0.003, "constant", True)
    assert (config.encoder_depth, config.decoder_depth, config.epochs <= 10) == (12, 8, True)
    setup = replace(setup_of(config), image_shape=(3, 32, 32))
    assert len(MACD(config).stages(setup)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "crop-flip"}, "augment must be one of none, flip, got crop-flip"),
        ({"eps_warmup": 0.3}, "eps_warmup must be 0 .*got 0.3"),
        ({"mae_mask_ratio": 0.0}, "mae_mask_ratio must be between 0 and 1, got 0.0"),
        ({"student_mask_ratio": 1.0}, "student_mask_ratio must be in"),
        ({"encoder_width": 10}, "encoder_width must be a multiple of 4 and of encoder_heads = 2, got 10"),
        ({"feature_target": "moving"}, "feature_target must be one of frozen, stopgrad, both, got moving"),
        ({"fusion": "mlp"}, "fusion must be one of pooled, cross_attention"),
        ({"distill_gate": "none"}, "distill_gate must be one of self, full"),
        ({"feature_map": "learned"}, "feature_map must be one of fixed, student-projector"),
        ({"static_steps": 0}, "static_steps must be >= 1, got 0"),
        ({"lr": 0.0}, "lr must be > 0"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_patch": 3}, "teacher_patch must divide the image size 8 x 8, got 3"),
        ({"student_patch": 5}, "student_patch must divide the image size 8 x 8, got 5"),
        ({"mae_mask_ratio": 0.99}, "mae_mask_ratio 0.99 keeps 0 of 16 patches, allowed are 1 to 15"),
        ({"mae_mask_ratio": 0.01}, "mae_mask_ratio 0.01 keeps 16 of 16 patches, allowed are 1 to 15"),
        ({"student_patch": 8}, "student_mask_ratio 0.7 keeps 0 of 1 patches"),
    ],
)
def test_masks_that_do_not_fit_the_images_are_refused_before_anything_runs(changes, message):
    config = replace(TINY, **changes)
    with pytest.raises(ValueError, match=message):
        MACD(config).stages(setup_of(config))


def test_stored_float_images_come_back_unchanged():
    array = np.random.default_rng(0).random((4, 3, 2, 2), dtype=np.float32)
    assert torch.equal(Produced(array)[torch.tensor([2, 0])], torch.from_numpy(array[[2, 0]]))
