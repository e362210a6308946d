"""Image folders: streaming, crop, digest, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from robobench.data import load_dataset
from robobench.errors import RequestError
from tests.helpers.datasets import all_images, load_error

pytestmark = pytest.mark.usefixtures("cache")


def write_folder(root, parts=("train", "test"), names=("cat", "dog", "elk"), size=(20, 12)):
    for part in parts:
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                color = (80 * label, 40, 10 * number)
                Image.new("RGB", size, color).save(root / part / name / f"{number}.png")
    return f"imagefolder:{root}"


def test_image_folder_is_resized_and_cropped(tmp_path):
    data = load_dataset(write_folder(tmp_path), resolution=16)
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (12, 12, 3, 16)
    images = all_images(data.train)
    assert images.shape == (12, 3, 16, 16) and data.train.is_uint8_exact
    assert torch.equal(images[:, 0, 0, 0], data.train.labels * 80 / 255)  # each image has its label
    assert set(data.train.labels[:8].tolist()) == {0, 1, 2}
    assert "20x12" in load_error(f"imagefolder:{tmp_path}")  # not square: no size is guessed


def test_crop_is_central(tmp_path):
    name = write_folder(tmp_path, parts=("val",), names=("a",))
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:, 4:16] = 255
    for file in (tmp_path / "val" / "a").iterdir():
        Image.fromarray(pixels).save(file)
    images = all_images(load_dataset(name, resolution=12, need_train=False).test)
    assert images.min() == 1


def test_train_folder_is_optional_without_training(tmp_path):
    name = write_folder(tmp_path, parts=("val",))
    assert load_dataset(name, need_train=False, resolution=8).num_classes == 3
    assert "training needs PATH/train/<class>/*" in load_error(name)


def test_digest_depends_on_every_file(tmp_path):
    name = write_folder(tmp_path)
    before = load_dataset(name, resolution=8)
    assert load_dataset(name, resolution=8).digest == before.digest != load_dataset(name, resolution=9).digest
    Image.new("RGB", (20, 12), (1, 2, 3)).save(tmp_path / "test" / "elk" / "3.png")
    after = load_dataset(name, resolution=8)
    assert after.test.digest != before.test.digest and after.train.digest == before.train.digest


def test_hidden_files_are_ignored(tmp_path):
    name = write_folder(tmp_path)
    before = load_dataset(name, resolution=8).digest
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"Mac OS X")  # macOS writes such files into archives
    assert load_dataset(name, resolution=8).digest == before


def test_wrong_folders_are_refused(tmp_path):
    assert "no folder" in load_error(f"imagefolder:{tmp_path / 'nowhere'}")
    name = write_folder(tmp_path / "a", parts=("train",))
    (tmp_path / "a" / "test" / "cat").mkdir(parents=True)
    assert "no images in" in load_error(name)
    (tmp_path / "a" / "test" / "fox").mkdir()
    assert "has the class 'fox', which" in load_error(name)


def test_damaged_image_raises_when_read(tmp_path):
    data = load_dataset(write_folder(tmp_path), resolution=8)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RequestError, match=r"cannot read the image .* replace or remove it"):
        all_images(data.test)
