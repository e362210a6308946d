"""The cost of a training stage."""

from __future__ import annotations

from robobench.paper.times import stage_forward_equivalents


def test_stage_cost_matches_hand_count():
    passes = {"forward": 11, "input_grad": 10, "weight_grad": 1, "teacher_forward": 0, "teacher_input_grad": 0}
    assert stage_forward_equivalents({"passes": passes}) == 23  # PGD-10: 11 F + 10 Gx + 1 Gw, which counts as two F
    assert stage_forward_equivalents({"passes": None}) is None
