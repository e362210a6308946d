"""Networks whose answers to the doctor are known: built to mask, and trained not to."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.attack_engine.base import Attack
from robobench.attacks.autoattack import AutoAttack, AutoAttackConfig
from robobench.attacks.fab import FABT, FABConfig
from robobench.attacks.fgsm import FGSM
from robobench.attacks.jitter import Jitter
from robobench.attacks.mifgsm import MIFGSM, MIFGSMConfig
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.cli import main
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.diagnostics import _Doctor, diagnose, quick_model_checks
from robobench.results.checks import CHECKS, check_records, min_count
from robobench.results.rows import make_rows, read_records, read_rows
from robobench.testing import Blobs, trained_net
from robobench.training.inner_maximization import pgd_ascent
from tests.helpers.toys import LinearTwoClass
from tests.unit.test_results import record

COUNT, RADII = 40, (0.05, 0.1)


class Around(nn.Module):
    """A network with something around it that misleads attacks."""

    def __init__(self, net, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, images):
        return self.after(self.net(self.before(images)))


class Blind(Attack):
    """Adds the direction from the image to the mean of the others: no gradient of the model is taken."""

    name = "blind"
    gradient_free = True

    def perturb(self, model, images, labels, rng):
        best = images.clone()
        for number in range(30):
            adv = self.threat.project(
                images + self.threat.eps * rng.child("sign", number).normal_like(images).sign(), images
            )
            with torch.no_grad():
                fooled = model(adv).argmax(1) != labels
            best[fooled] = adv[fooled]
        return best


def attacks(steps=20):
    return [a for eps in RADII for a in (PGD(PGDConfig(steps=steps), at(eps)), FGSM(FGSM.Config(), at(eps)))]


def at(eps):
    return ThreatModel("Linf", eps)


@pytest.fixture(scope="module")
def held_out(digits):
    return digits[0][1000 : 1000 + COUNT], digits[1][1000 : 1000 + COUNT]


@pytest.fixture(scope="module")
def robust_net(digits):
    """The small network of `digits_net`, adversarially trained: PGD-2 at 0.1, Madry et al."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for epoch in range(3):
        threat = at(0.1 * (epoch + 1) / 3)
        for rows in torch.randperm(1000).split(50):
            images, labels = digits[0][rows], digits[1][rows]

            def loss(adv, labels=labels):
                return F.cross_entropy(net(adv), labels, reduction="none")

            adv = pgd_ascent(loss, images, images, threat, 2, 0.7 * threat.eps)
            optimizer.zero_grad()
            loss(adv).mean().backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def test_an_adversarially_trained_network_raises_nothing(robust_net, digits_net, held_out):
    others = [Blind(Blind.Config(), at(0.05)), Jitter(Jitter.Config(), at(0.1))]
    found = diagnose(robust_net, *held_out, [*attacks(), *others], source=digits_net, restarts=3, draws=20)
    assert found.flags == [] and found.clean_accuracy > 0.9
    looked = {f.check.name for f in found.findings if f.raised is False}
    assert looked == CHECKS.keys() - {"transfer-only", "black-box-lowers-ensemble"}
    curve = next(c for c in found.curves if (c.attack, c.eps) == ("pgd", 0.1))
    assert len(curve.loss) == len(curve.fallen) == 21
    assert curve.fallen == sorted(curve.fallen) and curve.loss[-1] > curve.loss[0]


def test_an_attack_spends_all_its_restarts_and_may_leave_the_ball_on_its_way(robust_net, held_out):
    many = PGD(PGDConfig(steps=3, restarts=6), at(0.15))
    found = diagnose(robust_net, *held_out, [many, FABT(FABConfig(steps=5), at(0.15))], restarts=1, draws=2)
    assert [curve.attack for curve in found.curves] == ["pgd"]
    patient = _Doctor(robust_net, *held_out, None, 1, 1)
    patient.contract()
    left, once = patient.survivors(many), patient.survivors(PGD(PGDConfig(steps=3), at(0.15)))
    images, labels = held_out[0][patient.right], held_out[1][patient.right]
    fooled = many.attack_early_stop(robust_net, images, labels, patient.noise(many, patient.right)).success
    assert torch.equal(left[patient.right], ~fooled) and left.sum() < once.sum()


