"""Push and pull of a model and a board through a server on this machine that speaks the Hub's protocol."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save

import robobench
from robobench.cli import main
from robobench.errors import ArtifactError, RequestError
from robobench.planning.teacher_files import Teacher
from robobench.store.artifacts import Store
from robobench.store.hub import HubName, fetch_model, fetch_store
from tests.helpers.hub import TOKEN, serve_hub


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two models of `standard`, of seeds 0 and 1."""
    out = tmp_path_factory.mktemp("store") / "runs"
    flags = {"epochs": 1, "examples": 24, "attacks": "fgsm", "eps": "0.1", "threads": 1, "seeds": (0, 1)}
    robobench.run("standard", out=out, protocol="white-box", sets=("run.train_images=64",), **flags)
    return out


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub, with a cache and a login of this test."""
    with serve_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # this server has no Xet storage
        yield server


def model_folder(store, seed=0):
    (folder,) = store.glob(f"standard-*-s{seed}-*")
    return folder


def test_model_comes_back_with_its_digests(store, hub, tmp_path, capsys):
    folder = model_folder(store)
    assert main(["push", str(folder), "hf:me/small", "--license", "mit"]) == 0
    pinned = capsys.readouterr().out.strip()
    pulled = fetch_model(pinned)
    for file in ("model.safetensors", "config.json", "timing.json"):
        assert Store.manifest(pulled)["files"][file] == Store.manifest(folder)["files"][file]
    card = (fetch_store("hf:me/small") / "README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card and "24 images" in card
    assert Store.manifest(folder)["files"]["model.safetensors"] in card
    images = torch.rand(4, 3, 32, 32)
    ours, theirs = (robobench.load(place, folder.name)(images) for place in (store, "hf:me/small"))
    assert torch.equal(ours, theirs)
    out = str(tmp_path / "again")
    assert main(["evaluate", pinned, "--attacks", "fgsm", "--eps", "0.1", "--examples", "24", "--out", out]) == 0
    again, before = (pd.read_csv(place / "rows.csv") for place in (tmp_path / "again", store))
    first = before[(before["protocol"] == "white-box") & (before["seed"] == 0)]
    assert [*again["robust_accuracy"]] == [*first["robust_accuracy"]]
    teacher = Teacher.read(pinned)
    assert teacher.weights.parent.name == folder.name and teacher.spec.name == "cnn"
    assert not [path for path in hub.requested if "resolve" in path and path.endswith((".log", ".py", ".bin"))]


def test_board_comes_back_with_its_rows(store, hub, tmp_path, capsys):
    board = tmp_path / "board"
    assert main(["report", str(store), "--snapshot", str(board)]) == 0
    (board / "README.md").write_text((board / "README.md").read_text().replace("# board", "# My board"))
    assert main(["push", str(board), "hf:me/board"]) == 0
    pulled = fetch_store("hf:me/board")
    assert (pulled / "rows.csv").read_text() == (board / "rows.csv").read_text()
    assert "# My board" in (pulled / "README.md").read_text()
    for kind in ("model", "evaluations"):
        ours, theirs = ({f.name: Store.manifest(f) for f in Store(p).iter_artifacts(kind)} for p in (board, pulled))
        assert ours == theirs and len(ours) == 2
    capsys.readouterr()
    assert main(["leaderboard", "hf:me/board", "--format", "csv"]) == 0
    from_hub = capsys.readouterr()
    assert main(["leaderboard", str(board), "--format", "csv"]) == 0
    assert from_hub.out == capsys.readouterr().out and "is commit" in from_hub.err
    with pytest.raises(RequestError, match=r"holds 2 models; add one of: /standard"):
        fetch_model("hf:me/board")
    assert fetch_model(f"hf:me/board/{model_folder(store, 1).name}").name == model_folder(store, 1).name


def test_tampered_files_are_refused(store, hub):
    folder = model_folder(store)
    files = {f"{folder.name}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    hub.commit("me/small", files)
    assert fetch_model("hf:me/small").name == folder.name
    for number, file in enumerate(("model.safetensors", "config.json", "timing.json", "metrics.csv", "artifact.json")):
        content = files[f"{folder.name}/{file}"]
        place = content.rindex(b"0") if file != "model.safetensors" else len(content) - 9
        hub.commit(f"me/bad{number}", files)
        hub.tampered[f"{folder.name}/{file}"] = content[:place] + b"1" + content[place + 1 :]
        with pytest.raises(ArtifactError, match=r"is refused|is damaged"):
            fetch_model(f"hf:me/bad{number}")
        hub.tampered.clear()


def test_damaged_record_hides_whole_board(store, hub, tmp_path, capsys):
    main(["push", str(store), "hf:me/board"])
    commit, files = hub.tree("me/board")
    (record, *_) = [name for name in files if name.endswith("record.json")]
    changed = files[record].replace(b'"robust_bits": "', b'"robust_bits": "1')
    hub.commit("me/board", {**files, record: changed})
    assert main(["leaderboard", "hf:me/board"]) == 2
    assert "is refused: checksum mismatch" in capsys.readouterr().err
    assert main(["leaderboard", f"hf:me/board@{commit}"]) == 0  # the commit before it is whole


def test_foreign_weights_are_checked_too(hub, store):
    weights = (model_folder(store) / "model.safetensors").read_bytes()
    hub.commit("you/theirs", {"model.safetensors": weights, "pytorch_model.bin": b"pickle", "net.py": b"1 / 0"})
    assert load_file(fetch_model("hf:you/theirs")).keys() == load_file(model_folder(store) / "model.safetensors").keys()
    hub.commit("you/other", {"model.safetensors": weights})
    other = save({"head.weight": torch.zeros(2)})
    hub.tampered["model.safetensors"] = other + bytes(len(weights) - len(other))
    with pytest.raises(ArtifactError, match="checksum mismatch"):
        fetch_model("hf:you/other")
    hub.commit("you/pickled", {"pytorch_model.bin": b"pickle"})
    with pytest.raises(RequestError, match="reads no other weights"):
        fetch_model("hf:you/pickled")


def test_repository_never_chooses_code(hub, store, tmp_path):
    name = model_folder(store).name
    shutil.copytree(store / name, tmp_path / "evil" / name)
    config = json.loads((store / name / "config.json").read_text())
    config["spec"]["name"] = "evil.py:run"
    with Store(tmp_path / "evil").create("model", "made-here", {}) as work:
        (work / "config.json").write_text(json.dumps(config))
        shutil.copyfile(store / name / "model.safetensors", work / "model.safetensors")
    files = {f"made-here/{f.name}": f.read_bytes() for f in (tmp_path / "evil" / "made-here").iterdir()}
    hub.commit("you/evil", files)
    with pytest.raises(RequestError, match="does not choose which code runs"):
        Teacher.read("hf:you/evil")


def test_push_refuses_other_repository(store, hub, capsys):
    hub.commit("me/holiday", {"photos.zip": b"1", "README.md": b""})
    assert main(["push", str(store), "hf:me/holiday"]) == 2
    assert "holds other files (photos.zip)" in capsys.readouterr().err
    assert main(["push", str(store), "hf:me/new", "--dry-run"]) == 0
    assert "rows.csv" in capsys.readouterr().out and "me/new" not in hub.commits


@pytest.mark.parametrize("text", ["hf:me", "hf:/me/x", "hf:me/x@a/b/c", "hf:me/../x@y/.."])
def test_malformed_names_are_refused(text):
    with pytest.raises(RequestError, match=r"write hf:OWNER/REPO\[@REVISION\]"):
        HubName.parse(text)


def test_missing_repository_is_one_line(hub, capsys):
    assert main(["leaderboard", "hf:me/nothing"]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message and "'hf:me/nothing' cannot be read" in message
