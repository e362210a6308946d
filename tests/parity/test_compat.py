"""`robobench.compat` against the classes it stands for, on the same small model."""

import inspect

import pyautoattack
import pytest
import torch
import torchattacks
from pyautoattack.autopgd_base import APGDAttack
from torch import nn

import robobench.compat.torchattacks as compat
from robobench.attacks.autoattack import restore_reference_globals
from robobench.compat import AutoAttack
from robobench.core.losses import MIN_LOG_ODDS, margin
from robobench.errors import RequestError

COUNT = 32
FIXED_START = {
    "FGSM": {"eps": 0.1},
    "PGD": {"eps": 0.1, "alpha": 0.03, "steps": 4, "random_start": False},
    "PGDL2": {"eps": 0.8, "alpha": 0.2, "steps": 4, "random_start": False},
    "BIM": {"eps": 0.1, "alpha": 0.03, "steps": 4},
    "MIFGSM": {"eps": 0.1, "alpha": 0.03, "steps": 4},
    "DIFGSM": {"eps": 0.1, "alpha": 0.03, "steps": 4, "diversity_prob": 0.0},
}
RANDOM_START = {
    "PGD": {"eps": 0.1, "alpha": 0.03, "steps": 10},
    "PGDL2": {"eps": 0.8, "alpha": 0.2, "steps": 10},
    "Jitter": {"eps": 0.1, "alpha": 0.03},
    "VMIFGSM": {"eps": 0.1, "alpha": 0.03},
    "APGD": {"eps": 0.1, "steps": 20},
    "APGDT": {"eps": 0.1, "steps": 10, "n_classes": 4},
    "Square": {"eps": 0.1, "n_queries": 100},
}


@pytest.fixture
def batch(digits_net, digits):
    """Return images that are classified correctly, not so confidently that torch's gradient loses its precision."""
    images, labels = digits[0][1000:1100], digits[1][1000:1100]
    margins = margin(digits_net(images), labels)
    correct = (margins < 0) & (margins > MIN_LOG_ODDS + 2)
    return images[correct][:COUNT], labels[correct][:COUNT]


@pytest.mark.parametrize("name", FIXED_START)
def test_images_equal_torchattacks(digits_net, batch, name):
    ours = getattr(compat, name)(digits_net, **FIXED_START[name])(*batch)
    theirs = getattr(torchattacks, name)(digits_net, **FIXED_START[name])(*batch)
    # A gradient near zero may have another sign: torchattacks averages the loss over the batch.
    assert ((ours - theirs).abs() < 1e-4).float().mean() > 0.999


@pytest.mark.parametrize("name", RANDOM_START)
def test_accuracy_agrees_with_torchattacks(digits_net, batch, name):
    images, labels = batch
    ours = getattr(compat, name)(digits_net, **RANDOM_START[name])(images, labels)
    theirs = getattr(torchattacks, name)(digits_net, **RANDOM_START[name])(images, labels)
    ours, theirs = ((digits_net(adv).argmax(1) == labels).sum() for adv in (ours, theirs))
    assert ours < len(labels) and abs(ours - theirs) <= 3  # other random starts


@pytest.mark.parametrize("name", sorted({*FIXED_START, *RANDOM_START, "AutoAttack"}))
def test_arguments_are_torchattacks(name):
    ours, theirs = (inspect.signature(getattr(lib, name).__init__).parameters for lib in (compat, torchattacks))
    positional = [p for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.8)])
def test_autoattack_agrees_with_reference(digits_net, batch, norm, eps):
    images, labels = batch
    images, labels, parts = images[:12], labels[:12], ["apgd-ce", "square"]
    ours = AutoAttack(digits_net, norm, eps, version="custom", attacks_to_run=parts, verbose=False)
    theirs = pyautoattack.AutoAttack(digits_net, norm=norm, eps=eps, seed=0, version="custom", attacks=parts)
    for one in (ours, theirs):
        one.apgd.n_restarts, one.square.n_queries = 1, 50
    adv, preds = ours.run_standard_evaluation(images, labels, bs=10, return_labels=True)
    with torch.random.fork_rng(), restore_reference_globals():
        reference = theirs.run_standard_evaluation(images, labels)[1]
    assert torch.equal(digits_net(adv).argmax(1), preds)
    assert 0 < (preds == labels).sum() <= (reference == labels).sum() + 1
    assert ((preds == labels) != (reference == labels)).sum() <= 1
    assert torch.equal(adv[preds == labels], images[preds == labels])


