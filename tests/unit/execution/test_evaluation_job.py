"""Which attacks of a run use a compiled model, and the quick model checks of a run."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robobench.cli import main
from robobench.core.console import Reporter
from robobench.errors import RequestError
from robobench.evaluation.model_checks import quick_model_checks
from robobench.execution import evaluation_job
from robobench.execution.runner import Runner
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig
from robobench.results.confidence_sequence import confidence_sequence
from robobench.results.rows import read_records, read_rows


class CountPasses(nn.Module):
    """A model that counts its forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.model(images)
        return logits


def evaluate(tmp_path, **changes):
    sets = ("run.train_images=16", "run.eval_batch_size=32")
    values = {"attacks": ("pgd",), "examples": 64, "epochs": 1, "sets": sets, "out": tmp_path, "eps": ("0.1",)}
    values["precision"] = "fp32"  # bfloat16 searches are not compiled
    request = ExperimentConfig(defenses=("standard",), **{"protocol": "both", **values, **changes})
    runner = Runner(*prepare(request), Reporter(-1))
    runner.trainer.train_all()
    return [runner.evaluator.evaluate(cell) for cell in runner.plan.cells()]


@pytest.fixture
def has_compiler(monkeypatch):
    """Let every program be found."""
    monkeypatch.setattr(shutil, "which", lambda name: name)


def test_long_white_box_attack_is_compiled(tmp_path, monkeypatch, has_compiler):
    compiled: list[CountPasses] = []

    def compile_for_search(model: nn.Module, images: Tensor) -> CountPasses:
        compiled.append(CountPasses(model))
        return compiled[-1]

    monkeypatch.setattr(evaluation_job, "compile_for_search", compile_for_search)
    evaluate(tmp_path / "short")
    assert not compiled
    monkeypatch.setattr(evaluation_job, "COMPILE_MIN_PASSES", 41 * 64)  # PGD-20 takes 41 passes
    records = evaluate(tmp_path / "long")
    assert {r["status"] for r in records} == {"ok"} and all(model.passes for model in compiled)
    long = [r["weights_digest"] for r in records if r["compiled_search"]]
    assert long == [r["weights_digest"] for r in records if r["protocol"] == "white-box"]
    assert len({id(copy.model) for copy in compiled}) == len(compiled) == len(set(long)) > 1  # once per model
    compiled.clear()
    evaluate(tmp_path / "transfer", protocol="transfer")
    evaluate(tmp_path / "reference", protocol="white-box", attacks=("torchattacks-pgd",))
    assert not compiled


def test_failed_compilation_falls_back(tmp_path, monkeypatch, has_compiler, capsys):
    def fail(model: nn.Module, images: Tensor) -> None:
        raise torch._dynamo.exc.InternalTorchDynamoError("odd")

    monkeypatch.setattr(evaluation_job, "COMPILE_MIN_PASSES", 1)
    monkeypatch.setattr(evaluation_job, "compile_for_search", fail)
    records = evaluate(tmp_path, protocol="white-box")
    assert {r["status"] for r in records} == {"ok"}
    assert "standard is attacked without torch.compile: odd" in capsys.readouterr().err


def test_until_stops_and_shows_sequence(tmp_path):
    """After a batch of 32, in a random order; the row's interval is the confidence sequence of all 96 images."""
    once = {"protocol": "white-box", "attacks": ("fgsm",), "examples": 96}
    stopped = [r for r in evaluate(tmp_path, until=20.0, **once) if not r["is_control"]]
    (whole,) = (r for r in evaluate(tmp_path, **once) if not r["is_control"])
    assert [(r["examples"], r["population"], r["data_digest"] != whole["data_digest"]) for r in stopped] == [
        (32, 96, True)
    ]
    bits = stopped[0]["robust_bits"]
    assert len(bits) == len(stopped[0]["clean_bits"]) == 32
    rows = read_rows(tmp_path)
    row = rows[rows["examples"] == 32].iloc[0]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(confidence_sequence(bits.count("1"), 32, 96))
    assert row["ci_low"] <= whole["robust_bits"].count("1") / 96 <= row["ci_high"]
    with pytest.raises(RequestError, match="--until stops one white-box attack"):
        evaluate(tmp_path, until=1.0)


# --- quick model checks -------------------------------------------------------------------------

FACTORY = """import os

import torch
from torch import nn


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


def net(k, *more):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, k), *more)


def plain(k):
    return net(k)


def softmax(k):
    return net(k, nn.Softmax(1))


def huge(k):
    return net(k, Apply(lambda z: 1e37 * z))


def one_hot(k):
    return net(k, Apply(lambda z: nn.functional.one_hot(z.argmax(1), k)))


def rounded(k):
    return net(k, Apply(lambda z: (50 * z).round()))


def reads_environment(k):
    shift = int(os.environ["SHIFT"])
    return net(k, Apply(lambda z: z.roll(shift, 1)))


def squeezed(k):
    return net(k, Apply(torch.squeeze))


def constant(k):
    return net(k, Apply(lambda z: 0 * z + torch.arange(k)))


def wrong_sign(k):
    def flip(x):
        if x.requires_grad:
            x.register_hook(torch.neg)
        return x

    return nn.Sequential(Apply(lambda x: flip(x * 1)), net(k))


def random(k):
    return net(k, Apply(lambda z: z + torch.randn_like(z)))


def batch_norm(k):
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net(k))


def no_gradient(k):
    def raise_error(z):
        if z.requires_grad:
            raise ArithmeticError("no gradient here")
        return z

    return net(k, Apply(raise_error))
"""


