"""MACD's stages: which run, what each may change, declared passes; presets and config errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robobench.defenses.macd import MACD, PRESETS, MACDConfig, distill, head
from robobench.defenses.macd.mae import MAE
from robobench.models.build import build_model
from robobench.models.masked_autoencoder import MAEEncoder
from robobench.models.spec import ModelSpec
from robobench.training.base import FrozenModel, PrecomputedArray, Train
from tests.helpers.macd import IMAGES, SHAPE, TINY, batch_of, objective_of, run, same, setup_of, state
from tests.helpers.toys import TinyBatchNormNet

# --- stages -------------------------------------------------------------------------------------


def names(**changes: object) -> list[str]:
    config = replace(TINY, **changes)  # type: ignore[arg-type]
    return [stage.name for stage in MACD(config).stages(setup_of())]


def test_config_decides_stages():
    head = ["bn-recalibrate", "head-features", "head"]
    assert names() == ["mae-pretrain", "mae-feature", "static-attack", "distill", *head]
    assert names(attacked_images=False) == ["mae-pretrain", "mae-feature", "distill", *head]
    assert names(contrastive_only=True) == ["static-attack", "distill", *head]
    assert names(head_epochs=0)[-2:] == ["distill", "bn-recalibrate"]
    assert names(head_epochs=0, bn_recalibrate=False)[-1] == "distill"  # Algorithm 2


def test_models_without_batchnorm_are_not_recalibrated():
    model = nn.Sequential()
    model.features, model.head = nn.Flatten(), nn.Linear(192, 3)  # type: ignore[assignment]
    assert [stage.name for stage in head.stages(replace(setup_of(), model=model), TINY)] == ["head-features", "head"]


def test_full_method_runs_and_keeps_standard_model():
    setup = setup_of()
    standard = setup.required_models["standard"].module
    before = state(standard)
    losses = run(setup)
    assert same(before, standard.state_dict()) and not standard.training
    for stage in losses.values():
        assert all(bool(v.isfinite()) for loss in stage for v in (loss.total, *loss.metrics.values()))
    assert set(losses["distill"][0].metrics) == {"kl", "cosine", "class_loss"}
    class_losses = [loss.metrics["class_loss"].item() for loss in losses["distill"]]
    assert class_losses[-1] < class_losses[0]
    assert losses["head"][-1].total < losses["head"][0].total


def test_standard_model_of_another_architecture_is_rejected():
    wider = replace(setup_of(), required_models={"standard": FrozenModel(TinyBatchNormNet(channels=24))})
    with pytest.raises(ValueError, match="copy of the standard model, but their architectures differ; use one model"):
        MACD(TINY).stages(wider)
    models = [build_model(ModelSpec("cnn", 3, 8, mean=(mean,) * 3)) for mean in (0.5, 0.4)]
    shifted = replace(setup_of(), model=models[0], required_models={"standard": FrozenModel(models[1])})
    with pytest.raises(ValueError, match="copy of the standard model, but mean differs"):
        MACD(TINY).stages(shifted)


def test_same_seed_gives_same_weights():
    ends = []
    for _ in range(2):
        setup = setup_of()
        run(setup)
        ends.append(state(setup.model))
    assert same(*ends)


def test_student_starts_as_standard_model():
    """The teacher does not change while the student is trained."""
    setup = setup_of()
    setup.precomputed["static-attack"] = PrecomputedArray((IMAGES * 255).round().to(torch.uint8).numpy())
    mae = MAE(TINY, SHAPE, 0)
    assert not same(state(setup.model), setup.required_models["standard"].module.state_dict())
    objective = distill.make_objective(setup, TINY, mae).train()
    assert same(state(setup.model), setup.required_models["standard"].module.state_dict())
    assert objective.teacher is not None and not objective.teacher.module.training
    before = state(objective.teacher.module)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    for epoch in range(3):
        objective(batch_of(epoch=epoch)).total.backward()
        optimizer.step()
    assert same(before, objective.teacher.module.state_dict())
    assert objective.teacher.module.encoder.embed.weight.grad is None  # type: ignore[union-attr]


def test_contrastive_only_uses_student_on_both_sides():
    attacked = PrecomputedArray((255 - IMAGES * 255).round().to(torch.uint8).numpy())
    objective = objective_of(replace(TINY, contrastive_only=True), attacked)
    seen: list[Tensor] = []
    objective.model.body.register_forward_hook(lambda module, args, out: seen.append(args[0]))  # type: ignore[union-attr]
    loss = objective(batch_of())
    clean, adversarial = seen
    torch.testing.assert_close(clean, torch.where(clean == 0, 0.0, IMAGES))
    torch.testing.assert_close(adversarial, torch.where(adversarial == 0, 0.0, 1 - IMAGES))
    assert not torch.equal(clean == 0, adversarial == 0)
    assert loss.total.requires_grad


class Counter:
    """Counts forward passes of a module and gradients of a weight; an encoder's passes by their share of tokens."""

    def __init__(self, module: nn.Module, weight: nn.Parameter) -> None:
        self.forward = self.weight_grad = 0.0

        def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            some = isinstance(module, MAEEncoder) and len(args) > 1 and args[1] is not None
            self.forward += args[1].shape[1] / module.count if some else 1  # type: ignore[operator]

        module.register_forward_pre_hook(count)
        if weight.requires_grad:
            weight.register_hook(lambda grad: setattr(self, "weight_grad", self.weight_grad + 1))


