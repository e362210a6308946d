"""Data sets of the Hugging Face Hub, read by the package datasets from local folders."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import robobench
from robobench.data import load_dataset
from tests.helpers.datasets import all_images, load_error

datasets = pytest.importorskip("datasets", reason="an extra")
pytestmark = pytest.mark.usefixtures("cache")
NAMES = ["cat", "dog", "elk"]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))


def png(red, size):
    buffer = io.BytesIO()
    Image.new("RGB", size, (red, 7, 9)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write(folder, columns=("image", "label"), size=(8, 8), **splits):
    """Write splits as parquet files; the red value of an image is 10 times its label, 200 without a label."""
    folder.mkdir(parents=True, exist_ok=True)
    label_type = datasets.ClassLabel(names=NAMES)
    features = datasets.Features({columns[0]: datasets.Image(), columns[1]: label_type})
    for split, labels in splits.items():
        cells = [png(10 * label if label >= 0 else 200, size) for label in labels]
        table = datasets.Dataset.from_dict({columns[0]: cells, columns[1]: labels}, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def test_hub_data_give_exact_pixels(tmp_path):
    name = write(tmp_path / "own", train=[0, 1, 2] * 4, test=[2, 1, 0, 0])
    data = load_dataset(name)
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (12, 4, 3, 8)
    assert data.class_names == tuple(NAMES) and data.test.is_uint8_exact and data.notes == ()
    for split in (data.train, data.test):
        assert torch.equal((all_images(split)[:, 0, 0, 0] * 255).round().long(), 10 * split.labels)
    assert load_dataset(name).digest == data.digest
    assert load_dataset(write(tmp_path / "own", test=[2, 1, 0, 1])).test.digest != data.test.digest


def test_hub_split_without_labels_is_not_used(tmp_path):
    name = write(tmp_path / "own", ("img", "fine_label"), test=[-1, -1], validation=[1, 0], train=[0, 1])
    data = load_dataset(name)
    assert sorted(data.test.labels.tolist()) == [0, 1]
    assert data.notes == (f"'{name}': the split 'validation' is used as test split, because 'test' has no labels",)
    assert "no labels in its split 'test'" in load_error(write(tmp_path / "none", test=[-1], train=[0]))
    assert "has the splits train; robobench needs a split called test" in load_error(write(tmp_path / "t", train=[0]))
    assert "needs a split called train" in load_error(write(tmp_path / "e", test=[0]))


def test_hub_data_that_do_not_fit_are_refused(tmp_path):
    assert "add --image-size 6" in load_error(write(tmp_path / "a", size=(8, 6), test=[0, 1]), need_train=False)
    name = write(tmp_path / "b", ("image", "kind"), test=[0, 1])
    assert load_dataset(name, need_train=False).num_classes == 3  # the only column of classes
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"text": "no image", "label": 0}) + "\n")
    assert "has 0 columns of images among text, label" in load_error(f"hf:{folder}", need_train=False)
    (folder / "test.jsonl").write_text(json.dumps({"text": "no image", "label": "cat"}) + "\n")
    assert "labels must be whole numbers in a column called label" in load_error(f"hf:{folder}", need_train=False)


def test_missing_hub_data_offline_names_next_step():
    message = load_error("hf:nobody/nothing", download=False)
    assert "data set 'hf:nobody/nothing' cannot be loaded (" in message
    assert message.endswith("write hf:OWNER/NAME, hf:OWNER/NAME:CONFIG, or hf:FOLDER for a folder of parquet files")
    assert load_error("hf:") == "data set 'hf:' has no name; write hf:OWNER/NAME"


def test_run_on_hub_data(tmp_path):
    name = write(tmp_path / "own", train=[0, 1, 2] * 8, test=[2, 1, 0, 0])
    flags = {"model": "cnn", "epochs": 1, "attacks": "fgsm", "protocol": "white-box", "threads": 1}
    rows = robobench.run("standard", dataset=name, out=tmp_path / "runs", sets=("run.baseline_control=false",), **flags)
    assert {(row["dataset"], row["resolution"], row["examples"], row["status"]) for _, row in rows.iterrows()} == {
        (name, 8, 4, "ok")
    }
    assert np.isfinite(rows["clean_accuracy"]).all()
