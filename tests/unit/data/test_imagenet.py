"""ImageNet with RobustBench's list of images, and Tiny ImageNet as downloaded."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace

import pytest
import torch
from PIL import Image

from robobench.data import load_dataset
from robobench.data.imagenet import _robustbench_lists
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from tests.helpers.datasets import all_images, load_error

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def imagenet(tmp_path):
    """All of RobustBench's images: one file with 5,000 names, and one with a name outside the list."""
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("robustbench is an extra")
    listed, _ = _robustbench_lists()
    Image.new("RGB", (20, 12), (90, 7, 9)).save(tmp_path / "one.png")
    for name in [*listed, "n01440764/ILSVRC2012_val_99999999.JPEG"]:
        file = tmp_path / "val" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "one.png", file)
    return tmp_path


def test_imagenet_is_robustbench_list(imagenet):
    from timm import data as timm_data

    listed, classes = _robustbench_lists()
    assert list(classes) == timm_data.ImageNetInfo("imagenet-1k").label_names()  # type: ignore[attr-defined]
    data = load_dataset("imagenet", data_dir=imagenet, need_train=False)
    assert (len(data.test), data.num_classes, data.resolution) == (5000, 1000, 224)
    assert sorted(data.test.labels.tolist()) == sorted(classes[name.split("/")[0]] for name in listed)
    assert data.test.images(torch.arange(2)).shape == (2, 3, 224, 224)
    assert "87.5 % of the shorter side" in data.notes[0]
    missing = imagenet / "val" / listed[7]
    missing.unlink()
    message = load_error("imagenet", data_dir=imagenet, need_train=False)
    assert f"lacks 1 of RobustBench's 5000 images, such as '{listed[7]}'" in message


def test_missing_imagenet_names_next_step(tmp_path):
    assert "register at image-net.org" in load_error("imagenet", data_dir=tmp_path)


@pytest.fixture
def tiny(tmp_path):
    """Tiny ImageNet with one image for each of its 200 classes; the label is the red value."""
    folder, rows = tmp_path / "tiny-imagenet-200", []
    (folder / "val" / "images").mkdir(parents=True)
    for label in range(200):
        image = Image.new("RGB", (64, 64), (label, 7, 9))
        (folder / "train" / f"n{label:08d}" / "images").mkdir(parents=True)
        image.save(folder / "train" / f"n{label:08d}" / "images" / "0.png")
        image.save(folder / "val" / "images" / f"val_{label}.png")
        rows.append(f"val_{label}.png\tn{label:08d}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


@pytest.mark.parametrize("place", [".", "tiny-imagenet-200"])
def test_tiny_imagenet_is_found(tiny, place):
    data = load_dataset("tiny-imagenet", data_dir=tiny / place)
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (200, 200, 200, 64)
    assert torch.equal((all_images(data.test)[:, 0, 0, 0] * 255).round().long(), data.test.labels)


def test_tiny_imagenet_of_fewer_classes_is_refused(tiny):
    folder = tiny / "tiny-imagenet-200"
    (folder / "train" / "n00000199" / "images" / "0.png").unlink()
    for path in ("images", "."):
        (folder / "train" / "n00000199" / path).rmdir()
    assert "has the class 'n00000199', which" in load_error("tiny-imagenet", data_dir=tiny)
    assert "no tiny-imagenet in" in load_error("tiny-imagenet", data_dir=folder / "val", download=False)


@pytest.mark.parametrize(
    ("name", "side", "stem"), [("tiny-imagenet", 64, "cifar"), ("stl10", 96, "imagenet"), ("imagenet", 224, "imagenet")]
)
def test_presets_do_not_shrink_images(tmp_path, name, side, stem):
    """The preset of CIFAR, which has 32 px, keeps the data set's own size."""
    request = ExperimentConfig(
        defenses=("standard",), dataset=name, data_dir=tmp_path, model="resnet18", attacks=(), out=tmp_path / "out"
    )
    plan = make_plan(request, dry=True)
    assert (plan.dataset.resolution, plan.models[0].spec.image_size, plan.models[0].spec.stem) == (side, side, stem)
    small = make_plan(replace(request, image_size=32), dry=True)
    assert (small.dataset.resolution, small.models[0].spec.image_size, small.models[0].spec.stem) == (32, 32, "cifar")


def test_flipping_digits_is_noted(tmp_path):
    request = ExperimentConfig(defenses=("standard",), dataset="svhn", data_dir=tmp_path, out=tmp_path / "out")
    flips = "standard.augment=crop-flip mirrors images of 'svhn'"
    assert any(note.startswith(flips) for note in make_plan(request, dry=True).notes)
    crop = replace(request, sets=("standard.augment=crop",))
    assert not any("mirrors" in note for note in make_plan(crop, dry=True).notes)
