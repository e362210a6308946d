"""Extra training images: formats, errors, and memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robobench.data.extra import load_extra
from robobench.errors import RequestError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


def load(path, classes=3, resolution=8):
    return load_extra(path, num_classes=classes, resolution=resolution)


@pytest.fixture
def archive(tmp_path):
    np.savez(tmp_path / "extra.npz", label=LABELS, image=IMAGES)
    return tmp_path / "extra.npz"


def test_archive_and_folder_give_same_images(archive, tmp_path):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    np.save(folder / "image.npy", IMAGES)
    np.save(folder / "label.npy", LABELS)
    expected = torch.from_numpy(IMAGES[[5, 0]].transpose(0, 3, 1, 2)) / 255
    for split in (load(archive), load(folder)):
        assert torch.equal(split.images(torch.tensor([5, 0])), expected)
        assert split.labels.tolist() == LABELS.tolist() and split.is_uint8_exact
    assert load(archive, resolution=4).images(torch.tensor([0])).shape == (1, 3, 4, 4)


def test_images_are_read_when_needed(archive):
    split = load(archive)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(IMAGES[3].tobytes(), bytes(192)))
    assert split.images(torch.tensor([3])).max() == 0 and split.images(torch.tensor([2])).max() > 0


def test_digest_is_kept_until_file_changes(archive, tmp_path):
    digest, kept = load(archive).digest, tmp_path / ".extra.npz.digest.json"
    stored = json.loads(kept.read_text())
    kept.write_text(json.dumps({**stored, "sha256": "f" * 64}))
    assert load(archive).digest == "f" * 16  # not computed again
    np.savez(archive, label=LABELS, image=255 - IMAGES)
    assert load(archive).digest not in ("f" * 16, digest)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, "cannot be read"),
        ({"image": IMAGES / 255, "label": LABELS}, "image is float64"),
        ({"image": IMAGES.transpose(0, 3, 1, 2).copy(), "label": LABELS}, r"shape \(6, 3, 8, 8\)"),
        ({"image": IMAGES, "label": LABELS[:5]}, "for 6 images"),
        ({"image": IMAGES, "label": LABELS + 1}, "labels must be 0 to 2, got 1 to 3"),
        ({"image": IMAGES.astype(object), "label": LABELS}, "not a plain array"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "extra.npz", **arrays)
    with pytest.raises(RequestError, match=message):
        load(tmp_path / "extra.npz")


def test_wrong_files_are_refused(archive, tmp_path):
    np.savez_compressed(tmp_path / "small.npz", image=IMAGES, label=LABELS)
    (tmp_path / "text.npz").write_text("no archive")
    for name, message in (("small.npz", "compressed; unpack"), ("text.npz", "cannot be read"), ("none.npz", "no file")):
        with pytest.raises(RequestError, match=message):
            load(tmp_path / name)
    archive.write_bytes(archive.read_bytes()[:400])
    with pytest.raises(RequestError, match="cannot be read"):
        load(archive)
