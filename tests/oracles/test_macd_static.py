"""MACD's static attack: its closed form, what it may not touch, and how its images are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.defenses.macd import MACDConfig, static
from robobench.training.base import Batch, FrozenModel, PrecomputedArray
from tests.helpers.macd import EPS, IMAGES, SHAPE, TINY, batch_of, same, setup_of, state
from tests.helpers.toys import LinearTwoClass


def test_on_a_linear_model_the_static_attack_reaches_the_closed_form_worst_case():
    model = LinearTwoClass(SHAPE).requires_grad_(False)
    images, labels = torch.full((5, *SHAPE), 0.5), torch.tensor([0, 0, 1, 1, 0])  # some right, some wrong
    config = MACDConfig(static_steps=40)
    attack = static.static_attack(FrozenModel(model), ThreatModel("Linf", EPS), config, on_grid=False)
    index = torch.arange(5)
    adv = attack(Batch(images, labels, index, 0, KeyedRng.of(index, "test")))
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
    read = PrecomputedArray(stored.numpy())[torch.arange(len(IMAGES))]
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


def test_stored_float_images_come_back_unchanged():
    array = np.random.default_rng(0).random((4, 3, 2, 2), dtype=np.float32)
    stored = PrecomputedArray(array)
    assert stored.array is array  # not loaded where it is a file's
    assert torch.equal(stored[torch.tensor([2, 0])], torch.from_numpy(array[[2, 0]]))