@pytest.mark.parametrize("changes", [{}, {"distill_gate": "full"}, {"mask": False, "distill_gate": "full"}])
def test_distillation_makes_declared_passes(changes):
    setup = setup_of()
    stage = MACD(replace(TINY, attacked_images=False, **changes)).stages(setup)[2]
    assert isinstance(stage, Train) and stage.passes is not None and not isinstance(stage.objective, nn.Module)
    objective = stage.objective()
    model, encoder = setup.model, objective.teacher.module.encoder  # type: ignore[union-attr]
    student = Counter(model.body, model.body[0].weight)  # type: ignore[arg-type,index]
    teacher = Counter(encoder, encoder.cls)  # type: ignore[arg-type,union-attr]
    objective(batch_of()).total.backward()
    assert student.forward == stage.passes.forward and student.weight_grad == stage.passes.weight_grad
    assert teacher.forward == stage.passes.teacher_forward


def test_autoencoder_makes_declared_passes():
    setup = setup_of()
    for stage in MACD(TINY).stages(setup)[:2]:
        assert isinstance(stage, Train) and stage.passes is not None
        objective = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
        mae = getattr(objective, "mae", objective)
        parts = [Counter(mae.encoder, mae.encoder.cls), Counter(mae.decoder, mae.decoder.mask_token)]
        anchor = getattr(objective, "anchor", None)
        teacher = [Counter(anchor.module, anchor.module.cls)] if anchor else []
        objective(batch_of()).total.backward()
        assert sum(part.forward for part in parts) == stage.passes.forward == stage.passes.weight_grad
        assert all(part.weight_grad == 1 for part in parts)  # autograd adds the gradients of several passes
        assert sum(part.forward for part in teacher) == stage.passes.teacher_forward


# --- presets and errors -------------------------------------------------------------------------


def test_defaults_are_from_paper():
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
def test_presets_override_run_presets_with_valid_configs(layers):
    base = {"epochs": 99, "lr": 0.1, "schedule": "one-cycle", "augment": "crop-flip", "eps_rampup": 0.3}
    values = {**base, "batch_size": 1, **{k: v for layer in layers for k, v in PRESETS[layer].items()}}
    config = MACDConfig(**values)
    assert (config.lr, config.schedule, config.batch_size > 1) == (0.003, "constant", True)
    assert (config.bn_recalibrate, config.head_epochs > 0, config.epochs <= 10) == (True, True, True)
    setup = replace(setup_of(), image_shape=(3, 32, 32))
    assert len(MACD(config).stages(setup)) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": "crop-flip"}, "augment must be one of none, flip, got crop-flip"),
        ({"eps_rampup": 0.3}, "eps_rampup must be 0 .*got 0.3"),
        ({"mae_mask_ratio": 0.0}, "mae_mask_ratio must be between 0 and 1, got 0.0"),
        ({"student_mask_ratio": 1.0}, "student_mask_ratio must be in"),
        ({"encoder_width": 10}, "encoder_width must be a multiple of 4 and of encoder_heads = 2, got 10"),
        ({"feature_target": "moving"}, "feature_target must be one of frozen, stopgrad, both, got moving"),
        ({"fusion": "mlp"}, "fusion must be one of pooled, cross_attention"),
        ({"distill_gate": "none"}, "distill_gate must be one of self, full"),
        ({"head_lr": 0.0}, "head_lr must be > 0, got 0.0"),
        ({"class_weight": -1.0}, "class_weight must be >= 0, got -1.0"),
        ({"mask_fill": "gray"}, "mask_fill must be one of zero, mean, got gray"),
        ({"kl_order": "none"}, "kl_order must be one of teacher-first, student-first"),
        ({"teacher_feature": "both"}, "teacher_feature must be one of tokens, cls"),
        ({"feature_map": "learned"}, "feature_map must be one of fixed, student-projector"),
        ({"static_steps": 0}, "static_steps must be >= 1, got 0"),
        ({"lr": 0.0}, "lr must be > 0"),
    ],
)
def test_invalid_value_error_names_allowed_values(changes, message):
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
def test_masks_that_do_not_fit_are_rejected(changes, message):
    config = replace(TINY, **changes)
    with pytest.raises(ValueError, match=message):
        MACD(config).stages(setup_of())
