import json
import shutil

import pytest

from robobench.cli import main
from robobench.errors import ArtifactError
from robobench.store.artifacts import MANIFEST, Store
from robobench.store.maintenance import find_leftovers, merge_stores, remove


def put(store, kind, name, **files):
    """Store an artifact with these texts."""
    with store.lock(kind, name), store.create(kind, name, {"what": name}) as work:
        for file, text in files.items():
            (work / file.replace("_", ".")).write_text(text)


@pytest.fixture
def stores(tmp_path):
    """Return two stores that share a model, and each have a record of it."""
    out = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        put(store, "model", "at-1", model_safetensors="weights", config_json="{}")
        put(store, "evaluations", name * 16, record_json=json.dumps({"training": "at-1"}))
        out.append(store)
    return out


def names(store, kind="evaluations"):
    return [folder.name for folder in store.iter_artifacts(kind)]


def test_merge_copies_what_is_missing(stores):
    a, b = stores
    assert merge_stores(a, b, dry_run=True).copied == {"evaluations": 1} and names(a) == ["a" * 16]
    done = merge_stores(a, b)
    assert done.copied == {"evaluations": 1} and done.present == 1 and names(a) == ["a" * 16, "b" * 16]
    assert a.manifest(a.folder("evaluations", "b" * 16)) == b.manifest(b.folder("evaluations", "b" * 16))
    again = merge_stores(a, b)
    assert again.copied == {} and again.present == 2


def test_merge_keeps_own_weights(stores):
    """Records of the other weights would be rows of a model that the store does not have."""
    a, b = stores
    put(b, "model", "at-1", model_safetensors="others", config_json="{}")
    done = merge_stores(a, b)
    assert done.copied == {} and len(done.left_out) == 2 and names(a) == ["a" * 16]
    assert (a.root / "at-1" / "model.safetensors").read_text() == "weights"


def test_merge_completes_model_of_a_snapshot(stores):
    a, b = stores
    put(a, "model", "at-1", config_json="{}")
    merge_stores(a, b)
    assert (a.root / "at-1" / "model.safetensors").read_text() == "weights"


def test_merge_joins_weights_of_one_training(stores):
    """Two runs of a training keep weights of different epochs, and their seconds differ."""
    a, b = stores
    put(a, "model", "at-1", model_safetensors="weights", best_safetensors="best", timing_json="1")
    put(b, "model", "at-1", model_safetensors="weights", average_safetensors="average", timing_json="2")
    merge_stores(a, b)
    found = {file.name: file.read_text() for file in (a.root / "at-1").iterdir() if file.name != MANIFEST}
    assert found.pop("timing.json") == "1"
    assert found == {
        f"{name}.safetensors": text for name, text in (("model", "weights"), ("best", "best"), ("average", "average"))
    }
    a.verify(a.folder("model", "at-1"))


def test_merge_refuses_damaged_artifact(stores):
    a, b = stores
    (b.folder("evaluations", "b" * 16) / "record.json").write_text(json.dumps({"training": "at-2"}))
    with pytest.raises(ArtifactError, match="checksum mismatch"):
        merge_stores(a, b)
    assert names(a) == ["a" * 16]


def test_prune_keeps_models_records_and_unfinished_work(stores):
    a, _ = stores
    put(a, "transfer", "t", examples="x" * 100)
    put(a, "checkpoints/at-2", "00000001", state="s")
    put(a, "evaluations", "c" * 16, record_json="{}")
    moved = a.quarantine(a.folder("evaluations", "c" * 16), ".damaged-")
    dead = a.root / ".at-3.building"
    dead.mkdir()
    (dead / "model.safetensors").write_text("half")
    found = {leftover.folder: leftover.size for leftover in find_leftovers(a)}
    assert found.keys() == {moved, dead} and found[dead] == 4
    with a.lock("model", "at-3"):  # a process builds it now
        assert {leftover.folder for leftover in find_leftovers(a)} == {moved}
    for leftover in find_leftovers(a):
        remove(leftover)
    assert find_leftovers(a) == [] and names(a) == ["a" * 16] and names(a, "transfer") == ["t"]
    assert {leftover.folder.name for leftover in find_leftovers(a, intermediate=True)} == {"t"}
    assert (a.root / "artifacts" / "checkpoints" / "at-2" / "00000001" / "state").exists()


def test_prune_and_merge_commands(stores, capsys):
    a, b = stores
    a.quarantine(a.folder("evaluations", "a" * 16), ".replaced-")
    assert main(["store", "prune", "--out", str(a.root), "--dry-run"]) == 0
    assert "nothing was removed" in capsys.readouterr().out and list(a.root.rglob("*.replaced-1"))
    assert main(["store", "prune", "--out", str(a.root)]) == 0
    assert "removed 1 folders" in capsys.readouterr().out and not list(a.root.rglob("*.replaced-1"))
    assert main(["store", "merge", str(a.root), str(b.root), "--dry-run"]) == 0
    assert "would copy 1 evaluations; 1 artifacts were there" in capsys.readouterr().out
    assert main(["store", "merge", str(a.root), str(a.root)]) == 2
    shutil.rmtree(b.root)
    assert main(["store", "merge", str(a.root), str(b.root)]) == 2
    assert main(["store", "prune", "--out", str(b.root)]) == 2 and not b.root.exists()