@pytest.mark.parametrize("norm", ["Linf", "L2"])  # beside other attacks, and alone on its norm
def test_an_ensemble_meets_a_network_of_few_classes(norm):
    data, net = Blobs(), trained_net(3)
    images, labels = data.images(torch.arange(12)), data.labels[:12]
    parts = AutoAttackConfig(attacks=("apgd-ce", "apgd-t", "square"), steps=2, queries=5)  # apgd-t wants four classes
    found = diagnose(
        net, images, labels, [*attacks(3), AutoAttack(parts, ThreatModel(norm, 0.05))], restarts=1, draws=2
    )
    looked = {f.check.name for f in found.findings if f.raised is not None}
    assert "black-box-lowers-ensemble" in looked


def test_a_linear_network_raises_nothing():
    images = torch.rand(40, 3, 4, 4)
    model = LinearTwoClass((3, 4, 4)).eval()
    found = diagnose(model, images, model(images).argmax(1), attacks(), restarts=2, draws=10)
    assert found.flags == []


MASKED = {
    "huge logits": (lambda x: x, lambda z: 1e4 * z, {"zero-gradients", "survives-large-eps", "transfer-stronger"}),
    "rounded input": (lambda x: (8 * x).round() / 8, lambda z: z, {"zero-gradients", "survives-large-eps"}),
    "softmax": (lambda x: x, lambda z: (20 * z).softmax(1), {"softmax-output", "zero-gradients", "survives-large-eps"}),
    "noise": (lambda x: x + 0.2 * torch.randn_like(x), lambda z: z, {"random-output"}),
    "cut graph": (lambda x: x.detach(), lambda z: z, {"zero-gradients"}),
    "gradient of its own": (lambda x: x.detach().requires_grad_(), lambda z: z, {"zero-gradients"}),
    "infinite slope": (lambda x: x + 0 * (x * 0).sqrt(), lambda z: z, {"non-finite-gradients"}),
    "slope lost on the way": (  # where a corner, black in these images, no longer is
        lambda x: x + 0 * ((x[:, :1, :1, :1] < 0.01) + 0 * x).sqrt(),
        lambda z: z,
        {"non-finite-gradients"},
    ),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_gradient_is_noticed(kind, digits_net, held_out):
    before, after, expected = MASKED[kind]
    model = Around(digits_net, before, after).eval()
    found = diagnose(model, *held_out, attacks(), source=digits_net, restarts=2, draws=10)
    assert expected <= set(found.flags)
    for f in found.findings:
        if f.raised:
            assert f.measured and f.check.source and f.check.threshold and f.check.next


class Maze(nn.Module):
    """Right on its own images; the gradient points nowhere near where it errs."""

    def __init__(self, images, radius):
        super().__init__()
        self.images, self.radius = images, radius

    def forward(self, adv):
        moved = (adv - self.images[: len(adv)]).abs().flatten(1).mean(1)
        lure = (adv * torch.linspace(-1, 1, adv[0].numel()).view_as(adv[0])).flatten(1).sum(1)
        lure = lure - (self.images[: len(adv)] * torch.linspace(-1, 1, adv[0].numel()).view_as(adv[0])).flatten(1).sum(
            1
        )
        falls = (moved > self.radius) & (lure.abs() < 1.2)
        return torch.stack((4 - 8 * falls.float() - 0.1 * lure, torch.zeros_like(lure)), 1)


def test_noise_and_black_box_that_find_more_than_gradients_are_noticed():
    images = torch.full((30, 3, 8, 8), 0.5)
    threats = [PGD(PGDConfig(steps=12), at(0.05)), Blind(Blind.Config(), at(0.05))]
    labels = torch.zeros(30, dtype=torch.long)
    found = diagnose(Maze(images, 0.03).eval(), images, labels, threats, restarts=2, draws=20)
    assert {"noise-stronger", "black-box-stronger"} <= set(found.flags)


def test_a_model_in_training_mode_is_noticed_and_left_as_it_came(held_out):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = diagnose(model, *held_out, attacks(5), restarts=1, draws=2)
    assert "train-mode" in found.flags and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_images_outside_the_unit_range_are_noticed_before_any_attack(digits_net, held_out):
    found = diagnose(digits_net, 4 * held_out[0] - 2, held_out[1], attacks())
    assert "input-range" in found.flags and found.traces == []


def test_restarts_are_of_a_search_with_a_random_start_or_not_looked_at(robust_net, held_out):
    clean, drawn = MIFGSM(MIFGSMConfig(steps=2), at(0.05)), PGD(PGDConfig(steps=2), at(0.05))
    for asked, raised, text in (([clean], None, "not looked at: no search"), ([clean, drawn], False, "of pgd")):
        found = diagnose(robust_net, *held_out, asked, restarts=1, draws=1)
        (seen,) = (f for f in found.findings if f.check.name == "restarts-help")
        assert seen.raised is raised and text in seen.measured


def test_too_few_steps_leave_the_loss_rising(robust_net, held_out):
    slow = [PGD(PGDConfig(steps=12, relative_step=0.02), at(0.1))]
    found = diagnose(robust_net, *held_out, slow, restarts=1, draws=1)
    assert "loss-still-rising" in found.flags


def test_a_network_that_looks_at_the_whole_batch_is_noticed(digits_net, held_out):
    crowd = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), digits_net).eval()
    found = diagnose(crowd, *held_out, attacks(2), restarts=1, draws=1)
    assert "batch-dependent" in found.flags and "random-output" not in found.flags


