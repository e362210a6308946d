"""A small MACD, and functions to run its stages in tests."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from robobench.core.threat import ThreatModel
from robobench.defenses.macd import MACD, MACDConfig, distill
from robobench.defenses.macd.mae import MAE
from robobench.defenses.macd.pretrain import Teacher
from robobench.training.base import Batch, DefenseSetup, FrozenModel, Loss, Precompute, PrecomputedArray
from tests.helpers import defenses
from tests.helpers.toys import TinyBatchNormNet, color_blobs

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
    head_epochs=2,
)
DEEPER = replace(TINY, encoder_width=16, encoder_depth=2)
SHAPE, EPS = (3, 8, 8), 8 / 255
IMAGES, LABELS = color_blobs(24)
IMAGES = (IMAGES * 255).round() / 255  # exact in uint8, so that the attack is stored as uint8


def batch_of(index: Tensor | None = None, epoch: int = 0) -> Batch:
    index = torch.arange(len(IMAGES)) if index is None else index
    return defenses.batch_of(IMAGES[index], LABELS[index], epoch, index)


def setup_of(norm: str = "Linf", eps: float = EPS, is_uint8_exact: bool = True) -> DefenseSetup:
    torch.manual_seed(0)
    return defenses.setup_of(
        TinyBatchNormNet(channels=16),
        threat=ThreatModel(norm, eps),
        is_uint8_exact=is_uint8_exact,
        required_models={"standard": FrozenModel(TinyBatchNormNet(channels=16))},
    )


def teacher_of(config: MACDConfig = TINY) -> FrozenModel:
    mae = MAE(config, SHAPE, 0)
    return FrozenModel(Teacher(mae.encoder, mae.fusion, config.distill_gate, distill.semi_orthogonal(8, 16, 0)))


def objective_of(config: MACDConfig = TINY, attacked: PrecomputedArray | None = None) -> distill.DistillObjective:
    torch.manual_seed(0)
    teacher = None if config.contrastive_only else teacher_of(config)
    return distill.DistillObjective(TinyBatchNormNet(channels=16), teacher, attacked, config)


def run(setup: DefenseSetup, config: MACDConfig = TINY) -> dict[str, list[Loss]]:
    """Run the stages as the core does; return all losses by stage."""
    losses: dict[str, list[Loss]] = {}
    for stage in MACD(config).stages(setup):
        if isinstance(stage, Precompute):
            setup.precomputed[stage.name] = PrecomputedArray(stage.function(batch_of()).numpy())
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
