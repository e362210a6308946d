"""Folders of corrupted images as published, and generated corruptions."""

import numpy as np
import pytest
import torch
from PIL import Image

from robobench.data.corruptions import KINDS, find_corruptions, generate_corruptions, open_corruptions
from robobench.data.split import Split
from robobench.errors import RequestError


def shade(kind, severity, image):
    """Return a gray level that names one image."""
    return 100 * ("fog", "snow").index(kind) + 10 * severity + image


def write_cifar(folder, labels=(0, 1, 2)):
    for kind in ("fog", "snow"):
        levels = [shade(kind, severity, image) for severity in range(1, 6) for image in range(3)]
        np.save(folder / f"{kind}.npy", np.uint8(levels)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8))
    np.save(folder / "labels.npy", np.tile(np.array(labels), 5))


def write_imagenet(folder):
    """As its archives unpack: a category, a corruption, a severity, a class."""
    for kind in ("fog", "snow"):
        for severity in range(1, 6):
            for image in range(3):
                place = folder / "weather" / kind / str(severity) / f"n{image:08}"
                place.mkdir(parents=True)
                Image.new("RGB", (4, 4), (shade(kind, severity, image),) * 3).save(place / "val_1.png")


@pytest.mark.parametrize("write", [write_cifar, write_imagenet])
def test_published_layouts_give_same_images(tmp_path, write):
    write(tmp_path)
    parts = list(open_corruptions(find_corruptions(tmp_path, ("snow", "fog"))))
    assert [(p.kind, p.severity) for p in parts] == [(k, s) for k in ("snow", "fog") for s in range(1, 6)]
    for part in parts:
        index = torch.arange(3)
        levels = (part.images.images(index)[:, 0, 0, 0] * 255).round().int().tolist()
        assert levels == [shade(part.kind, part.severity, label) for label in part.images.labels.tolist()]


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match="lacks gaussian_noise, shot_noise, impulse_noise, "):
        find_corruptions(tmp_path)
    with pytest.raises(RequestError, match="did you mean 'fog'"):
        find_corruptions(tmp_path, ("fogg",))
    with pytest.raises(RequestError, match="no folder"):
        find_corruptions(tmp_path / "no")
    write_cifar(tmp_path)
    np.save(tmp_path / "labels.npy", np.arange(15) % 4)
    with pytest.raises(RequestError, match="does not repeat the same labels"):
        list(open_corruptions(find_corruptions(tmp_path, ("fog",))))


def test_generated_images_depend_on_position_only():
    """The state of numpy's generator and the batch do not matter, and are not changed."""
    pytest.importorskip("imagecorruptions")
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = Split(lambda index: pixels[index], torch.arange(3), "x", is_uint8_exact=True)
    kinds = tuple(kind for kind in KINDS if kind != "glass_blur")  # which compiles for seconds
    for number, part in enumerate(generate_corruptions(data, kinds=kinds)):
        if part.severity not in (1, 5):
            continue
        np.random.seed(number)
        state = np.random.get_state()[1].copy()
        together = part.images.images(torch.arange(3))
        assert (np.random.get_state()[1] == state).all()
        np.random.seed(number + 99)
        assert torch.equal(together[2:], part.images.images(torch.tensor([2]))), part.kind
        assert not torch.equal(together, pixels / 255), part.kind