def test_a_random_network_is_not_taken_for_one_that_looks_at_the_batch_and_attacks_draw_as_they_did(
    digits_net, held_out
):
    before, model = torch.get_rng_state(), Around(digits_net, lambda x: x + torch.randn_like(x)).eval()
    found = {f.check.name: f.raised for f in quick_model_checks(model, *held_out)}
    assert found["random-output"] and "batch-dependent" not in found
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diagnosis_needs_an_attack_of_several_steps(digits_net, held_out):
    with pytest.raises(RequestError, match="add one to --attacks"):
        diagnose(digits_net, *held_out, [FGSM(FGSM.Config(), at(0.1))])


# --- from records -------------------------------------------------------------------------------


def told(attack, robust, steps=20, gradient_free=False, **more):
    return record(attack, robust=robust, clean="1" * len(robust), steps=steps, gradient_free=gradient_free, **more)


def raised(*records, eps=0.1):
    return {f.check.name for f in check_records(list(records), "Linf", eps) if f.raised}


def test_signs_count_images():
    assert [min_count(n) for n in (10, 1000, 1001, 10_000)] == [2, 2, 3, 20]


@pytest.mark.parametrize(("one", "flag"), [("0111", False), ("0011", True)])
def test_one_step_stronger_counts_from_two_images(one, flag):
    many = told("m", "1111")
    assert ("one-step-stronger" in raised(many, told("o", one, steps=1))) is flag
    assert "one-step-stronger" not in raised(many, told("o", one))  # many steps too


def test_black_box_and_transfer_are_compared_image_by_image():
    many, one = told("m", "11100"), told("o", "01111", steps=1)
    assert raised(many, one, told("b", "10011", None, True)) == {"black-box-stronger"}
    assert raised(many, one, told("m", "00111", protocol="transfer")) == set()  # image 0 had fallen, 1 is one image
    transferred = {"protocol": "transfer", "weights_digest": "a"}
    assert raised(many, told("m", "00111", **transferred, source_digest="b")) == {"transfer-stronger"}
    assert raised(many, told("m", "00111", **transferred, source_digest="a")) == set()  # its own examples


def test_more_images_right_at_a_larger_radius_are_noticed_for_many_steps_only():
    assert raised(told("m", "0001", eps=0.05), told("m", "0111")) == {"not-monotone"}
    assert raised(told("m", "0011", eps=0.05), told("m", "0111")) == set()
    assert raised(told("o", "0001", 1, eps=0.05), told("o", "0111", 1), told("m", "0001")) == set()


