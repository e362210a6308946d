"""The command line end to end on small work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import robobench
from robobench.attacks.pgd import PGD
from robobench.cli import main
from robobench.store.artifacts import MANIFEST, file_digest, hash_recipe

SMALL = ["--epochs", "2", "--examples", "40", "--set", "run.train_images=256", "--threads", "1", "--quiet"]
ATTACKS = ["--attacks", "pgd,fgsm", "--set", "pgd.steps=8"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "runs"
    status = main(["compare", "--defenses", "standard,at", *SMALL, *ATTACKS, "--out", str(out)])
    assert status == 0
    return out


def test_help_and_list_do_not_import_torch():
    code = "import sys; from robobench.cli import main; main({}); assert 'torch' not in sys.modules, 'torch'"
    for arguments in (
        ["--help"],
        ["list", "defenses"],
        ["list", "models"],
        ["list", "datasets"],
        ["list", "presets"],
        ["paper", "list"],
    ):
        done = subprocess.run([sys.executable, "-c", code.format(arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_list_shows_builtin_plugins(capsys):
    assert main(["list", "defenses"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"standard", "at", "trades", "macd", "distillation"} <= listed
    main(["list", "attacks"])
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"pgd", "fgsm", "jitter", "autoattack", "autoattack-l2", "torchattacks-pgd"} <= listed


def test_rows_have_documented_columns(store):
    rows = pd.read_csv(store / "rows.csv")
    first = [
        "dataset",
        "data_digest",
        "model",
        "image_size",
        "preset",
        "config_digest",
        "defense",
        "defense_version",
        "train_norm",
        "train_eps",
        "attack",
        "attack_version",
        "threat_norm",
        "threat_eps",
        "relative_step",
        "early_stop",
        "attack_budget",
        "protocol",
        "source_digest",
        "seed",
        "selection",
        "examples",
        "clean_accuracy",
        "robust_accuracy",
        "ci_low",
        "ci_high",
        "train_seconds",
        "total_train_seconds",
        "warmup_seconds",
        "peak_memory_bytes",
        "precision",
        "threads",
        "hardware",
        "torch_version",
        "commit",
        "flags",
        "status",
        "reason",
    ]
    assert list(rows.columns[: len(first)]) == first
    models = 3  # standard, at, and the control
    assert len(rows) == models * 2 * 2 * 2  # attacks, radii, protocols
    assert (rows["status"] == "ok").all()
    assert rows["robust_accuracy"].le(rows["clean_accuracy"]).all()
    assert rows["ci_low"].le(rows["robust_accuracy"]).all() and rows["ci_high"].ge(rows["robust_accuracy"]).all()


def test_worst_case_is_below_every_attack(store):
    rows = pd.read_csv(store / "rows.csv")
    keys = ["defense", "seed", "threat_norm", "threat_eps", "protocol"]
    for _, cell in rows.groupby(keys):
        assert cell["worst_case_accuracy"].nunique() == 1
        assert cell["worst_case_accuracy"].iloc[0] <= cell["robust_accuracy"].min()
        assert cell["worst_case_attacks"].iloc[0] == "fgsm,pgd"


def test_model_folder_is_complete(store):
    (folder,) = [p for p in store.iterdir() if p.name.startswith("at-")]
    names = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "config.json", "timing.json", "run.log", "metrics.csv"} <= names
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["train_seconds"] == pytest.approx(sum(s["seconds"] for s in timing["stages"]))
    assert timing["stages"][0]["passes"]["forward"] > 1  # the inner maximization is declared


def test_second_call_reuses_everything(store):
    before = (store / "rows.csv").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in store.rglob("*.safetensors")}
    assert main(["compare", "--defenses", "standard,at", *SMALL, *ATTACKS, "--out", str(store)]) == 0
    assert (store / "rows.csv").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*.safetensors")} == stamps


def test_compare_prints_paired_differences(store, capsys):
    assert main(["compare", "--defenses", "standard,at", *SMALL, *ATTACKS, "--out", str(store)]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("at - standard")][:1]
    assert re.search(r"[+-]\d+\.\d \([\d.e-]+\)", line) and "exact McNemar test on the same images" in said
    assert max(map(len, said.splitlines())) <= 80 and "\x1b" not in said
    assert main(["compare", "--defenses", "standard,att", "--out", str(store)]) == 2
    assert "did you mean 'at'" in capsys.readouterr().err


def test_same_seed_gives_same_weights(store, tmp_path):
    out = tmp_path / "again"
    main(["run", "--defense", "at", "--protocol", "white-box", *SMALL, *ATTACKS, "--out", str(out)])
    old, new = (robobench.load(place, "at").state_dict() for place in (store, out))
    assert all(torch.equal(old[k], new[k]) for k in old)


def test_damaged_model_is_quarantined_and_retrained(store, tmp_path):
    out = tmp_path / "runs"
    arguments = ["run", "--defense", "standard", "--protocol", "white-box", *SMALL, *ATTACKS, "--out", str(out)]
    main(arguments)
    (weights,) = out.glob("standard-*/model.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-8] + b"\0" * 4 + good[-4:])
    assert main(arguments) == 0
    assert weights.read_bytes() == good
    assert len(list(out.glob("*.damaged-1"))) == 1


def test_leaderboard_prints_every_format(store, capsys):
    for form, mark in (
        ("table", "worst"),
        ("md", "| rank |"),
        ("csv", "rank,dataset"),
        ("latex", r"\begin{tabular}"),
        ("html", "<table"),
        ("json", '"rank": 1'),
    ):
        assert main(["leaderboard", str(store), "--format", form]) == 0
        assert mark in capsys.readouterr().out


def test_leaderboard_ranks_by_white_box_worst_case(store):
    board = robobench.leaderboard(store)
    for _, lines in board.groupby(["threat_norm", "threat_eps"]):
        assert lines["worst"].is_monotonic_decreasing
        assert lines["rank"].iloc[0] == 1


def test_evaluate_of_weights_file_repeats_figures(store, tmp_path, capsys):
    (folder,) = [p for p in store.iterdir() if p.name.startswith("at-")]
    rows = robobench.evaluate(
        folder / "model.safetensors", model="cnn", examples=40, attacks="pgd", sets="pgd.steps=8",
        preset="quick", out=tmp_path / "e", threads=1,
    )  # fmt: skip
    own = pd.read_csv(store / "rows.csv")
    own = own[(own["defense"] == "at") & (own["protocol"] == "white-box") & (own["attack"] == "pgd")]
    assert rows["robust_accuracy"].tolist() == own["robust_accuracy"].tolist()
    assert set(rows["protocol"]) == {"white-box"}
    assert rows["train_seconds"].isna().all()


def test_trained_factory_needs_no_weights_file(store, tmp_path):
    (folder,) = [p for p in store.iterdir() if p.name.startswith("at-")]
    (tmp_path / "mine.py").write_text(
        f"import robobench\n\n\ndef net(num_classes):\n    return robobench.load({str(store)!r}, {folder.name!r})\n"
    )
    rows = robobench.evaluate(
        model=f"{tmp_path / 'mine.py'}:net", examples=40, attacks="fgsm", preset="quick", out=tmp_path / "f", threads=1
    )
    own = pd.read_csv(store / "rows.csv")
    own = own[(own["defense"] == "at") & (own["protocol"] == "white-box") & (own["attack"] == "fgsm")]
    assert rows["robust_accuracy"].tolist() == own["robust_accuracy"].tolist()


@pytest.fixture
def evaluate_with_limit(digits_net, tmp_path, capsys):
    """Evaluate a model that runs out of memory above `most` images; return its figures and the warnings."""
    torch.save(digits_net, tmp_path / "net.pt")

    def evaluate(most, *words, gradients=False):
        (tmp_path / "mine.py").write_text(
            "import torch\n\n\ndef full(module, inputs):\n"
            f"    if len(inputs[0]) > {most} and inputs[0].requires_grad >= {gradients}:\n"
            "        raise torch.OutOfMemoryError('CUDA out of memory')\n\n\n"
            "def net(num_classes):\n"
            f"    net = torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)\n"
            "    net = torch.nn.Sequential(torch.nn.AvgPool2d(4), net)\n"
            "    net.register_forward_pre_hook(full)\n    return net\n"
        )
        model = [f"{tmp_path / 'mine.py'}:net", "--examples", "40", "--set", "run.eval_batch_size=16", "--threads", "1"]
        model += ["--preset", "quick"]
        out = tmp_path / str(most)
        assert main(["evaluate", "-v", "--model", *model, *words, "--out", str(out)]) == 0
        rows = pd.read_csv(out / "rows.csv").set_index(["attack", "threat_eps", "protocol"])
        said = [line for line in capsys.readouterr().err.splitlines() if "retrying with" in line]
        return rows[["clean_accuracy", "robust_accuracy", "status"]].sort_index(), said

    return evaluate


@pytest.mark.parametrize("attack", ["pgd", "autoattack"])
def test_attack_retry_warns_once(evaluate_with_limit, attack):
    words = ["--attacks", attack, "--set", f"{attack}.steps=4"]
    whole, nothing = evaluate_with_limit(40, *words, gradients=True)
    rows, said = evaluate_with_limit(3, *words, gradients=True)
    assert nothing == []
    assert whole["robust_accuracy"].between(0.01, 0.99).any() and rows.equals(whole)
    (line,) = said
    assert re.fullmatch(r"warning: external:net: attack '.*': out of memory with \d+ images; retrying with \d+", line)


def test_every_evaluation_retries_with_smaller_batches(evaluate_with_limit, tmp_path):
    model = f"{tmp_path / 'mine.py'}:net"
    words = ["--attacks", "pgd", "--set", "pgd.steps=4", "--transfer-source", model]
    (whole, _), (rows, said) = evaluate_with_limit(40, *words), evaluate_with_limit(3, *words)
    assert set(whole.index.get_level_values("protocol")) == {"white-box", "transfer"} and rows.equals(whole)
    assert [line.split(": ")[2] for line in said] == ["clean accuracy", "attack 'pgd'"]


def test_reproduce_warns_once_about_retries(store, monkeypatch, capsys):
    step = PGD.step

    def full(self, model, state):
        if len(state.adv) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, model, state)

    monkeypatch.setattr(PGD, "step", full)
    assert main(["reproduce", str(store), "--sample", "0"]) == 0
    assert capsys.readouterr().err.count("out of memory") == 1


def test_factory_with_other_weights_is_another_model(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n\nimport torch\nfrom torch import nn\n\n\n"
        "def net(num_classes):\n"
        "    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))\n"
        "    net.load_state_dict(torch.load(Path(__file__).with_name('best.pt')))\n"
        "    return net\n"
    )
    found = []
    for number in range(2):
        torch.manual_seed(number)
        linear = torch.nn.Linear(192, 10)
        torch.save({"2.weight": linear.weight, "2.bias": linear.bias}, tmp_path / "best.pt")
        rows = robobench.evaluate(
            model=f"{tmp_path / 'mine.py'}:net", examples=40, attacks="fgsm", out=tmp_path / "f", threads=1
        )
        found.append(set(rows["weights_digest"]))
    assert len(found[0]) == len(found[1]) == 1 and found[0] != found[1]


def test_retrained_weights_do_not_keep_old_records(tmp_path):
    """A training that is repeated with other weights gets new evaluation records and transfer examples."""
    out = tmp_path / "runs"
    run = [
        "run",
        "--defense",
        "standard",
        *SMALL,
        "--out",
        str(out),
        "--set",
        "run.baseline_control=false",
        "--attacks",
        "fgsm",
    ]
    assert main(run) == 0
    (folder,) = out.glob("standard-*")
    (old,) = {digest for digest in pd.read_csv(out / "rows.csv")["weights_digest"]}
    state = {name: value + 0.1 for name, value in load_file(folder / "model.safetensors").items()}
    manifest = json.loads((folder / MANIFEST).read_text())
    save_file(state, folder / "model.safetensors")  # as a GPU leaves it when the training is repeated
    manifest["files"]["model.safetensors"] = new = file_digest(folder / "model.safetensors")
    del manifest["digest"]
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": hash_recipe(manifest)}))
    assert main(run) == 0
    rows = pd.read_csv(out / "rows.csv")
    assert set(rows["weights_digest"]) == {new[:16]} and new[:16] != old
    assert set(rows.loc[rows["protocol"] == "transfer", "source_digest"]) == {new[:16]}
    assert len(list((out / "artifacts" / "transfer").glob("*"))) == 2 * len(set(rows["threat_eps"]))


def test_dry_run_creates_nothing(tmp_path, capsys):
    out = tmp_path / "none"
    assert main(["run", "--defense", "at", "--dry-run", "--out", str(out)]) == 0
    assert not out.exists()
    text = capsys.readouterr().out
    assert "estimated on this machine" in text and "inner_steps" in text


def test_failed_training_becomes_row_with_reason(tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["compare", "--defenses", "standard,at", "--set", "at.lr=1e30", *SMALL, *ATTACKS, "--out", str(out)]
    assert main(arguments) == 1
    rows = pd.read_csv(out / "rows.csv")
    failed = rows[rows["defense"] == "at"]
    assert (failed["status"] == "failed").all() and failed["robust_accuracy"].isna().all()
    assert failed["reason"].str.contains("loss").all()
    assert (rows.loc[rows["defense"] == "standard", "status"] == "ok").all()


def test_defense_from_plugin_file_gets_row(tmp_path):
    (tmp_path / "smooth.py").write_text(
        '"""Label smoothing."""\n'
        "import torch.nn.functional as F\nfrom torch import nn\n\n"
        "from robobench.api import DEFENSES, Defense, Loss, PassCounts, train_stage\n\n\n"
        '@DEFENSES.register("smooth")\nclass Smooth(Defense):\n    """Label smoothing."""\n\n'
        "    def stages(self, setup):\n"
        "        passes = PassCounts(forward=1, weight_grad=1)\n"
        '        return [train_stage(self.config, "train", Objective(setup.model), passes=passes)]\n\n\n'
        "class Objective(nn.Module):\n    def __init__(self, model):\n        super().__init__()\n"
        "        self.model = model\n\n    def forward(self, batch):\n"
        "        return Loss(F.cross_entropy(self.model(batch.images), batch.labels, label_smoothing=0.1))\n"
    )
    plugin = str(tmp_path / "smooth.py")
    assert main(["check", plugin]) == 0
    rows = robobench.run(
        "smooth", plugins=plugin, protocol="white-box", attacks="fgsm", epochs=1, examples=20,
        sets="run.train_images=128", out=tmp_path / "runs", threads=1,
    )  # fmt: skip
    assert set(rows["defense"]) == {"smooth"} and (rows["status"] == "ok").all()


def test_attack_returns_images_in_the_ball(store):
    model = robobench.load(store, "at")
    images, labels = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    adv = robobench.attack("pgd", model, images, labels, eps="8/255", steps=3)
    assert float((adv - images).abs().max()) <= 8 / 255 + 1e-6


def test_help_answers_quickly():
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "robobench", "--help"], capture_output=True, check=True)
    assert time.monotonic() - begun < 5  # the claim is 0.6 s; this guards against torch, not against a busy machine


def test_variant_requires_its_own_teacher(tmp_path):
    from robobench.planning.planner import make_plan
    from robobench.planning.request import ExperimentConfig

    def needs(*sets: str) -> list[str]:
        plan = make_plan(ExperimentConfig(defenses=("iad",), sets=sets, out=tmp_path, protocol="white-box"))
        return [t.name for t in plan.training_order()]

    assert needs() == ["at", "iad"]
    assert needs("iad.variant=II") == ["at", "standard", "iad"]
