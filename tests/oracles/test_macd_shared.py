"""MACD's shared stages depend on the fields they name and on no other; figure 2's pictures."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.defenses.macd import MACD
from robobench.defenses.macd.config import MACDConfig
from robobench.defenses.macd.mae import MAE, count_kept, patchify
from robobench.defenses.macd.pretrain import reconstruct
from robobench.training.base import Batch, DefenseSetup, FrozenModel, Precompute, Stage
from robobench.training.context import build_objective
from tests.oracles.test_macd_mae import TINY
from tests.helpers.toys import TinyBatchNormNet

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
# Another allowed value of every field; None where there is none, or where it leaves the stages out.
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
    "bn_recalibrate": True,
}


def other(name: str):
    value = getattr(TINY, name)
    return OTHER[name] if name in OTHER else value + 1 if isinstance(value, int) else 0.8 * value + 0.01


def left_by(config: MACDConfig) -> tuple[list[Stage], dict[str, object]]:
    """Take a step of both autoencoder stages and attack the images: what each stage leaves, and its plan."""
    torch.manual_seed(0)
    standard = TinyBatchNormNet()
    setup = DefenseSetup(
        model=TinyBatchNormNet(),
        threat=ThreatModel("Linf", 8 / 255),
        config=config,
        num_classes=2,
        image_shape=(3, 8, 8),
        train_size=len(IMAGES),
        required_models={"standard": FrozenModel(standard)},
    )
    stages, left = MACD(config).stages(setup)[:3], {}
    index = torch.arange(len(IMAGES))
    batch = Batch(IMAGES, index % 2, index, 0, KeyedRng.of(index, "test"))
    for stage in stages:
        if isinstance(stage, Precompute):
            left[stage.name] = [stage.function(batch).flatten().tolist(), stage.batch_size]
            continue
        objective = build_objective(stage, "cpu")
        optimizer = stage.optimizer(objective)
        objective(batch).total.backward()
        optimizer.step()
        state = {name: value.flatten().tolist() for name, value in objective.state_dict().items()}
        left[stage.name] = [state, stage.epochs, stage.batch_size, stage.augment, stage.schedule(0.3)]
        left[stage.name].append(stage.final_metrics(IMAGES) if stage.final_metrics else None)
    return stages, left


def test_fields_that_a_stage_does_not_name_change_nothing_it_leaves():
    config = replace(TINY, static_steps=2, mae_epochs=3, feature_epochs=3)
    stages, left = left_by(config)
    known = {f.name for f in fields(MACDConfig)}
    assert [stage.name for stage in stages] == ["mae-pretrain", "mae-feature", "static-attack"]
    for stage in stages:
        assert set(stage.config_fields) < known
        changed = {name: other(name) for name in known - set(stage.config_fields) if other(name) is not None}
        if stage.name == "static-attack":
            changed["mae_mask_ratio"] = 0.5  # patches of 4 pixels leave it four tokens
        assert left_by(replace(config, **changed))[1][stage.name] == left[stage.name]
    changed = {name: other(name) for name in stages[2].config_fields}
    assert left_by(replace(config, **changed))[1]["static-attack"] != left["static-attack"]
    assert left_by(replace(config, mae_mask_ratio=0.5))[1]["mae-feature"] != left["mae-feature"]


def test_a_reconstruction_keeps_the_seen_patches_and_fills_the_rest():
    mae_state = {f"mae.{name}": value for name, value in MAE(TINY, (3, 8, 8), 0).state_dict().items()}
    mae_state["mae.decoder.to_pixels.weight"].zero_()
    mae_state["mae.decoder.to_pixels.bias"].fill_(0.25)
    masked, filled = (patchify(x, TINY.teacher_patch) for x in reconstruct(TINY, mae_state, IMAGES))
    true = patchify(IMAGES, TINY.teacher_patch)
    seen = (masked == true).all(dim=2)
    assert (seen.sum(dim=1) == count_kept(16, TINY.mae_mask_ratio)).all()
    assert (masked[~seen] == 0.5).all() and (filled[~seen] == 0.25).all()
    assert torch.equal(filled[seen], true[seen])