class Noisy(nn.Module):
    """Noise of standard deviation 0.3 on every image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images + 0.3 * torch.randn_like(images))


def test_rand_version_agrees_with_reference(digits_net, batch):
    """Other noise, so only the counts are compared; fewer steps than the version's 100, and 5 of its 20 passes."""
    images, labels = batch
    ours = AutoAttack(Noisy(digits_net), eps=0.05, version="rand", verbose=False)
    assert ours.attacks_to_run == ["apgd-ce", "apgd-dlr"] and ours.apgd.eot_iter == 20
    ours.apgd.n_iter, ours.apgd.eot_iter = 10, 5
    with torch.random.fork_rng(), restore_reference_globals():
        theirs = pyautoattack.AutoAttack(Noisy(digits_net), eps=0.05, seed=0, version="rand")
        assert (theirs.attacks_to_run, theirs.apgd.eot_iter) == (["apgd-ce", "apgd-dlr"], 20)
        same = {"n_iter": 10, "eot_iter": 5, "eps": 0.05, "device": "cpu", "logger": theirs.logger}
        theirs.apgd = APGDAttack(Noisy(digits_net), **same)
        moved = theirs.run_standard_evaluation(images, labels)[0]
    left = [
        int((adv == images).flatten(1).all(1).sum()) for adv in (ours.run_standard_evaluation(images, labels), moved)
    ]
    assert 0 < left[0] < COUNT and abs(left[0] - left[1]) <= 5


def test_autoattack_prints_reference_lines(digits_net, batch, capsys, tmp_path):
    images, labels = batch
    adversary = AutoAttack(digits_net, eps=0.1, log_path=tmp_path / "log.txt")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    adversary.attacks_to_run, adversary.apgd.n_iter = ["apgd-ce"], 3
    adv = adversary.run_standard_evaluation(images, labels, bs=20)
    lines = capsys.readouterr().out.splitlines()
    left = int((digits_net(adv).argmax(1) == labels).sum())
    assert lines[:3] == [
        "setting parameters for standard version",
        "using standard version including apgd-ce",
        "initial accuracy: 100.00%",
    ]
    assert lines[3].startswith("apgd-ce - 1/2 - ") and lines[3].endswith(" out of 20 successfully perturbed")
    assert lines[5].startswith(f"robust accuracy after APGD-CE: {left / COUNT:.2%} (total time ")
    assert lines[6].startswith("max Linf perturbation: 0.10000, nan in tensor: 0, max: 1.00000, min: 0.00000")
    assert lines[7:] == [f"robust accuracy: {left / COUNT:.2%}"]
    assert (tmp_path / "log.txt").read_text().splitlines() == lines[2:]


def test_individual_runs_attack_all_images(digits_net, batch):
    adversary = AutoAttack(
        digits_net, "Linf", 0.1, version="custom", verbose=False, attacks_to_run=["apgd-ce", "square"]
    )
    adversary.apgd.n_iter, adversary.square.n_queries = 5, 100
    found = adversary.run_standard_evaluation_individual(*batch)
    assert list(found) == ["apgd-ce", "square"]
    assert all((adv != batch[0]).any() and adv.shape == batch[0].shape for adv in found.values())
    assert adversary.clean_accuracy(*batch) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": "plus"}, "version 'plus' is not supported"),
        ({"version": "standrad"}, "did you mean 'standard'"),
        ({"attacks_to_run": ["apgd-ce"]}, "version='custom'"),
        ({"norm": "L3"}, "unknown norm"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"is_tf_model": True}, "give a torch model"),
    ],
)
def test_unsupported_autoattack_is_refused(values, message):
    with pytest.raises(RequestError, match=message):
        AutoAttack(nn.Linear(2, 2), **values)


def test_state_path_of_reference_script_is_none_only(digits_net, batch):
    """auto-attack's examples/eval.py passes `state_path=None`."""
    images, labels = batch[0][:2], batch[1][:2]
    attack = AutoAttack(digits_net, eps=0.1, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
    attack.apgd.n_iter = 2
    attack.apgd.n_restarts = 1
    assert attack.run_standard_evaluation(images, labels, bs=2, state_path=None).shape == images.shape
    with pytest.raises(RequestError, match=r"state_path='state\.json' is not supported"):
        attack.run_standard_evaluation(images, labels, state_path="state.json")  # type: ignore[call-overload]


def test_unknown_settings_are_refused(digits_net, batch):
    with pytest.raises(AttributeError):
        AutoAttack(digits_net, verbose=False).apgd.n_iters = 5  # type: ignore[attr-defined]
    adversary = AutoAttack(digits_net, verbose=False)
    adversary.attacks_to_run = ["fab"]
    with pytest.raises(RequestError, match="did you mean 'fab-t'"):
        adversary.run_standard_evaluation(*batch)
    with pytest.raises(RequestError, match="is not supported here"):
        compat.APGD(digits_net, rho=0.5)
