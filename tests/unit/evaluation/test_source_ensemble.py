"""Transfer examples made on several models: the mean of their logits."""

import json
from typing import Any

import pytest
import torch
from torch import nn

import robobench
from robobench.cli import main
from robobench.errors import RequestError
from robobench.evaluation.source_ensemble import LogitMean, as_source
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.results.records import source_keys
from robobench.results.rows import read_records

FACTORY = """import torch
from torch import nn


def make(seed, side=32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.AvgPool2d(side // 8), nn.Flatten(), nn.Linear(192, 10))


def plain(k):
    return make(0)


def one(k):
    return make(1)


def two(k):
    return make(2)


def large(k):
    return make(0, 64)


def eleven(k):
    return nn.Sequential(make(0), nn.Linear(10, 11))
"""


def linear(seed, classes=10, inputs=192):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def test_logits_are_the_mean(digits):
    models, images = [linear(seed) for seed in range(3)], digits[0][:4]
    by_hand = sum(model(images) for model in models) / 3
    assert torch.allclose(as_source(models, images)(images), by_hand, atol=1e-6)


def test_ensemble_of_one_has_equal_verdicts(digits_net, digits):
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    one = linear(0)
    given: Any = {"images": images, "labels": labels, "eps": 0.1, "attacks": "pgd", "sets": ("pgd.steps=3",)}
    sources: list[Any] = [one, [one], LogitMean([one], ["one"]), [one, one]]
    found = [robobench.evaluate(model=digits_net, transfer_source=source, **given).outcomes for source in sources]
    (key,) = (key for key in found[0] if key[2] == "transfer")
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:])


def test_unfit_source_is_named(digits):
    images = digits[0][:4]
    with pytest.raises(RequestError, match=r"transfer source 2 \(Sequential\) gives logits of shape \(2, 7\)"):
        as_source([linear(0), linear(1, classes=7)], images)
    with pytest.raises(RequestError, match=r"transfer source 3 \(Sequential\) fails on images of shape \(3, 8, 8\)"):
        as_source([linear(0), linear(1), linear(2, inputs=27)], images)
    with pytest.raises(RequestError, match="transfer_source is empty"):
        as_source([], images)


def test_command_line_records_every_source(tmp_path, monkeypatch, capsys):
    """In either order; one source keeps the recipe it had."""
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    small = ["--dataset", "digits", "--examples", "30", "--eps", "0.05", "--threads", "1", "--attacks", "fgsm"]

    def evaluate(*sources):
        flags = [word for source in sources for word in ("--transfer-source", f"mine.py:{source}")]
        return main(["evaluate", "-q", "--model", "mine.py:plain", *small, *flags])

    assert [evaluate("one", "two"), evaluate("two", "one"), evaluate("one")] == [0, 0, 0]
    records = [r for r in read_records(tmp_path / "runs") if "plain" in r["defense"] and r["protocol"] == "transfer"]
    (several,) = (r for r in records if "sources" in r)
    (single,) = (r for r in records if "sources" not in r)
    digests = {source["training"].split("-")[1]: source["weights_digest"] for source in several["sources"]}
    assert digests.keys() == {"one", "two"} and digests["one"] == single["source_digest"] != several["source_digest"]
    assert len(several["source_findings"]) == 2
    recipes = [
        json.loads((tmp_path / f"runs/artifacts/evaluations/{r['key']}/artifact.json").read_text())["recipe"]
        for r in (single, several)
    ]
    assert isinstance(recipes[0]["transfer_source"], str)
    assert source_keys(recipes[0])[0] in recipes[1]["transfer_source"] == sorted(recipes[1]["transfer_source"])
    assert [evaluate("one", "one"), evaluate("one", "plain")] == [2, 2]
    assert [evaluate("one", "large"), evaluate("one", "eleven")] == [2, 2]
    told = capsys.readouterr().err
    assert "two of these are one model" in told and "is one of its own transfer sources" in told
    assert "mine.py:large" in told and "model 'mine.py:eleven' gives 11 classes" in told


def test_seeds_of_undefended_models_are_sources(tmp_path):
    request = ExperimentConfig(
        defenses=("at", "standard"),
        seeds=(0,),
        attacks=("fgsm",),
        eps=("0.1",),
        sets=("run.transfer_seeds=3",),
        out=tmp_path,
    )
    plan = make_plan(request)
    assert sorted(source.seed for source in plan.transfer_sources) == [0, 1, 2]
    assert [control.seed for control in plan.controls] == [3]
    transfer = [(cell.model.name, cell.model.seed) for cell in plan.cells() if cell.protocol == "transfer"]
    assert transfer == [("at", 0), ("standard", 3)]
