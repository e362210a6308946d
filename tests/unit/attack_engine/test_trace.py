"""Loss and success rate per step."""

import pytest
import torch
from torch import nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.options import AttackOptions
from robobench.attack_engine.trace import average_traces, collect_traces
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from tests.helpers.attacks import Climb, Threshold, pixels


def test_trace_has_loss_and_success_rate():
    threat, images = ThreatModel("Linf", 1.0), pixels(0.45, 0.0)
    labels, rng = torch.zeros(2, dtype=torch.long), KeyedRng.of(torch.arange(2), 0)
    options = AttackOptions(traces={})
    run_iterative_attack(Climb(None, threat), Threshold(), images, labels, rng, early_stop=True, options=options)
    run_iterative_attack(Climb(None, threat), Threshold(), images, labels, rng, early_stop=True)  # not recorded
    # Cross-entropy of logits (-gap, gap) on class 0 is softplus(2 gap); the first image leaves at 0.55.
    gaps = torch.tensor([[-0.05, -0.5], [0.05, -0.4], [0.05, -0.3], [0.05, -0.2]])
    losses = nn.functional.softplus(2 * gaps).mean(1)
    (recorded,) = options.traces["climb"]
    torch.testing.assert_close(recorded[:, 0], torch.full((4,), 2.0))
    torch.testing.assert_close(recorded[:, 1], losses)
    assert recorded[:, 2].tolist() == [0.0, 0.5, 0.5, 0.5]
    trace = collect_traces(options.traces)["climb"]
    assert trace["images"] == 2 and trace["loss"] == pytest.approx(losses.tolist())


def test_average_traces_weights_by_images():
    """A trace that stopped early is padded with its last value."""
    long = {"pgd": {"images": 3, "loss": [1.0, 2.0, 3.0], "success_rate": [0.0, 0.0, 1.0]}}
    short = {
        "pgd": {"images": 1, "loss": [5.0], "success_rate": [1.0]},
        "fab": {"images": 1, "loss": [1.0], "success_rate": [0.0]},
    }
    both = average_traces([long, short])
    assert both["pgd"] == {"images": 4, "loss": [2.0, 2.75, 3.5], "success_rate": [0.25, 0.25, 1.0]}
    assert both["fab"] == short["fab"]
    assert average_traces([average_traces([long, short]), short]) == average_traces([long, short, short])


def test_thinned_trace_keeps_its_last_entry():
    trace = torch.tensor([[1.0, float(n), float(n == 22)] for n in range(23)])  # step 22 is not one of TRACE_STEPS
    kept = collect_traces({"pgd": [trace]})["pgd"]
    assert kept["success_rate"][-1] == 1 and kept["loss"][-2:] == [19.0, 22.0]
