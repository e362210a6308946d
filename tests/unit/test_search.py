"""The core's stopping, compaction and restarts, on an attack that can be followed by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robobench.attack_engine.base import Attack, IterativeAttack, NoConfig
from robobench.attack_engine.ensemble import Ensemble
from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.state import AttackState
from robobench.attack_engine.trace import average_traces, collect_traces, record_traces
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.core.memory import on_oom_split
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import GradientError, ThreatModelError
from robobench.evaluation.accuracy import clean_outcomes, transfer_outcomes
from robobench.plugins.discovery import load_attack

THREAT = ThreatModel("Linf", 1.0)


class Threshold(nn.Module):
    """Class 1 once the pixel reaches one half; counts the images it sees."""

    seen = 0

    def forward(self, images):
        self.seen += len(images)
        gap = images.flatten(1).sum(1) - 0.5
        return torch.stack((-gap, gap), dim=1)


class Climb(IterativeAttack):
    """Adds a tenth at every step, from the image (first restart) or a little above it (later ones)."""

    Config, name = NoConfig, "climb"
    steps, restarts = 3, 1
    starts = ()

    def start(self, images, labels, rng):
        self.starts = (*self.starts, len(images))
        offset = 0.0 if len(self.starts) == 1 else 0.15
        return AttackState(images, labels, images + offset, rng, {"age": torch.zeros(len(images))})

    def step(self, model, state):
        with torch.no_grad():
            logits = model(state.adv)
        return state.advance(state.adv + 0.1, age=state.memory["age"] + 1), logits


def row(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


def run(attack, images, stop):
    model, labels = Threshold(), torch.zeros(len(images), dtype=torch.long)
    found = run_iterative_attack(attack, model, images, labels, KeyedRng.of(torch.arange(len(images)), 0), stop)
    return found.adv.flatten().tolist(), found.success.tolist(), model.seen


IMAGES = row(0.6, 0.45, 0.25, 0.0)  # wrong when clean, wrong after 1 step, after 3, never


def test_stop_first_returns_the_first_success_of_each_image_and_drops_it_from_the_batch():
    adv, fooled, seen = run(Climb(None, THREAT), IMAGES, "first")
    assert adv == pytest.approx([0.6, 0.55, 0.55, 0.3])
    assert fooled == [True, True, True, False]
    assert seen == 4 + 3 + 2 + 2  # three steps and the last look


def test_stop_never_returns_the_last_iterate_of_every_image():
    adv, fooled, seen = run(Climb(None, THREAT), IMAGES, "never")
    assert adv == pytest.approx([0.9, 0.75, 0.55, 0.3])
    assert fooled == [True, True, True, False]
    assert seen == 4 * 4


def test_a_restart_takes_only_the_images_that_survived():
    attack = Climb(None, THREAT)
    attack.restarts = 2
    adv, fooled, _ = run(attack, row(0.6, 0.1, 0.0), "never")
    assert attack.starts == (3, 2)
    assert adv == pytest.approx([0.9, 0.55, 0.45])
    assert fooled == [True, True, False]


def test_perturb_spends_the_full_budget():
    model, labels = Threshold(), torch.zeros(4, dtype=torch.long)
    adv = Climb(None, THREAT).attack_full_budget(model, IMAGES, labels, KeyedRng.of(torch.arange(4), 0))
    assert adv.flatten().tolist() == pytest.approx([0.9, 0.75, 0.55, 0.3])


def test_the_clean_images_are_left_alone():
    images = IMAGES.clone()
    for stop in ("first", "never"):
        run(Climb(None, THREAT), images, stop)
    assert torch.equal(images, IMAGES)


def test_keeping_some_images_keeps_every_part_of_their_state():
    state = AttackState(
        IMAGES, torch.arange(4), IMAGES + 1, KeyedRng.of(torch.arange(4), 0), {"age": torch.arange(4)}, 7
    )
    kept = state[torch.tensor([False, True, False, True])]
    assert kept.labels.tolist() == kept.memory["age"].tolist() == [1, 3]
    assert kept.adv.flatten().tolist() == (IMAGES + 1).flatten()[[1, 3]].tolist()
    assert torch.equal(kept.rng.keys, state.rng.keys[[1, 3]])
    assert kept.iteration == 7


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_compaction_changes_no_verdict(digits_net, digits, norm):
    images, labels = digits[0][1000:1060], digits[1][1000:1060]
    threat = ThreatModel(norm, 0.08 if norm == "Linf" else 0.5)
    attack, noise = PGD(PGDConfig(steps=8, restarts=2), threat), KeyedRng.of(torch.arange(60), "pgd")
    together = run_iterative_attack(attack, digits_net, images, labels, noise, "first")
    threat.check(together.adv, images, "pgd")
    alone = [
        run_iterative_attack(
            attack, digits_net, images[i : i + 1], labels[i : i + 1], noise[torch.tensor([i])], "first"
        )
        for i in range(60)
    ]
    assert together.success.tolist() == [bool(found.success) for found in alone]
    assert 5 < together.success.sum() < 55
    verdicts = digits_net(together.adv).argmax(1) != labels
    assert torch.equal(verdicts, together.success)
    # Every image fooled by its last iterate is fooled by some iterate.
    one = PGD(PGDConfig(steps=8), threat)
    last = run_iterative_attack(one, digits_net, images, labels, noise, "never").success
    assert not (last & ~run_iterative_attack(one, digits_net, images, labels, noise, "first").success).any()


def test_an_unknown_word_for_stop_is_refused():
    with pytest.raises(ValueError, match="stop must be one of first, never, got 'last'"):
        run(Climb(None, THREAT), IMAGES, "last")


def test_an_attack_that_wanders_counts_only_what_lies_inside_the_ball():
    class Far(Climb):
        wanders = True
        threat = ThreatModel("Linf", 0.15)

        def finish(self, state, logits):
            return state.images

    attack = Far(None, ThreatModel("Linf", 0.15))
    adv, fooled, _ = run(attack, row(0.45, 0.35, 0.25), "first")
    assert fooled == [True, False, False]  # one step is inside; two or three are not
    assert adv == pytest.approx([0.55, 0.35, 0.25])


def test_what_is_recorded_holds_the_mean_loss_and_the_fraction_fallen_at_every_look():
    labels, noise = torch.zeros(2, dtype=torch.long), KeyedRng.of(torch.arange(2), 0)
    with record_traces() as kept:
        run_iterative_attack(Climb(None, THREAT), Threshold(), row(0.45, 0.0), labels, noise)
    run_iterative_attack(Climb(None, THREAT), Threshold(), row(0.45, 0.0), labels, noise)  # outside: not recorded
    # Cross-entropy of logits (-gap, gap) on class 0 is softplus(2 gap); the first image leaves at 0.55.
    gaps = torch.tensor([[-0.05, -0.5], [0.05, -0.4], [0.05, -0.3], [0.05, -0.2]])
    losses = nn.functional.softplus(2 * gaps).mean(1)
    (looks,) = kept["climb"]
    torch.testing.assert_close(looks[:, 0], torch.full((4,), 2.0))
    torch.testing.assert_close(looks[:, 1], losses)
    assert looks[:, 2].tolist() == [0.0, 0.5, 0.5, 0.5]
    curve = collect_traces(kept)["climb"]
    assert curve["images"] == 2 and curve["loss"] == pytest.approx(losses.tolist())


def test_curves_are_averaged_over_images_and_one_that_ended_early_stays_where_it_ended():
    long = {"pgd": {"images": 3, "loss": [1.0, 2.0, 3.0], "fallen": [0.0, 0.0, 1.0]}}
    short = {"pgd": {"images": 1, "loss": [5.0], "fallen": [1.0]}, "fab": {"images": 1, "loss": [1.0], "fallen": [0.0]}}
    both = average_traces([long, short])
    assert both["pgd"] == {"images": 4, "loss": [2.0, 2.75, 3.5], "fallen": [0.25, 0.25, 1.0]}
    assert both["fab"] == short["fab"]
    assert average_traces([average_traces([long, short]), short]) == average_traces([long, short, short])


def test_an_answer_that_is_not_a_number_is_not_the_right_one():
    class Overflows(nn.Module):
        def forward(self, images):
            gap = images.flatten(1).sum(1)
            return torch.stack((torch.where(gap > 0.5, torch.nan, 1 - gap), gap), dim=1)

    images, labels = row(0.45, 0.0), torch.zeros(2, dtype=torch.long)
    rng = KeyedRng.of(torch.arange(2), 0)
    assert Overflows()(images + 0.1)[0].argmax() == 0  # torch's argmax takes NaN for the largest
    assert run_iterative_attack(Climb(None, THREAT), Overflows(), images, labels, rng).success.tolist() == [True, False]
    right = transfer_outcomes(Overflows(), images + 0.1, labels, torch.ones(2, dtype=torch.bool))
    assert right.tolist() == [False, True]


class Cusp(nn.Module):
    """Class 1 leads above gray; the gradient is NaN everywhere."""

    def forward(self, images):
        gap = (images - 0.5).flatten(1).mean(1) + (0 * (images - images.detach())).flatten(1).sum(1).sqrt()
        return torch.stack((-gap, gap), dim=1)


def attack_of(name, norm):
    cls = load_attack(name)
    return cls(cls.Config(**{"steps": 10} if hasattr(cls.Config(), "steps") else {}), ThreatModel(norm, 0.1))


GRADIENT_ATTACKS = ["pgd", "cw", "fgsm", "mifgsm", "apgd-ce", "fab-t", "autoattack"]


@pytest.mark.parametrize(
    ("name", "norm"), [("jitter", "Linf"), *((name, norm) for name in GRADIENT_ATTACKS for norm in ("Linf", "L2"))]
)
def test_a_gradient_that_is_not_a_number_fails_the_attack_and_leaves_no_figure(name, norm):
    images, labels = torch.full((2, 3, 8, 8), 0.2), torch.zeros(2, dtype=torch.long)
    with pytest.raises(GradientError, match="the gradient of 2 of 2 images is NaN"):
        attack_of(name, norm).attack_early_stop(Cusp(), images, labels, KeyedRng.of(torch.arange(2), 0))


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_where_the_answer_is_not_a_number_the_image_has_fallen_whatever_its_gradient(name):
    class Edge(nn.Module):
        def forward(self, images):
            gap = (images - 0.5).flatten(1).mean(1)
            return torch.stack((-gap, gap + torch.where(gap > -0.05, torch.nan, 0.0)), dim=1)

    images, labels = torch.stack((torch.full((3, 8, 8), 0.42), torch.full((3, 8, 8), 0.1))), torch.zeros(2).long()
    found = attack_of(name, "Linf").attack_early_stop(Edge(), images, labels, KeyedRng.of(torch.arange(2), 0))
    assert found.success.tolist() == [True, False]


def test_a_stranger_s_attack_that_stands_still_on_such_a_gradient_is_refused():
    images = torch.full((2, 3, 8, 8), 0.2)
    threat = ThreatModel("Linf", 0.1)
    with pytest.raises(ThreatModelError, match="not finite"):
        threat.check(threat.step(images, torch.full_like(images, torch.nan), 0.1, images), images, "attack 'a'")


class Hungry(nn.Module):
    """A network that needs more memory than there is for more than `most` images."""

    def __init__(self, net, most, err=None):
        super().__init__()
        self.net, self.most, self.err = net, most, err or torch.OutOfMemoryError("out of memory")

    def forward(self, images):
        if len(images) > self.most:
            if self.err == "the CPU's own complaint":
                torch.empty(2**60, dtype=torch.uint8)
            raise self.err
        return self.net(images)


@pytest.mark.parametrize(
    "err",
    [
        torch.OutOfMemoryError("out of memory"),
        "the CPU's own complaint",
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=repr,
)
def test_a_batch_that_does_not_fit_is_halved_with_the_same_verdicts(digits_net, digits, err):
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    attack, noise = PGD(PGDConfig(steps=5), ThreatModel("Linf", 0.08)), KeyedRng.of(torch.arange(20), "pgd")
    whole = run_iterative_attack(attack, digits_net, images, labels, noise)
    warned = pytest.warns(UserWarning, match=r"attack 'pgd': (20|10) images do not fit into memory; halved")
    with record_traces() as kept, warned:
        halved = run_iterative_attack(attack, Hungry(digits_net, 7, err), images, labels, noise)
    assert [int(part[0, 0]) for part in kept["pgd"]] == [5, 5, 5, 5]
    assert torch.equal(whole.success, halved.success)
    assert 0 < whole.success.sum() < 20
    torch.testing.assert_close(whole.adv, halved.adv, atol=1e-5, rtol=0)


class Twice(Ensemble):
    """A short search, then a longer one."""

    Config, name = NoConfig, "twice"

    def members(self):
        return [("pgd", {"steps": 2}), ("pgd", {"steps": 8})]


def test_every_look_at_a_batch_that_does_not_fit_is_taken_in_halves_with_the_same_answers(digits_net, digits):
    class Ready(Attack):
        Config, name = NoConfig, "ready"

        def perturb(self, model, images, labels, rng):
            return images.flip(3)

    images, labels = digits[0][1000:1030], digits[1][1000:1030].clone()
    labels[::6] = (labels[::6] + 1) % 10  # wrong when clean
    data, index = SimpleNamespace(images=lambda index: images[index], labels=labels), torch.arange(30)
    threat = ThreatModel("Linf", 0.08)
    noise, twice, ready = KeyedRng.of(index, "x"), Twice(None, threat), Ready(None, threat)

    def answers(net):
        clean = clean_outcomes(net, data, index, "cpu")
        found = twice.attack_early_stop(net, images, labels, noise)
        adv = twice.attack_full_budget(net, images, labels, noise)
        bits = [clean, found.success, transfer_outcomes(net, found.adv, labels, clean)]
        return [*bits, ready.attack_early_stop(net, images, labels, noise).success], [found.adv, adv]

    def said(ask):
        with pytest.warns(UserWarning, match="images do not fit into memory; halved") as warned:
            ask()
        return {str(w.message).partition(":")[0] for w in warned}

    few = Hungry(digits_net, 8)
    assert said(lambda: clean_outcomes(few, data, index, "cpu")) == {"clean accuracy"}
    assert said(lambda: transfer_outcomes(few, images, labels, index > 0)) == {"transfer accuracy"}
    assert said(lambda: ready.attack_early_stop(few, images, labels, noise)) == {"attack 'ready'"}
    assert said(lambda: twice.attack_early_stop(few, images, labels, noise)) == {"attack 'twice'", "attack 'pgd'"}
    assert said(lambda: twice.attack_full_budget(few, images, labels, noise)) == {"attack 'twice'", "attack 'pgd'"}
    (bits, adv), told = answers(digits_net), []
    with on_oom_split(lambda: told.append("once")):
        halved_bits, halved_adv = answers(few)
    assert told == ["once"]
    assert all(0 < part.sum() < 30 for part in bits)
    for one, other in zip(bits, halved_bits, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(adv, halved_adv, atol=1e-5, rtol=0)


def test_another_error_is_not_taken_for_a_lack_of_memory(digits_net, digits):
    class Broken(nn.Module):
        def forward(self, images):
            raise RuntimeError("shapes do not match")

    rng = KeyedRng.of(torch.arange(4), "pgd")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_iterative_attack(PGD(PGDConfig(), THREAT), Broken(), digits[0][:4], digits[1][:4], rng)
