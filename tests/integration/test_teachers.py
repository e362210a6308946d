"""Teachers from files: used instead of a training, measured before use, refused if unusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import robobench
from robobench.cli import main
from robobench.data import load_dataset as load_data
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.teacher_files import Teacher
from robobench.store.tensors import save_tensors

TINY = {
    "sets": ("run.train_images=64", "run.baseline_control=false"),
    "epochs": 1,
    "attacks": "fgsm",
    "eps": "0.1",
    "protocol": "white-box",
    "threads": 1,
    "examples": 32,
}


def folders(out, defense):
    return [p for p in sorted(out.iterdir()) if p.name.startswith(f"{defense}-")]


@pytest.fixture(scope="module")
def at_store(tmp_path_factory):
    """Return a store with one model, adversarially trained for one epoch: it is not robust."""
    out = tmp_path_factory.mktemp("at")
    robobench.run("at", out=out, **TINY)
    return out


def test_teacher_file_replaces_training(at_store, tmp_path):
    (teacher,) = folders(at_store, "at")
    weights = tmp_path / "teacher.safetensors"
    shutil.copy(teacher / "model.safetensors", weights)
    rows = robobench.run("iad", out=tmp_path / "runs", teachers=f"robust={weights}", **TINY)
    assert set(rows["status"]) == {"ok"} and rows["total_train_seconds"].isna().all()  # its cost is unknown
    assert folders(tmp_path / "runs", "at") == []
    (student,) = folders(tmp_path / "runs", "iad")
    measured = json.loads((student / "timing.json").read_text())["teachers"]["robust"]
    images = load_data("digits").train
    index = torch.arange(64)
    right = robobench.load(at_store, "at")(images.images(index)).argmax(1) == images.labels[index]
    assert measured["clean"] == pytest.approx(right.float().mean().item()) and measured["images"] == 64


def test_model_folder_brings_its_architecture(at_store, tmp_path):
    (teacher,) = folders(at_store, "at")
    flags = {**TINY, "model": "resnet20", "examples": 8, "sets": ("run.train_images=16", "run.baseline_control=false")}
    rows = robobench.run("iad", out=tmp_path / "runs", teachers=f"robust={teacher}", **flags)
    assert list(rows["model"].unique()) == ["resnet20"] and set(rows["status"]) == {"ok"}


def test_robust_teacher_without_robustness_warns(at_store, tmp_path, capsys):
    (teacher,) = folders(at_store, "at")
    flags = ["--epochs", "0", "--attacks", "fgsm", "--eps", "0.1", "--examples", "8", "--set", "run.train_images=64"]
    where = ["--out", str(tmp_path / "runs"), "--protocol", "white-box", "--threads", "1"]
    assert main(["run", "--defense", "iad", "--teacher", f"robust={teacher}", *flags, *where]) == 0
    said = capsys.readouterr().err
    assert "teacher 'robust'" in said and "is not robust at Linf 0.1" in said


def test_teacher_near_chance_warns_in_every_role(tmp_path, capsys):
    state = build_model(ModelSpec("cnn", 10, 32)).state_dict()
    state["head.weight"].zero_()  # one class for every image, clean or attacked
    for role in ("robust", "clean"):
        state["head.bias"].copy_(torch.eye(10)[len(role)])
        save_tensors(state, tmp_path / f"{role}.safetensors")
    flags = ["--epochs", "0", "--attacks", "fgsm", "--eps", "0.1", "--examples", "8", "--set", "run.train_images=64"]
    where = ["--out", str(tmp_path / "runs"), "--protocol", "white-box", "--threads", "1"]
    teachers = [f"--teacher={role}={tmp_path / role}.safetensors" for role in ("robust", "clean")]
    assert main(["run", "--defense", "mtard", *teachers, *flags, *where]) == 0
    said = " ".join(capsys.readouterr().err.split())
    for role in ("robust", "clean"):
        assert f"teacher '{role}' (external:{role}) is not clearly better than chance (10 classes): clean" in said
    assert "normalization" in said and "is not robust" not in said


def test_changed_teacher_stops_training(tmp_path):
    plugin = tmp_path / "spoiler.py"
    plugin.write_text(
        "from robobench import api\n"
        "from robobench.defenses.iad import IAD\n"
        "@api.DEFENSES.register('spoiler')\n"
        "class Spoiler(IAD):\n"
        "    def stages(self, setup):\n"
        "        made = super().stages(setup)\n"
        "        setup.required_models['robust'].module.head.bias.data += 1\n"
        "        return made\n"
    )
    rows = robobench.run("spoiler", out=tmp_path / "runs", plugins=str(plugin), **{**TINY, "epochs": 0})
    assert rows["reason"].str.contains("stage 'distill' of 'spoiler' changed its teacher 'robust'").all()
    assert rows["robust_accuracy"].isna().all()


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        status = main(["run", *arguments])
        captured = capsys.readouterr()
        assert status == 2 and captured.err.count("\n") == 1, captured.err
        assert not (tmp_path / "runs").exists()
        return captured.err

    return run


@pytest.fixture
def five_classes(tmp_path):
    save_tensors(build_model(ModelSpec("cnn", 5, 32)).state_dict(), tmp_path / "five.safetensors")
    return "five.safetensors"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["robust=none.pt"], "no weights file 'none.pt'"),
        (["robust"], "names no file; --teacher takes ROLE=FILE"),
        (["robst=five.safetensors"], "did you mean 'robust'?"),
        (["robust=a.pt", "robust=b.pt"], "robust is given twice"),
        (["robust=a.pt", "clean=a.pt"], "robust and clean are the same model"),
        (["robust=five.safetensors"], "have 5 classes, the data set has 10"),
        (["robust=resnet20=five.safetensors"], "do not fit the model"),
        (["robust=."], "is not the folder of a trained model"),
    ],
    ids=str,
)
def test_unusable_teacher_is_refused_before_training(refused, five_classes, flags, said):
    assert said in refused("--defense", "mtard", *(f"--teacher={flag}" for flag in flags))


def test_teacher_with_more_classes_is_refused(refused, five_classes, tmp_path):
    images, labels = np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 3
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    said = refused(
        "--dataset", "npz:d.npz", "--preset", "quick", "--defense", "iad", f"--teacher=robust={five_classes}"
    )
    assert "teacher 'five.safetensors' gives 5 classes, the data set has 3" in said


def test_teacher_path_may_contain_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "lr=0.1" / "at.pt").touch()
    for text, model in (("lr=0.1/at.pt", None), ("resnet20=lr=0.1/at.pt", "resnet20")):
        given = Teacher.read(text)
        assert (given.model, given.weights) == (model, Path("lr=0.1/at.pt"))


def test_teacher_without_role_is_refused(refused, five_classes):
    assert "no defense of this run takes a teacher" in refused("--defense", "at", f"--teacher=robust={five_classes}")


def test_teacher_for_other_image_size_is_refused(refused, at_store):
    (teacher,) = folders(at_store, "at")
    larger = ["--set", "run.attack_resolution=64"]
    assert "was trained for 32 px images, this run has 64" in refused(
        "--defense", "iad", f"--teacher=robust={teacher}", *larger
    )


def test_student_cannot_be_its_own_teacher(at_store, tmp_path, capsys):
    out = tmp_path / "runs"
    (teacher,) = folders(at_store, "at")
    robobench.run("iad", out=out, teachers=f"robust={teacher}", **{**TINY, "epochs": 0})
    (student,) = folders(out, "iad")
    arguments = ["--defense", "iad", "--teacher", f"robust={student / 'model.safetensors'}", "--out", str(out)]
    assert main(["run", *arguments]) == 2
    assert "is a model that 'iad' itself trained" in capsys.readouterr().err
