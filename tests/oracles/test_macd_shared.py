"""MACD's shared stages depend only on their `config_fields`; the images of figure 2."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from robobench.core.threat import ThreatModel
from robobench.defenses.macd import MACD
from robobench.defenses.macd.config import MACDConfig
from robobench.defenses.macd.mae import MAE
from robobench.defenses.macd.pretrain import reconstruct
from robobench.models.masked_autoencoder import count_kept, patchify
from robobench.training.base import Precompute, Stage
from robobench.training.context import build_objective
from tests.helpers import defenses
from tests.helpers.macd import DEEPER, SHAPE
from tests.helpers.toys import TinyBatchNormNet

IMAGES = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
# Another allowed value of each field; None if there is none, or if it would drop stages.
OTHER = {
    "schedule": "cosine",
    "drops": (0.1,),
    "augment": "flip",
    "eps_rampup": None,
    "attacked_images": None,
    "contrastive_only": None,
    "fusion": "cross_attention",
    "feature_target": "both",
    "distill_gate": "full",
    "feature_map": "student-projector",
    "encoder_width": 32,
    "encoder_heads": 1,
    "decoder_width": 16,
    "decoder_heads": 1,
    "student_patch": 4,
    "teacher_patch": 4,
    "mask": False,
    "bn_recalibrate": False,
    "teacher_feature": "cls",
    "mask_fill": "mean",
    "kl_order": "student-first",
    "optimizer": "adamw",
    "nesterov": False,
    "decay_norms": False,
    "layer_decay": 0.5,
    "smooth_attack": True,
    "average": "ema",
    "average_batchnorm": "recompute",
    "freeze": "backbone",
}


def other(name: str):
    value = getattr(DEEPER, name)
    return OTHER[name] if name in OTHER else value + 1 if isinstance(value, int) else 0.8 * value + 0.01


def stage_results(config: MACDConfig) -> tuple[list[Stage], dict[str, object]]:
    """Take a step of both autoencoder stages and attack the images; return stages, their settings and results."""
    torch.manual_seed(0)
    required = defenses.frozen_models(["standard"])
    threat = ThreatModel("Linf", 8 / 255)
    setup = defenses.setup_of(TinyBatchNormNet(), threat=threat, num_classes=2, required_models=required)
    stages, results = MACD(config).stages(setup)[:3], {}
    batch = defenses.batch_of(IMAGES, torch.arange(len(IMAGES)) % 2)
    for stage in stages:
        if isinstance(stage, Precompute):
            results[stage.name] = [stage.function(batch).flatten().tolist(), stage.batch_size]
            continue
        objective = build_objective(stage, "cpu")
        optimizer = stage.optimizer(objective)
        objective(batch).total.backward()
        optimizer.step()
        state = {name: value.flatten().tolist() for name, value in objective.state_dict().items()}
        results[stage.name] = [state, stage.epochs, stage.batch_size, stage.augment, stage.schedule(0.3)]
        results[stage.name].append(stage.final_metrics(IMAGES) if stage.final_metrics else None)
    return stages, results


def test_stages_depend_only_on_their_config_fields():
    config = replace(DEEPER, static_steps=2, mae_epochs=3, feature_epochs=3)
    stages, results = stage_results(config)
    known = {f.name for f in fields(MACDConfig)}
    assert [stage.name for stage in stages] == ["mae-pretrain", "mae-feature", "static-attack"]
    for stage in stages:
        assert set(stage.config_fields) < known
        changed = {name: other(name) for name in known - set(stage.config_fields) if other(name) is not None}
        if stage.name == "static-attack":
            changed["mae_mask_ratio"] = 0.5  # with patches of 4 pixels there are only four tokens
        assert stage_results(replace(config, **changed))[1][stage.name] == results[stage.name]
    changed = {name: other(name) for name in stages[2].config_fields}
    assert stage_results(replace(config, **changed))[1]["static-attack"] != results["static-attack"]
    assert stage_results(replace(config, mae_mask_ratio=0.5))[1]["mae-feature"] != results["mae-feature"]


def test_reconstruction_keeps_visible_patches():
    mae_state = {f"mae.{name}": value for name, value in MAE(DEEPER, SHAPE, 0).state_dict().items()}
    mae_state["mae.decoder.to_pixels.weight"].zero_()
    mae_state["mae.decoder.to_pixels.bias"].fill_(0.25)
    masked, filled = (patchify(x, DEEPER.teacher_patch) for x in reconstruct(DEEPER, mae_state, IMAGES))
    true = patchify(IMAGES, DEEPER.teacher_patch)
    visible = (masked == true).all(dim=2)
    assert (visible.sum(dim=1) == count_kept(16, DEEPER.mae_mask_ratio)).all()
    assert (masked[~visible] == 0.5).all() and (filled[~visible] == 0.25).all()
    assert torch.equal(filled[visible], true[visible])
