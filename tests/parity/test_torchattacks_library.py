"""Attacks of torchattacks by introspection: the library's images, inside the ball, with its own parameters."""

import pytest
import torch
import torchattacks

from robobench.cli import main
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.planning.parsing import parse_fields
from robobench.plugins.discovery import discover, library_classes, load_attack

EPS = {"Linf": 0.1, "L2": 1.0, "L1": 10.0}
SHORT = {"steps": 3, "num_iter_set": 3, "max_iterations": 20, "n_queries": 20, "nb_sample": 4, "noise_batch_size": 2}
SLOW = ("deepfool", "apgdt", "eadl1")  # more than a second here; they share their code with others
NAMES = [name for name, plugin in discover("attack").items() if plugin.library == "torchattacks"]


def made(name, norm, **values):
    cls = load_attack(name)
    short = {field: value for field, value in SHORT.items() if field in cls.Config.__dataclass_fields__}
    return cls(cls.Config(**short | values), ThreatModel(norm, EPS[norm]))


def test_every_class_is_an_attack_or_refused():
    classes = {f"torchattacks-{name.lower()}" for name in torchattacks.__all__}
    assert library_classes("torchattacks").keys() == classes
    assert classes <= discover("attack").keys() and set(NAMES) < classes
    assert load_attack("torchattacks-pgd").__module__ == "robobench.attacks.torchattacks"  # its own class goes first
    reasons = {name: load_attack(name).why_unsupported(ThreatModel("Linf", 0.1)) for name in NAMES}
    refused = {name.removeprefix("torchattacks-") for name, reason in reasons.items() if reason}
    assert refused == {"vanila", "gn", "jsma", "sparsefool", "onepixel", "pixle", "multiattack", "lgv",
                       "cw", "deepfool", "pgdrsl2", "eadl1", "eaden"}  # fmt: skip
    assert reasons["torchattacks-lgv"] == "torchattacks.LGV needs trainloader, which no flag gives"
    assert "in L0" in reasons["torchattacks-jsma"] and "no Linf form; it has L2" in reasons["torchattacks-cw"]


def test_images_of_every_attack_lie_in_the_ball(digits_net, digits):
    images, labels = digits[0][1000:1004], digits[1][1000:1004]
    for name in NAMES:
        cls = load_attack(name)
        if cls.refusal or name.removeprefix("torchattacks-") in SLOW:
            continue
        attack, rng = made(name, cls.norms[0]), KeyedRng.of(torch.arange(4), name)
        before = torch.get_rng_state()
        result = attack.attack_early_stop(digits_net, images, labels, rng)
        attack.threat.check(result.adv, images, name)
        assert torch.equal(result.adv, attack.attack_full_budget(digits_net, images, labels, rng)), name
        assert torch.equal(result.success, digits_net(result.adv).argmax(1) != labels), name
        assert torch.equal(before, torch.get_rng_state()), name


def test_images_are_those_of_the_library(digits_net, digits):
    images, labels = digits[0][1000:1016], digits[1][1000:1016]
    rng = KeyedRng.of(torch.arange(16), "parity")
    ours = made("torchattacks-mifgsm", "Linf", steps=5, alpha=0.02, decay=0.5)
    theirs = torchattacks.MIFGSM(digits_net, eps=0.1, alpha=0.02, steps=5, decay=0.5)(images, labels)
    assert torch.equal(ours.attack_full_budget(digits_net, images, labels, rng), theirs)


def test_image_outside_the_ball_is_no_success(digits_net, digits):
    """CW finds close images; at a tiny radius none of them counts."""
    images, labels = digits[0][1000:1008], digits[1][1000:1008]
    rng = KeyedRng.of(torch.arange(8), "outside")
    cls = load_attack("torchattacks-cw")
    free = torchattacks.CW(digits_net, c=10, steps=50, lr=0.1)(images, labels)
    moved = (digits_net(free).argmax(1) != labels) & (free - images).flatten(1).norm(dim=1).gt(0.2)
    assert moved.any()
    attack = cls(cls.Config(c=10, steps=50, lr=0.1), ThreatModel("L2", 0.2))
    result = attack.attack_early_stop(digits_net, images, labels, rng)
    assert not (result.success & moved).any() and torch.equal(result.adv[moved], images[moved])


def test_parameters_are_those_of_the_signature():
    cls = load_attack("torchattacks-cw")
    assert cls.Config().__dict__ == {"c": 1, "kappa": 0, "steps": 50, "lr": 0.01}
    assert parse_fields(cls.Config, {"c": "0.5", "steps": "5"}, "cw") == {"c": 0.5, "steps": 5}
    assert type(parse_fields(cls.Config, {"steps": "5"}, "cw")["steps"]) is int
    with pytest.raises(RequestError, match="unknown field of cw 'alpha'"):
        parse_fields(cls.Config, {"alpha": "1"}, "cw")
    with pytest.raises(RequestError, match="takes a value of type int or float, got 'many'"):
        parse_fields(cls.Config, {"steps": "many"}, "cw")
    assert (
        made("torchattacks-difgsm", "Linf").budget.reduced
        and not cls(cls.Config(), ThreatModel("L2", 1.0)).budget.reduced
    )


def test_list_groups_attacks_of_a_library(capsys):
    assert main(["list", "attacks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    title = next(n for n, line in enumerate(lines) if line.startswith("every attack of torchattacks"))
    assert all(line.startswith("torchattacks-") for line in lines[title + 1 :])
    assert not any(line.startswith("torchattacks-") for line in lines[:title])
    assert any("torchattacks.DIFGSM: DI2-FGSM" in line for line in lines)
