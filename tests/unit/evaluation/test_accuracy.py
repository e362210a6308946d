"""Accuracy of one model when memory runs out."""

from types import SimpleNamespace

import pytest
import torch

from robobench.attack_engine.base import Attack, NoConfig
from robobench.attack_engine.ensemble import Ensemble
from robobench.attack_engine.options import AttackOptions
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.evaluation.accuracy import clean_outcomes, transfer_outcomes
from tests.helpers.attacks import LimitedMemory


class Twice(Ensemble):
    """A short attack, then a longer one."""

    Config, name = NoConfig, "twice"

    def component_configs(self):
        return [("pgd", {"steps": 2}), ("pgd", {"steps": 8})]


class Flip(Attack):
    """Returns mirrored images."""

    Config, name = NoConfig, "flip"

    def attack_full_budget(self, model, images, labels, rng, options=None):
        return images.flip(3)


def test_every_evaluation_splits_on_oom(digits_net, digits):
    """Clean accuracy, transfer accuracy, attacks and ensembles give the same outcomes in smaller batches."""
    images, labels = digits[0][1000:1030], digits[1][1000:1030].clone()
    labels[::6] = (labels[::6] + 1) % 10  # misclassified when clean
    data, index = SimpleNamespace(images=lambda index: images[index], labels=labels), torch.arange(30)
    threat = ThreatModel("Linf", 0.08)
    rng, twice, flip = KeyedRng.of(index, "x"), Twice(None, threat), Flip(None, threat)

    def evaluate(net, **on_split):
        warn = on_split.get("on_oom_split", pytest.fail)
        options = AttackOptions(on_oom_split=warn)
        clean = clean_outcomes(net, data, index, "cpu", warn)
        result = twice.attack_early_stop(net, images, labels, rng, options)
        adv = twice.attack_full_budget(net, images, labels, rng, options)
        outcomes = [clean, result.success, transfer_outcomes(net, result.adv, labels, clean, warn)]
        return [*outcomes, flip.attack_early_stop(net, images, labels, rng, options).success], [result.adv, adv]

    def warned_by(call):
        with pytest.warns(UserWarning, match=r"out of memory with \d+ images; retrying with \d+") as warned:
            call()
        return {str(w.message).partition(":")[0] for w in warned}

    limited = LimitedMemory(digits_net, 8)
    assert warned_by(lambda: clean_outcomes(limited, data, index, "cpu")) == {"clean accuracy"}
    assert warned_by(lambda: transfer_outcomes(limited, images, labels, index > 0)) == {"transfer accuracy"}
    assert warned_by(lambda: flip.attack_early_stop(limited, images, labels, rng)) == {"attack 'flip'"}
    assert warned_by(lambda: twice.attack_early_stop(limited, images, labels, rng)) == {
        "attack 'twice'",
        "attack 'pgd'",
    }
    assert warned_by(lambda: twice.attack_full_budget(limited, images, labels, rng)) == {
        "attack 'twice'", "attack 'pgd'"
    }  # fmt: skip
    messages = []
    (outcomes, adv), (split_outcomes, split_adv) = evaluate(digits_net), evaluate(limited, on_oom_split=messages.append)
    assert {message.partition(":")[0] for message in messages} == {
        "clean accuracy", "transfer accuracy", "attack 'flip'", "attack 'twice'", "attack 'pgd'"
    }  # fmt: skip
    assert all(0 < part.sum() < 30 for part in outcomes)
    for whole, split in zip(outcomes, split_outcomes, strict=True):
        assert torch.equal(whole, split)
    torch.testing.assert_close(adv, split_adv, atol=1e-5, rtol=0)
