"""The artifact store: atomic writes, checksums, quarantine and locks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from robobench.errors import ArtifactError, StorageError
from robobench.store.artifacts import Store, hash_recipe, write_atomic


def make(store: Store, text: str = "hello", name: str = "one") -> None:
    with store.create("stages", name, {"a": 1}) as work:
        (work / "file.txt").write_text(text)


@pytest.fixture
def store(tmp_path):
    """A store with two evaluations, "a" and "b"."""
    filled = Store(tmp_path / "runs")
    for name in ("a", "b"):
        with filled.create("evaluations", name, {"is": name}) as work:
            (work / "record.json").write_text(json.dumps({"is": name}))
    return filled


def test_artifact_is_complete_or_absent(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.create("stages", "one", {}) as work:
        (work / "file.txt").write_text("half")
        raise RuntimeError
    assert store.find("stages", "one") is None
    assert list((tmp_path / "artifacts" / "stages").iterdir()) == []


@pytest.mark.parametrize("damage", [b"hellp", b"", b"hello and more"])
def test_changed_file_is_quarantined(tmp_path, damage):
    messages: list[str] = []
    store = Store(tmp_path, log=messages.append)
    make(store)
    folder = store.find("stages", "one")
    assert folder is not None
    (folder / "file.txt").write_bytes(damage)
    with pytest.raises(ArtifactError):
        store.verify(folder)
    assert store.find("stages", "one") is None
    assert folder.with_name("one.damaged-1").is_dir()
    assert messages == [
        f"checksum mismatch in '{folder / 'file.txt'}'; moved to 'one.damaged-1', will be recomputed",
    ]
    make(store)
    assert store.find("stages", "one") == folder


def test_missing_file_or_broken_manifest_is_detected(tmp_path):
    store = Store(tmp_path)
    make(store)
    make(store, name="two")
    (store.folder("stages", "one") / "file.txt").unlink()
    (store.folder("stages", "two") / "artifact.json").write_text('{"recipe"')
    assert store.find("stages", "one") is None
    assert store.find("stages", "two") is None


def test_damaged_artifacts_are_not_listed(tmp_path):
    store = Store(tmp_path)
    make(store)
    make(store, name="two")
    (store.folder("stages", "two") / "file.txt").write_text("x")
    store.find("stages", "two")
    assert [p.name for p in store.iter_artifacts("stages")] == ["one"]


def test_swapped_artifacts_are_detected(store):
    a, b = (store.folder("evaluations", name) for name in "ab")
    a.rename(a.with_name("c"))
    b.rename(a)
    assert store.find("evaluations", "a") is None


def test_changed_recipe_is_detected(store):
    manifest = store.folder("evaluations", "a") / "artifact.json"
    manifest.write_text(manifest.read_text().replace('"is": "a"', '"is": "x"'))
    assert store.find("evaluations", "a") is None


def test_overwrite_quarantines_only_earlier_artifacts(store):
    overwriting = Store(store.root, overwrite=True)
    assert overwriting.find("evaluations", "a") is None
    assert store.folder("evaluations", "a.replaced-1").is_dir()
    with overwriting.create("evaluations", "a", {}):
        pass
    assert overwriting.find("evaluations", "a") is not None


def test_lock_names_owner_and_is_freed(tmp_path):
    """The message about a wait names the owner, and the lock of a killed process is released."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom robobench.store.artifacts import Store\n"
        "with Store(Path(sys.argv[1])).lock('model', 'one'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        messages: list[str] = []

        def log(line: str) -> None:
            messages.append(line)
            owner.kill()

        with Store(tmp_path, log=log).lock("model", "one"):
            owner.wait()
    assert messages[0].startswith(f"waiting for lock on model 'one' (held by process {owner.pid} on host ")


def test_key_depends_on_values_not_order():
    assert hash_recipe({"a": 1, "b": [1, 2]}) == hash_recipe({"b": [1, 2], "a": 1})
    assert hash_recipe({"a": 1, "b": [1, 2]}) != hash_recipe({"a": 1, "b": [2, 1]})


def test_failed_write_keeps_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match=r"No space.*; fix this and rerun the same command to resume"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]
