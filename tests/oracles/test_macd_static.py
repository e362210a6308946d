"""MACD's static attack: its closed form on a linear model, its side effects, and the storage of its images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.core.threat import ThreatModel
from robobench.defenses.macd import MACDConfig, static
from robobench.training.base import FrozenModel, PrecomputedArray
from tests.helpers import defenses
from tests.helpers.macd import EPS, IMAGES, SHAPE, TINY, batch_of, same, setup_of, state
from tests.helpers.toys import LinearTwoClass


def test_static_attack_reaches_linear_worst_case():
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.full((5, *SHAPE), 0.5), torch.tensor([0, 0, 1, 1, 0])  # some right, some wrong
    config = MACDConfig(static_steps=40)
    attack = static.static_attack(FrozenModel(model), ThreatModel("Linf", EPS), config, is_uint8_exact=False)
    adv = attack(defenses.batch_of(images, labels))
    drop = (model.gap(images) - model.gap(adv)) * torch.where(labels == 0, 1, -1)
    torch.testing.assert_close(drop, (EPS * model.w.norm(1)).expand(5), rtol=1e-4, atol=1e-6)


def test_static_attack_ignores_batch_and_keeps_model():
    setup = setup_of(is_uint8_exact=False)
    stage = static.stage(setup, TINY)
    before = state(setup.required_models["standard"].module)
    whole = stage.function(batch_of())
    part = stage.function(batch_of(torch.tensor([7, 3, 19])))
    torch.testing.assert_close(whole[torch.tensor([7, 3, 19])], part, rtol=0, atol=1e-6)
    assert same(before, setup.required_models["standard"].module.state_dict())
    assert stage.passes is not None and stage.passes.teacher_forward_equivalents == 2 * TINY.static_steps


def test_uint8_adversarial_examples_stay_in_ball():
    setup = setup_of()
    stored = static.stage(setup, TINY).function(batch_of())
    assert stored.dtype == torch.uint8
    read = PrecomputedArray(stored.numpy())[torch.arange(len(IMAGES))]
    setup.threat.check(read, IMAGES, "the stored static attack")
    assert (read - IMAGES).abs().amax().item() == pytest.approx(EPS)  # the full radius is used


def test_rounding_to_uint8_projects_to_ball():
    clean = torch.tensor([[10.0, 250.0, 3.0]]) / 255
    adv = torch.tensor([[14.6, 254.9, -1.0]]) / 255
    assert static.round_to_uint8(adv, clean, 4).tolist() == [[14, 254, 0]]


@pytest.mark.parametrize(
    ("norm", "eps", "is_uint8_exact"), [("L2", 128 / 255, True), ("Linf", 0.1, True), ("Linf", EPS, False)]
)
def test_adversarial_examples_stay_float32_if_uint8_is_inexact(norm, eps, is_uint8_exact):
    setup = setup_of(norm=norm, eps=eps, is_uint8_exact=is_uint8_exact)
    stored = static.stage(setup, TINY).function(batch_of())
    assert stored.dtype == torch.float32
    setup.threat.check(stored, IMAGES, "the static attack")


def test_stored_float_images_are_unchanged():
    array = np.random.default_rng(0).random((4, 3, 2, 2), dtype=np.float32)
    stored = PrecomputedArray(array)
    assert stored.array is array  # not copied
    assert torch.equal(stored[torch.tensor([2, 0])], torch.from_numpy(array[[2, 0]]))
