from __future__ import annotations

import pytest

from robobench.core.paths import check_writable
from robobench.errors import ArtifactError, RequestError, StorageError
from robobench.store.artifacts import Store, hash_recipe, write_atomic


def make(store: Store, text: str = "hello", name: str = "one") -> None:
    with store.create("stages", name, {"a": 1}) as work:
        (work / "file.txt").write_text(text)


def test_an_artefact_appears_whole_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.create("stages", "one", {}) as work:
        (work / "file.txt").write_text("half")
        raise RuntimeError
    assert store.find("stages", "one") is None
    assert list((tmp_path / "artifacts" / "stages").iterdir()) == []


@pytest.mark.parametrize("damage", [b"hellp", b"", b"hello and more"])
def test_a_changed_file_is_noticed_and_set_aside(tmp_path, damage):
    store = Store(tmp_path)
    make(store)
    folder = store.find("stages", "one")
    assert folder is not None
    (folder / "file.txt").write_bytes(damage)
    with pytest.raises(ArtifactError):
        store.verify(folder)
    assert store.find("stages", "one") is None
    assert folder.with_name("one.damaged-1").is_dir()
    make(store)
    assert store.find("stages", "one") == folder


def test_a_missing_file_or_a_torn_manifest_is_noticed(tmp_path):
    store = Store(tmp_path)
    make(store)
    make(store, name="two")
    (store.folder("stages", "one") / "file.txt").unlink()
    (store.folder("stages", "two") / "artifact.json").write_text('{"recipe"')
    assert store.find("stages", "one") is None
    assert store.find("stages", "two") is None


def test_damaged_and_half_made_folders_are_not_walked(tmp_path):
    store = Store(tmp_path)
    make(store)
    make(store, name="two")
    (store.folder("stages", "two") / "file.txt").write_text("x")
    store.find("stages", "two")
    assert [p.name for p in store.iter_artifacts("stages")] == ["one"]


def test_a_key_depends_on_every_value_and_not_on_their_order():
    assert hash_recipe({"a": 1, "b": [1, 2]}) == hash_recipe({"b": [1, 2], "a": 1})
    assert hash_recipe({"a": 1, "b": [1, 2]}) != hash_recipe({"a": 1, "b": [2, 1]})


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


def test_a_store_under_a_file_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        check_writable(tmp_path / "file" / "store")
    check_writable(tmp_path / "new" / "store")
    assert not (tmp_path / "new").exists()