@pytest.fixture
def evaluate_factory(tmp_path, monkeypatch):
    """Return a function that evaluates a model of FACTORY and returns its rows."""
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    small = ["--examples", "150", "--eps", "0.05", "--threads", "1"]

    def command(name, attacks="pgd,fgsm", *more, status=0):
        request = ["evaluate", "-q", "--model", f"mine.py:{name}", "--attacks", attacks, *small, "--out", name, *more]
        assert main(request) == status
        return read_rows(tmp_path / name).fillna({"flags": ""})

    return command


@pytest.mark.parametrize(
    ("name", "flag", "measured"),
    [
        ("softmax", "softmax-output", "outputs in ["),
        ("rounded", "zero-gradients", "images under cross-entropy"),
        ("wrong_sign", "gradient-mismatch", "at Linf 0.05: cosine -"),
        ("random", "random-output", "unit logits"),
        ("batch_norm", "batch-dependent", "apart in batches of"),
    ],
)
def test_checks_flag_rows_and_report(evaluate_factory, tmp_path, name, flag, measured):
    rows = evaluate_factory(name)
    assert len(rows) == 2 and all(flag in flags.split(",") for flags in rows["flags"])
    assert main(["report", name, "--html", "page.html"]) == 0
    shown = (tmp_path / "page.html").read_text().split(f": {flag}</dt><dd>")[1].split("</dd>")[0]
    assert measured in shown


def test_model_is_checked_once(evaluate_factory, tmp_path, monkeypatch):
    """An ordinary model raises no flag."""
    checked = []

    def recorded(model, images, labels, threats):
        checked.append(len(images))
        return quick_model_checks(model, images, labels, threats)

    monkeypatch.setattr(evaluation_job, "quick_model_checks", recorded)
    assert list(evaluate_factory("plain")["flags"]) == ["", ""] and checked == [128]
    for record in read_records(tmp_path / "plain"):
        assert {f["flag"] for f in record["findings"]} > {"train-mode", "batch-dependent", "zero-gradients"}


def test_hidden_change_makes_another_model(evaluate_factory, monkeypatch):
    """A factory that reads an environment variable is evaluated again if its logits change."""
    for shift in ("0", "1"):
        monkeypatch.setenv("SHIFT", shift)
        rows = evaluate_factory("reads_environment", "fgsm")
    assert rows["weights_digest"].nunique() == 1 and rows["config_digest"].nunique() == 2
    assert rows["clean_accuracy"].nunique() == 2


def test_wrapper_is_not_its_transfer_source(evaluate_factory, monkeypatch):
    """Two models with the same weights have their own clean accuracy; the source's is not taken."""
    monkeypatch.setenv("SHIFT", "1")
    rows = evaluate_factory("reads_environment", "fgsm", "--transfer-source", "mine.py:plain")
    wrapper = rows[rows["defense"] == "external:reads_environment"]
    monkeypatch.setenv("SHIFT", "0")
    plain = rows[rows["defense"] == "external:plain"]
    assert wrapper["clean_accuracy"].nunique() == 1
    assert wrapper["clean_accuracy"].iloc[0] != plain["clean_accuracy"].iloc[0]
    assert not any(r.get("own_source") for r in read_records(Path("reads_environment")) if "reads" in r["defense"])


def test_squeezed_logits_are_refused_first(evaluate_factory, capsys):
    """A model that drops the batch of a single image would fail in the middle of an attack."""
    assert main(["evaluate", "-q", "--model", "mine.py:squeezed"]) == 2
    assert "returned shape (10,) for 1 images" in capsys.readouterr().err


def test_source_that_guesses_is_flagged(evaluate_factory):
    rows = evaluate_factory("plain", "fgsm", "--transfer-source", "mine.py:constant")
    mine = rows[rows["defense"] == "external:plain"].set_index("protocol")
    assert "weak-source" in mine["flags"]["transfer"] and "weak-source" not in mine["flags"]["white-box"]


def test_huge_logits_are_attacked(evaluate_factory):
    """Logits of 1e37 do not change what the attacks find."""
    found = {name: evaluate_factory(name)["robust_accuracy"].tolist() for name in ("plain", "huge")}
    assert found["huge"] == found["plain"]


def test_model_without_gradients_has_no_worst_case(evaluate_factory, capsys):
    attacks = "pgd,jitter,torchattacks-fgsm,noise"
    rows = evaluate_factory("one_hot", attacks, status=1).set_index("attack")
    for name in attacks.split(",")[:3]:
        assert rows["reason"][name].startswith(
            f"attack '{name}': no gradient of the logits reaches the images (one-hot"
        )
    assert rows["status"]["noise"] == "ok" and rows["worst_case_accuracy"].isna().all()
    assert (rows["flags"].str.contains("zero-gradients")).all()


def test_failed_checks_do_not_stop_attacks(evaluate_factory, capsys):
    (row,) = evaluate_factory("no_gradient", "noise").to_dict("records")
    assert (row["status"], row["flags"]) == ("ok", "not-checked")
    message = "gradient-masking checks failed for external:no_gradient: no gradient here"
    assert message in capsys.readouterr().err
