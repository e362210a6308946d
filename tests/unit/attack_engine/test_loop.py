"""Early stopping, restarts and compaction, with an attack that can be followed by hand."""

import pytest
import torch
from torch import nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.options import AttackOptions
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.evaluation.accuracy import transfer_outcomes
from tests.helpers.attacks import Climb, LimitedMemory, Threshold, pixels

THREAT = ThreatModel("Linf", 1.0)
IMAGES = pixels(0.6, 0.45, 0.25, 0.0)  # misclassified when clean, after 1 step, after 3 steps, never


def run(attack, images, early_stop):
    model, labels = Threshold(), torch.zeros(len(images), dtype=torch.long)
    rng = KeyedRng.of(torch.arange(len(images)), 0)
    result = run_iterative_attack(attack, model, images, labels, rng, early_stop=early_stop)
    return result.adv.flatten().tolist(), result.success.tolist(), model.evaluated


def test_early_stop_returns_first_success():
    adv, success, evaluated = run(Climb(None, THREAT), IMAGES, True)
    assert adv == pytest.approx([0.6, 0.55, 0.55, 0.3])
    assert success == [True, True, True, False]
    assert evaluated == 4 + 3 + 2 + 2  # three steps, and once after the last


def test_full_budget_returns_last_iterate():
    adv, success, evaluated = run(Climb(None, THREAT), IMAGES, False)
    assert adv == pytest.approx([0.9, 0.75, 0.55, 0.3])
    assert success == [True, True, True, False]
    assert evaluated == 4 * 4


def test_restart_attacks_survivors_only():
    attack = Climb(None, THREAT)
    attack.restarts = 2
    adv, success, _ = run(attack, pixels(0.6, 0.1, 0.0), False)
    assert attack.starts == (3, 2)
    assert adv == pytest.approx([0.9, 0.55, 0.45])
    assert success == [True, True, False]


def test_attack_leaves_clean_images_unchanged():
    images = IMAGES.clone()
    for early_stop in (True, False):
        run(Climb(None, THREAT), images, early_stop)
    assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_compaction_changes_no_outcome(digits_net, digits, norm):
    images, labels = digits[0][1000:1060], digits[1][1000:1060]
    threat = ThreatModel(norm, 0.08 if norm == "Linf" else 0.5)
    attack, rng = PGD(PGDConfig(steps=8, restarts=2), threat), KeyedRng.of(torch.arange(60), "pgd")
    batch = run_iterative_attack(attack, digits_net, images, labels, rng, early_stop=True)
    threat.check(batch.adv, images, "pgd")
    single = [
        run_iterative_attack(
            attack, digits_net, images[i : i + 1], labels[i : i + 1], rng[torch.tensor([i])], early_stop=True
        )
        for i in range(60)
    ]
    assert batch.success.tolist() == [bool(result.success) for result in single]
    assert 5 < batch.success.sum() < 55
    assert torch.equal(digits_net(batch.adv).argmax(1) != labels, batch.success)
    # If the last iterate of an image is misclassified, some iterate is.
    one = PGD(PGDConfig(steps=8), threat)
    last, first = (
        run_iterative_attack(one, digits_net, images, labels, rng, early_stop=early_stop).success
        for early_stop in (False, True)
    )
    assert not (last & ~first).any()


def test_early_stop_must_be_named():
    """A bare True or False at the end of a call would not be readable."""
    rng = KeyedRng.of(torch.arange(4), 0)
    with pytest.raises(TypeError, match="positional arguments"):
        run_iterative_attack(Climb(None, THREAT), Threshold(), IMAGES, torch.zeros(4).long(), rng, True)


def test_iterates_outside_ball_do_not_count():
    class Far(Climb):
        iterates_leave_ball = True

        def finish(self, state, logits):
            return state.images

    attack = Far(None, ThreatModel("Linf", 0.15))
    adv, success, _ = run(attack, pixels(0.45, 0.35, 0.25), True)
    assert success == [True, False, False]  # one step stays inside; two or three leave the ball
    assert adv == pytest.approx([0.55, 0.35, 0.25])


def test_nan_logits_count_as_misclassified():
    class Overflows(nn.Module):
        def forward(self, images):
            gap = images.flatten(1).sum(1)
            return torch.stack((torch.where(gap > 0.5, torch.nan, 1 - gap), gap), dim=1)

    images, labels = pixels(0.45, 0.0), torch.zeros(2, dtype=torch.long)
    rng = KeyedRng.of(torch.arange(2), 0)
    assert Overflows()(images + 0.1)[0].argmax() == 0  # torch's argmax takes NaN for the largest
    result = run_iterative_attack(Climb(None, THREAT), Overflows(), images, labels, rng, early_stop=True)
    assert result.success.tolist() == [True, False]
    correct = transfer_outcomes(Overflows(), images + 0.1, labels, torch.ones(2, dtype=torch.bool))
    assert correct.tolist() == [False, True]


@pytest.mark.parametrize(
    "err",
    [
        torch.OutOfMemoryError("out of memory"),
        "CPU allocator",
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=repr,
)
def test_oom_split_changes_no_outcome(digits_net, digits, err):
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    attack, rng = PGD(PGDConfig(steps=5), ThreatModel("Linf", 0.08)), KeyedRng.of(torch.arange(20), "pgd")
    whole = run_iterative_attack(attack, digits_net, images, labels, rng, early_stop=True)
    model, options = LimitedMemory(digits_net, 7, err), AttackOptions(traces={})
    with pytest.warns(UserWarning, match="attack 'pgd': out of memory with (20|10) images; retrying with (10|5)"):
        split = run_iterative_attack(attack, model, images, labels, rng, early_stop=True, options=options)
    assert [int(trace[0, 0]) for trace in options.traces["pgd"]] == [5, 5, 5, 5]
    assert torch.equal(whole.success, split.success)
    assert 0 < whole.success.sum() < 20
    torch.testing.assert_close(whole.adv, split.adv, atol=1e-5, rtol=0)


def test_other_errors_are_not_retried(digits_net, digits):
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("shapes do not match")

    rng = KeyedRng.of(torch.arange(4), "pgd")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_iterative_attack(PGD(PGDConfig(), THREAT), Broken(), digits[0][:4], digits[1][:4], rng, early_stop=True)
