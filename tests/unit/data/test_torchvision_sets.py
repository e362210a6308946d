"""SVHN, STL-10 and GTSRB, written in torchvision's layouts: pixels, labels, sizes, damage."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from robobench.data import load_dataset
from tests.helpers.datasets import all_images, load_error

pytestmark = pytest.mark.usefixtures("cache")
RNG = np.random.default_rng(0)


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """House numbers in MATLAB files (H, W, 3, N), in which 10 is the label of the digit 0."""
    pixels, sums = {}, {}
    for part, count in (("train", 12), ("test", 10)):
        pixels[part] = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        file = tmp_path / f"{part}_32x32.mat"
        savemat(file, {"X": pixels[part].transpose(1, 2, 3, 0), "y": (np.arange(count) % 10 + 1)[:, None]})
        sums[part] = ["", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    return tmp_path, pixels


def test_svhn_has_digit_zero_as_label_zero(svhn):
    folder, pixels = svhn
    data = load_dataset("svhn", data_dir=folder)
    for split, part in ((data.train, "train"), (data.test, "test")):
        assert torch.equal(all_images(split), torch.from_numpy(pixels[part]).permute(0, 3, 1, 2) / 255)
    assert data.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert (data.num_classes, data.resolution, data.test.is_uint8_exact) == (10, 32, True)


def test_svhn_with_wrong_checksum_is_refused(svhn):
    folder, _ = svhn
    (folder / "test_32x32.mat").write_bytes(b"half a download")
    assert "test_32x32.mat' of svhn is damaged or incomplete" in load_error("svhn", data_dir=folder)
    assert "no stl10 in" in load_error("stl10", data_dir=folder, download=False)


def test_stl10_columns_are_stored_first(tmp_path, monkeypatch):
    """Its files hold images as (3, width, height), and labels from 1."""
    folder = tmp_path / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = RNG.integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes(np.arange(1, 11, dtype=np.uint8).tobytes())
    for part in ("train", "test"):
        files = [[file.name, md5(file)] for file in sorted(folder.glob(f"{part}_*"))]
        monkeypatch.setattr(datasets.STL10, f"{part}_list", files)
    data = load_dataset("stl10", data_dir=tmp_path)
    assert torch.equal(all_images(data.test), torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert data.train.labels.tolist() == list(range(10)) and data.resolution == 96


@pytest.fixture
def gtsrb(tmp_path):
    """Signs of different sizes: the label is the red value, in training and test folder."""
    root = tmp_path / "gtsrb" / "GTSRB"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        file = root / "Training" / f"{label:05d}" / "00000_00000.ppm"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (30 + label, 29), (label, 7, 9)).save(file)
    for number in range(5):
        file = root / "Final_Test" / "Images" / f"{number:05d}.ppm"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 41), (40 - number, 7, 9)).save(file)
        rows.append(f"{file.name};40;41;0;0;40;41;{40 - number}")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(("resolution", "side"), [(None, 32), (48, 48)])
def test_gtsrb_is_resized(gtsrb, resolution, side):
    data = load_dataset("gtsrb", data_dir=gtsrb, resolution=resolution)
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (43, 5, 43, side)
    for split in (data.train, data.test):
        images = all_images(split)
        assert images.shape[1:] == (3, side, side)
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), split.labels)
    assert f"resized to {side} px" in data.notes[0]


def test_gtsrb_without_an_image_is_refused(gtsrb):
    (gtsrb / "gtsrb/GTSRB/Final_Test/Images/00003.ppm").unlink()
    assert "cannot read the image" in load_error("gtsrb", data_dir=gtsrb)
    (gtsrb / "gtsrb/GT-final_test.csv").unlink()
    assert "of gtsrb is damaged or incomplete" in load_error("gtsrb", data_dir=gtsrb)
