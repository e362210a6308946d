"""Input files cannot run code, and nothing is written outside the requested folders."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

import robobench
from robobench.cli import main
from robobench.data import load_dataset
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.store.artifacts import Store
from robobench.store.tensors import save_tensors


class Payload:
    """A pickle that creates a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors"])
def test_code_in_weights_is_not_run(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for save in (torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))):
        save({"state_dict": {"w": torch.zeros(2)}, "epoch": Payload(tmp_path / "ran")}, name)
        assert main(["evaluate", name, "--model", "cnn"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"weights '{name}' do not fit" in line or f"cannot read weights from '{name}'" in line
        assert [p.name for p in tmp_path.iterdir()] == [name]


def test_npz_with_objects_is_refused_and_not_run(tmp_path):
    objects = np.array([Payload(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "d.npz", x_test=objects, y_test=objects, allow_pickle=True)
    with pytest.raises(RequestError, match=r"cannot read '.*d\.npz'"):
        load_dataset(f"npz:{tmp_path / 'd.npz'}", need_train=False)
    assert not (tmp_path / "ran").exists()


def test_archive_with_parent_paths_is_refused(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(RequestError, match="is damaged"):
        load_dataset("cifar10", data_dir=place)
    assert {p.name for p in tmp_path.rglob("*")} == {"data", "cifar-10-python.tar.gz"}


def test_batches_with_wrong_checksum_are_not_unpickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(RequestError, match="is damaged"):
        load_dataset("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_store_cannot_name_code_to_run(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\ndef net(num_classes): ...\n")
    config = {"defense": "at", "spec": {"name": f"{tmp_path / 'evil.py'}:net", "num_classes": 3}}
    with Store(tmp_path / "runs").create("model", "at-s0", {}) as work:
        (work / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="built by your function"):
        robobench.load(tmp_path / "runs", "at")
    assert not ran.exists()


def test_plugin_is_not_imported_until_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("p.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nfrom robobench.api import ATTACKS, Attack\n\n"
        '@ATTACKS.register("mine")\nclass Mine(Attack):\n    """Mine."""\n'
    )
    assert main(["list", "attacks", "--plugin", "p.py"]) == 0
    assert "mine" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_run_writes_only_to_its_store(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(home))
    rows = robobench.run(
        "standard", protocol="white-box", attacks="fgsm", epochs=1, examples=8, sets="run.train_images=32",
        out=tmp_path / "runs", threads=1,
    )  # fmt: skip
    assert len(rows) and not list(home.iterdir())


def test_manifest_digest_is_of_the_file(tmp_path):
    store = Store(tmp_path)
    with store.create("stages", "one", {"a": 1}) as work:
        (work / "f").write_bytes(b"hello")
    assert store.digest("stages", "one", "f") == hashlib.sha256(b"hello").hexdigest()


def test_factory_named_by_caller_is_used(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
    )
    name = f"{tmp_path / 'mine.py'}:net"
    model = build_model(ModelSpec(name, 3))
    with Store(tmp_path / "runs").create("model", "x-s0", {}) as work:
        (work / "config.json").write_text(json.dumps({"defense": "x", "spec": {"name": name, "num_classes": 3}}))
        save_tensors(model.state_dict(), work / "model.safetensors")
    images = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(robobench.load(tmp_path / "runs", "x", factory=name)(images), model.eval()(images))
