"""Evaluation of models in memory, against the command line's path and against counts made by hand."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import robobench
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.in_memory import make_attacks

SMALL: Any = {"eps": 0.1, "attacks": "pgd,fgsm", "sets": ("pgd.steps=5",)}


class ResizedNet(nn.Module):
    """A model of 8 px images, for the data set's 32 px."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(nn.functional.avg_pool2d(images, 4))


def test_rows_agree_with_outcomes(digits_net, digits):
    images, labels = digits[0][1000:1040], digits[1][1000:1040]
    kept = images.clone()
    result = robobench.evaluate(model=digits_net, images=images, labels=labels, keep_adversarial=True, **SMALL)
    assert torch.equal(result.clean, digits_net(images).argmax(1) == labels)
    assert list(result.rows["attack"]) == ["pgd", "fgsm"] and list(result.rows["status"]) == ["ok", "ok"]
    for row, (key, left) in zip(result.rows.to_dict("records"), result.outcomes.items(), strict=True):
        adv = result.adversarial[key]
        ThreatModel("Linf", 0.1).check(adv, images, key[0])
        assert torch.equal(left, (digits_net(adv).argmax(1) == labels) & result.clean)
        assert torch.equal(adv[left | ~result.clean], images[left | ~result.clean])
        assert row["robust_accuracy"] == float(left.double().mean())
        assert row["clean_accuracy"] == float(result.clean.double().mean())
    both = torch.stack(list(result.outcomes.values())).all(0)
    assert result.rows["worst_case_accuracy"].iloc[0] == float(both.double().mean())
    assert torch.equal(images, kept)