def test_flags_stand_in_the_rows_and_records_of_before_raise_none():
    group = [told("m", "1111"), told("o", "0011", steps=1)]
    assert [row["flags"] for row in make_rows(group)] == ["one-step-stronger"] * 2
    old = [{k: v for k, v in r.items() if k not in ("steps", "gradient_free")} for r in group]
    assert [row["flags"] for row in make_rows(old)] == ["", ""]


# --- the command --------------------------------------------------------------------------------

FACTORY = """import torch
from torch import nn


class Then(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, z):
        return self.how(z)


def net(k, *more):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, k), *more)


def plain(k):
    return net(k)


def softmax(k):
    return net(k, nn.Softmax(1))


def huge(k):
    return net(k, Then(lambda z: 1e5 * z))


def dice(k):
    return net(k, Then(lambda z: z + torch.randn_like(z)))


def crowd(k):
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net(k))


def shut(k):
    def how(z):
        if z.requires_grad:
            raise ArithmeticError("no slope here")
        return z

    return net(k, Then(how))
"""


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Evaluate a network of FACTORY; gives its rows."""
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    small = ["--examples", "150", "--eps", "0.05", "--threads", "1"]

    def command(name, attacks="pgd,fgsm"):
        assert main(["evaluate", "-q", "--model", f"mine.py:{name}", "--attacks", attacks, *small, "--out", name]) == 0
        return read_rows(tmp_path / name).fillna({"flags": ""})

    return command


@pytest.mark.parametrize(
    ("name", "flag", "measured"),
    [
        ("softmax", "softmax-output", "outputs in ["),
        ("huge", "zero-gradients", "of 128 images under cross-entropy"),
        ("dice", "random-output", "unit logits"),
        ("crowd", "batch-dependent", "apart in halves"),
    ],
)
def test_every_run_flags_what_a_network_shows_by_itself_and_the_report_says_what_was_measured(
    evaluated, tmp_path, name, flag, measured
):
    rows = evaluated(name)
    assert len(rows) == 2 and all(flag in flags.split(",") for flags in rows["flags"])
    assert main(["report", name, "--html", "page.html"]) == 0
    told = (tmp_path / "page.html").read_text().split(f": {flag}</dt><dd>")[1].split("</dd>")[0]
    assert measured in told


def test_a_run_looks_once_at_a_network_and_raises_nothing_of_an_ordinary_one(evaluated, tmp_path, monkeypatch):
    looks = []

    def watched(model, images, labels):
        looks.append(len(images))
        return quick_model_checks(model, images, labels)

    monkeypatch.setattr(runner, "examine", watched)
    assert list(evaluated("plain")["flags"]) == ["", ""] and looks == [128]
    for kept in read_records(tmp_path / "plain"):
        assert {f["flag"] for f in kept["findings"]} > {"train-mode", "batch-dependent", "zero-gradients"}


def test_a_network_that_cannot_be_examined_is_attacked_all_the_same(evaluated, capsys):
    (row,) = evaluated("shut", "noise").to_dict("records")
    assert (row["status"], row["flags"]) == ("ok", "")
    assert "was not examined for masked gradients: no slope here" in capsys.readouterr().err


def test_the_command_examines_a_stranger_s_network(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net(k):\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, k), nn.Softmax(1))\n"
    )
    monkeypatch.chdir(tmp_path)
    small = ["--examples", "20", "--attacks", "pgd", "--set", "pgd.steps=3", "--threads", "1"]
    assert main(["diagnose", "--model", "mine.py:net", *small, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "softmax-output" in found["flags"] and found["examples"] == 20
    assert len(found["curves"]) == 2 and len(found["curves"][0]["loss"]) == 4
    assert main(["diagnose", "none.pt", "--model", "cnn"]) == 2
    assert "no weights file 'none.pt'" in capsys.readouterr().err
    assert main(["diagnose", "nobody", "--model", "cnn"]) == 2
    assert "holds no network called 'nobody'" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine.py"]
