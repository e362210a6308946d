"""The index of a store never changes an answer: whatever happened to it or to the records."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from robobench.errors import ArtifactError
from robobench.results import index, rows
from robobench.results.rows import read_rows, rewrite_rows
from robobench.store.artifacts import Store
from tests.helpers.boards import BOARD

TRAINING = "at-resnet20-cifar10-s0-e27503bc92"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return a copy of a committed board without weights, small enough to read and large enough for an index."""
    monkeypatch.setattr(index, "MIN_RECORDS", 1)
    root = tmp_path / "store"
    shutil.copytree(BOARD, root, ignore=shutil.ignore_patterns("*.safetensors"))
    read_rows(root)
    assert index.load_index(root) is not None
    return Store(root)


def plain_rows(store, monkeypatch):
    """Return the rows as they are without an index."""
    with monkeypatch.context() as patched:
        patched.setattr(rows, "load_index", lambda root: None)
        patched.setattr(rows, "save_index", lambda root, table, states: None)
        return read_rows(store.root)


def counted(monkeypatch):
    """Return a list to which the key of every record that is read is added."""
    read, real = [], Store.__dict__["verify"].__func__

    def verify(cls, folder, *files):
        if files == ("record.json",):
            read.append(folder.name)
        return real(cls, folder, *files)

    monkeypatch.setattr(Store, "verify", classmethod(verify))
    return read


def change_record(store, key, **values):
    """Write a record with other values and a manifest that fits it."""
    folder = store.folder("evaluations", key)
    recipe, record = store.manifest(folder)["recipe"], json.loads((folder / "record.json").read_text())
    with store.create("evaluations", key, recipe) as work:
        (work / "record.json").write_text(json.dumps(record | values))


def keys_of(store, training):
    """Return the keys of a training's finished white-box records."""
    found = [(f.name, json.loads((f / "record.json").read_text())) for f in store.iter_artifacts("evaluations")]
    return [k for k, r in found if r["training"] == training and r["status"] == "ok" and r["protocol"] == "white-box"]


def test_fresh_index_reads_no_record(store, monkeypatch):
    expected, read = plain_rows(store, monkeypatch), counted(monkeypatch)
    pd.testing.assert_frame_equal(read_rows(store.root), expected)
    assert read == []


def test_changed_record_reads_its_training_only(store, monkeypatch):
    key, *others = keys_of(store, TRAINING)
    record = json.loads((store.folder("evaluations", key) / "record.json").read_text())
    change_record(store, key, robust_bits="0" * len(record["robust_bits"]))
    expected, read = plain_rows(store, monkeypatch), counted(monkeypatch)
    pd.testing.assert_frame_equal(read_rows(store.root), expected)
    assert {key, *others} <= set(read) and len(read) < len(list(store.iter_artifacts("evaluations"))) / 4


@pytest.mark.parametrize("what", ["removed record", "new record", "removed training", "changed timing", "moved away"])
def test_stale_index_gives_the_same_rows(what, store, monkeypatch, tmp_path):
    folder = store.folder("evaluations", keys_of(store, TRAINING)[0])
    if what == "removed record":
        shutil.rmtree(folder)
    elif what == "new record":
        shutil.move(folder, tmp_path / folder.name)
        read_rows(store.root)
        shutil.move(tmp_path / folder.name, folder)
    elif what == "removed training":
        shutil.rmtree(store.root / TRAINING)
    elif what == "changed timing":
        model = store.root / TRAINING
        timing = json.loads((model / "timing.json").read_text())
        files = {name: (model / name).read_text() for name in ("config.json", "metrics.csv") if (model / name).exists()}
        recipe = store.manifest(model)["recipe"]
        with store.create("model", TRAINING, recipe) as work:
            (work / "timing.json").write_text(json.dumps(timing | {"train_seconds": 12345.0}))
            for name, text in files.items():
                (work / name).write_text(text)
    else:
        for other in list(store.iter_artifacts("evaluations"))[5:]:
            shutil.rmtree(other)
    pd.testing.assert_frame_equal(read_rows(store.root), plain_rows(store, monkeypatch))
    if what == "changed timing":
        assert (read_rows(store.root)["train_seconds"] == 12345.0).any()


@pytest.mark.parametrize("damage", ["deleted", "cut off", "one byte", "no manifest", "other version"])
def test_damaged_index_is_not_used(damage, store, monkeypatch):
    folder = store.folder(index.KIND, index.NAME)
    file = folder / "rows.parquet"
    if damage == "deleted":
        shutil.rmtree(folder)
    elif damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "one byte":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "no manifest":
        (folder / "artifact.json").write_text("{}")
    else:
        monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    pd.testing.assert_frame_equal(read_rows(store.root), plain_rows(store, monkeypatch))
    assert index.load_index(store.root) is not None  # written again


def test_damaged_record_is_refused_with_an_index(store):
    folder = store.folder("evaluations", keys_of(store, TRAINING)[0])
    (folder / "record.json").write_text((folder / "record.json").read_text().replace("1", "0", 1))
    with pytest.raises(ArtifactError, match="checksum mismatch"):
        read_rows(store.root)


def test_small_store_gets_no_index(tmp_path):
    root = tmp_path / "store"
    shutil.copytree(BOARD, root, ignore=shutil.ignore_patterns("*.safetensors"))
    read_rows(root)
    assert not (root / "artifacts" / "index").exists() and not (root / "artifacts" / "locks").exists()


def test_run_reads_its_own_trainings_only(store, monkeypatch):
    wanted = set(keys_of(store, TRAINING)[:2])
    shutil.rmtree(store.folder("evaluations", keys_of(store, TRAINING)[-1]))
    read = counted(monkeypatch)
    records = rewrite_rows(store, wanted)
    assert {r["key"] for r in records} == wanted and len(set(read)) < 40
    written = Path(store.root / "rows.csv").read_text().count("\n")
    assert written == 1 + len(list(store.iter_artifacts("evaluations")))