def test_model_that_changes_during_attacks_is_flagged(digits_net, digits):
    """From its 60th call on, another network answers: its clean accuracy is that of the first one."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.one, self.other = 0, digits_net, copy.deepcopy(digits_net)
            with torch.no_grad():
                next(self.other.parameters()).mul_(1.1)

        def forward(self, images):
            self.calls += 1
            return (self.one if self.calls < 60 else self.other)(images)

    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    attacks: Any = {"attacks": "pgd", "eps": 0.1, "images": images, "labels": labels}
    changed, constant = (robobench.evaluate(model=model, **attacks) for model in (Counting().eval(), digits_net))
    assert changed.rows["flags"].tolist() == ["random-output"] and constant.rows["flags"].tolist() == [""]


def test_batch_size_changes_no_outcome(digits_net, digits):
    images, labels = digits[0][1000:1030], digits[1][1000:1030]
    one, two = (
        robobench.evaluate(model=digits_net, images=images, labels=labels, batch_size=size, **SMALL) for size in (30, 7)
    )
    assert all(torch.equal(one.outcomes[key], two.outcomes[key]) for key in one.outcomes)


def test_evaluate_matches_command_line(tmp_path, factory):
    """The weights file of a model and the model itself have the same rows."""
    from robobench.models.build import build_model
    from robobench.models.spec import ModelSpec

    torch.manual_seed(1)
    model = build_model(ModelSpec(name=f"{factory}:make", num_classes=10)).eval()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    flags: Any = {"dataset": "digits", "examples": 40, "eps": "0.1", "attacks": ["pgd"]}
    rows = robobench.evaluate(tmp_path / "net.pt", model=f"{factory}:make", out=tmp_path / "runs", **flags)
    result = robobench.evaluate(model=model, **flags)
    for name in ("clean_accuracy", "robust_accuracy", "worst_case_accuracy", "ci_low"):
        assert result.rows[name].tolist() == rows[name].tolist(), name


def test_transfer_source_adds_rows(digits_net, digits):
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    result = robobench.evaluate(
        model=digits_net, images=images, labels=labels, transfer_source=digits_net, eps=0.1, attacks="fgsm"
    )
    assert list(result.rows["protocol"]) == ["white-box", "transfer"]
    white_box, transfer = result.outcomes.values()
    assert torch.equal(white_box, transfer)  # FGSM on the model itself is the same attack


def test_failed_attack_is_no_number(digits):
    """The targeted DLR loss needs four classes."""
    images, labels = digits[0][:9], digits[1][:9] % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.warns(UserWarning, match="apgd-t"):
        result = robobench.evaluate(model=model, images=images, labels=labels, eps=0.1, attacks=["apgd-t", "fgsm"])
    assert list(result.rows["status"]) == ["failed", "ok"]
    assert result.rows["robust_accuracy"].isna().tolist() == [True, False]
    assert [key[0] for key in result.outcomes] == ["fgsm"]


def test_function_is_a_model(digits_net, digits):
    images, labels = digits[0][1000:1010], digits[1][1000:1010]
    module, function = (
        robobench.evaluate(model=model, images=images, labels=labels, eps=0.1, attacks="fgsm")
        for model in (digits_net, lambda x: digits_net(x))
    )
    assert torch.equal(*(next(iter(result.outcomes.values())) for result in (module, function)))


def test_diagnose_finds_softmax(digits_net, digits):
    images, labels = digits[0][1000:1008], digits[1][1000:1008]
    model = nn.Sequential(digits_net, nn.Softmax(dim=1))
    flags = {"images": images, "labels": labels, "eps": 0.4, "attacks": "pgd", "sets": ("pgd.steps=3",)}
    assert "softmax-output" in robobench.diagnose(model=model, **flags).flags
    assert "softmax-output" not in robobench.diagnose(model=digits_net, **flags).flags


def test_benchmark_has_robustbench_results(digits_net, capsys):
    """RobustBench's clean and robust accuracy are fractions over all images."""
    model = ResizedNet(digits_net)
    clean, robust = robobench.benchmark(model, 8, "digits", "Linf", batch_size=8, eps=0.3)
    outcomes = robobench.evaluate(model=model, dataset="digits", examples=8, attacks="autoattack", eps=0.3).rows
    assert (clean, robust) == (outcomes["clean_accuracy"].iloc[0], outcomes["robust_accuracy"].iloc[0])
    assert capsys.readouterr().out == f"Clean accuracy: {clean:.2%}\nAdversarial accuracy: {robust:.2%}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"eps": None}, "eps is missing"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"images": torch.full((2, 3, 8, 8), 2.0)}, "images must lie in"),
        ({"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "got .* torch.uint8"),
        ({"images": torch.zeros(0, 3, 8, 8), "labels": torch.zeros(0, dtype=torch.long)}, "no images"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, r"labels must be \(2,\)"),
        ({"labels": None}, "give images and labels"),
        ({"dataset": "digits"}, "give images and labels, or"),
        ({"attacks": "pdg"}, "did you mean 'pgd'"),
        ({"sets": ("cw.steps=3",)}, "unknown attack in sets 'cw'"),
        ({"sets": ("pgd.step=3",)}, "did you mean 'steps'"),
        ({"weights": "net.pt"}, "leave 'net.pt' out"),
        ({"weights": nn.Flatten()}, "by its name: model="),
        ({"norm": "L3"}, "unknown norm"),
    ],
)
def test_wrong_requests_are_refused(flags, message):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    valid = {
        "images": torch.zeros(2, 3, 8, 8),
        "labels": torch.zeros(2, dtype=torch.long),
        "eps": 0.1,
        "attacks": "pgd",
    }
    with pytest.raises(RequestError, match=message):
        robobench.evaluate(model=model, **{**valid, **flags})


def test_data_set_gives_default_radii():
    attacks = make_attacks(None, None, "Linf", dataset="cifar10")
    assert [attack.threat.eps for attack in attacks if attack.name == "pgd"] == [8 / 255, 16 / 255]
    assert [a.threat.eps for a in make_attacks("pgd", "8/255, 0.1", "Linf")] == [8 / 255, 0.1]
