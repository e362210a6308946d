"""Data sets in .npz files: values, order, digest, wrong and damaged files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robobench.data import load_dataset
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from tests.helpers.datasets import all_images, load_error

pytestmark = pytest.mark.usefixtures("cache")


def arrays(count=12, side=8, classes=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    return {"x_train": images, "y_train": labels, "x_test": images[::2], "y_test": labels[::2]}


def save(tmp_path, **changes):
    kept = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(tmp_path / "mine.npz", **kept)
    return f"npz:{tmp_path / 'mine.npz'}"


def test_uint8_images_become_multiples_of_1_255(tmp_path):
    data = load_dataset(save(tmp_path))
    expected = torch.from_numpy(arrays()["x_test"]).permute(0, 3, 1, 2) / 255
    assert torch.equal(all_images(data.test), expected)
    assert data.train.is_uint8_exact and data.train.labels.dtype == torch.int64
    assert (data.num_classes, data.resolution, len(data.test)) == (3, 8, 6)
    assert not load_dataset(save(tmp_path), resolution=16).train.is_uint8_exact


def test_training_images_are_shuffled_once(tmp_path):
    images, labels = (np.arange(300) // 2).astype(np.uint8).repeat(192).reshape(300, 8, 8, 3), np.arange(300) // 100
    name = save(tmp_path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load_dataset(name)
    for part in (data.train.first(200), data.train.last(50)):
        assert part.labels.bincount(minlength=3).min() > 5
        assert torch.equal((all_images(part)[:, 0, 0, 0] * 255).round() // 50, part.labels.float())
    assert data.train.labels.bincount().tolist() == [100, 100, 100]
    assert data.train.labels.tolist() == load_dataset(name).train.labels.tolist()
    assert data.test.labels.tolist() == labels.tolist()  # row i of transfer:FILE belongs to test image i
    for count in (150, 201):
        request = ExperimentConfig(defenses=("standard",), dataset=name, preset="quick", examples=count, out=tmp_path)
        warned = any("the first 150 show 2 of 3 classes; shuffle them" in note for note in make_plan(request).notes)
        assert warned == (count == 150)


def test_training_arrays_are_optional_without_training(tmp_path):
    name = save(tmp_path, x_train=None, y_train=None)
    assert load_dataset(name, need_train=False).train is None
    assert "lacks x_train, y_train to train; it holds x_test (6 x 8 x 8 x 3 uint8), y_test (6 int64)" in load_error(
        name
    )


def test_digest_depends_on_pixels_labels_and_shape(tmp_path):
    same = [load_dataset(save(tmp_path)).test.digest for _ in range(2)]
    assert same[0] == same[1] and len(same[0]) == 16
    pixel, labels = arrays()["x_test"], arrays()["y_test"]
    pixel[3, 2, 1, 0] ^= 1
    others = [{"x_test": pixel}, {"y_test": labels[::-1]}, {"x_test": arrays()["x_test"].transpose(0, 2, 1, 3)}]
    digests = {load_dataset(save(tmp_path, **change)).test.digest for change in others}
    assert len(digests | set(same)) == 4


NAN = np.full((6, 8, 8, 3), 0.5)
NAN[0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": np.full((6, 8, 8, 3), 1.5)}, "float images must lie in [0, 1], got [1.5, 1.5]"),
        ({"x_test": -NAN}, "float images must lie in [0, 1], got [nan, nan]"),
        ({"x_test": np.full((6, 8, 8, 3), 256)}, "must be uint8 in 0 to 255 or float in [0, 1], got int64"),
        ({"x_test": np.zeros((6, 4, 8, 8), np.uint8)}, "or gray N x H x W, got 6 x 4 x 8 x 8"),
        ({"x_test": np.zeros((6, 8), np.uint8)}, "or gray N x H x W, got 6 x 8"),
        ({"x_test": np.zeros((6, 8, 4, 3), np.uint8), "x_train": None}, "images of 8x4; they must be square"),
        ({"x_test": np.zeros((6, 4, 4, 3), np.uint8)}, "training and test images differ in size"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, "test split is empty"),
        ({"y_test": np.zeros(5, int)}, "6 images need as many labels, got shape (5,)"),
        ({"y_test": np.eye(6) / 2}, "labels of shape (6, 6) are not one-hot"),
        ({"y_test": np.full(6, 0.5)}, "labels must be whole numbers, got float64"),
        ({"y_test": np.array([0, 1, -1, 0, 1, 2])}, "labels must be 0 or more, got -1 to 2"),
        ({"y_test": None}, "lacks y_test"),
        ({"x_test": np.array([{}] * 6, dtype=object)}, "cannot read"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, changes, message):
    assert message in load_error(save(tmp_path, **changes), need_train=changes.get("x_train", 1) is not None)


def test_float_images_are_not_changed(tmp_path):
    images = np.random.default_rng(1).random((6, 8, 8, 3))
    data = load_dataset(save(tmp_path, x_test=images), need_train=False)
    assert torch.equal(all_images(data.test), torch.from_numpy(images).float().permute(0, 3, 1, 2))
    assert not data.test.is_uint8_exact


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_flipped_byte_is_refused(tmp_path, where):
    file = tmp_path / "mine.npz"
    save(tmp_path, x_train=None, y_train=None, x_test=np.zeros((6, 64, 64, 3), np.uint8))
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    file.write_bytes(content)
    assert f"cannot read '{file}'" in load_error(f"npz:{file}", need_train=False)


def test_truncated_or_missing_file_is_refused(tmp_path):
    file = tmp_path / "mine.npz"
    save(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    assert f"cannot read '{file}'" in load_error(f"npz:{file}")
    file.unlink()
    assert load_error(f"npz:{file}") == f"no file '{file}' for data set 'npz:{file}'; write npz:FILE"
