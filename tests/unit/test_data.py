"""Data sets: what is delivered, what is refused, and that nothing is ever swapped or read half."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from robobench.core.paths import data_root
from robobench.data import DATASETS, load_dataset, placeholder_dataset
from robobench.data.info import radii
from robobench.data.split import require_classes
from robobench.errors import RequestError
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from tests.helpers.datasets import everything, refusal

pytestmark = pytest.mark.usefixtures("cache")

# --- the table ----------------------------------------------------------------------------------


def test_radii_belong_to_the_data_set_and_strangers_get_those_of_cifar():
    assert radii("digits", "Linf") == ((0.05, 0.1), 0.1)
    assert radii("digits", "L2") == ((1.0, 2.0), 2.0)
    for name in ("cifar10", "cifar100", "npz:mine.npz"):
        assert radii(name, "Linf") == ((8 / 255, 16 / 255), 8 / 255)
        assert radii(name, "L2") == ((0.5, 1.0), 0.5)


def test_names_and_radii_are_there_without_torch():
    code = "import sys; from robobench.data import radii; radii('digits', 'L2'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(len(summary.splitlines()) == 1 for summary in DATASETS.values())


def test_an_unknown_name_gets_a_suggestion():
    assert "unknown data set 'cifar'; did you mean 'cifar10'? known: cifar10, cifar100, digits" in refusal("cifar")
    assert refusal("npz:") == "data set 'npz:' names no place; write npz:FILE"
    assert refusal("imagefolder:").endswith("write imagefolder:PATH")
    assert "resolution must be 1 or more, got 0" in refusal("digits", resolution=0)


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch, cache):
    if sys.platform == "linux":
        assert data_root() == cache / "robobench" / "data"
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path / "named"))
    assert data_root() == tmp_path / "named"
    assert data_root(tmp_path) == tmp_path
    with pytest.raises(RequestError, match="is no folder; create it"):
        data_root(tmp_path / "nowhere")


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_enlarged_by_four_with_three_equal_channels():
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (1437, 360, 10, 32)
    images = torch.cat([everything(data.train), everything(data.test)])
    assert images.shape == (1797, 3, 32, 32) and images.dtype == torch.float32
    small = images[:, :, ::4, ::4]
    assert torch.equal(small.repeat_interleave(4, 2).repeat_interleave(4, 3), images)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    labels = torch.cat([data.train.labels, data.test.labels])
    bunch = load_digits()
    ours = sorted(zip((small[:, 0] * 16).flatten(1).int().tolist(), labels.tolist(), strict=True))
    theirs = sorted(zip(bunch.data.astype(int).tolist(), bunch.target.tolist(), strict=True))
    assert ours == theirs  # every scan once, with its own label
    assert not data.train.is_uint8_exact  # sixteenths are not 255ths


def test_the_digits_split_is_fixed_and_every_beginning_of_it_is_balanced():
    data = load_dataset("digits")
    assert data.digest == load_dataset("digits").digest
    assert data.test.labels[:10].tolist() == load_dataset("digits", need_train=False).test.labels[:10].tolist()
    for count in (50, 200, 1437):
        per_class = data.train.first(count).labels.bincount(minlength=10)
        assert per_class.min() >= count // 10 - 4 and per_class.max() <= count // 10 + 4
    assert data.test.labels.bincount().min() >= 34


def test_a_part_of_a_split_is_its_first_images_under_another_digest():
    data = load_dataset("digits")
    part = data.train.first(100)
    assert len(part) == 100 and torch.equal(everything(part), data.train.images(torch.arange(100)))
    assert part.digest != data.train.digest and part.digest == load_dataset("digits").train.first(100).digest
    assert data.train.first(5000) is data.train and len(data.train) == 1437


def test_images_come_in_the_order_asked():
    test = load_dataset("digits").test
    assert torch.equal(test.images(torch.tensor([5, 2, 5])), everything(test)[[5, 2, 5]])


def test_another_resolution_is_delivered_resized_inside_the_box_under_another_digest():
    small, large = load_dataset("digits", need_train=False), load_dataset("digits", resolution=48, need_train=False)
    images = everything(large.test)
    assert large.resolution == 48 and images.shape == (360, 3, 48, 48)
    assert images.min() >= 0 and images.max() <= 1
    assert images.mean() == pytest.approx(everything(small.test).mean().item(), abs=0.01)
    assert large.digest != small.digest
    assert load_dataset("digits", resolution=32, need_train=False).digest == small.digest


def test_a_training_split_of_one_class_is_refused_where_asked():
    train = load_dataset("digits").train
    require_classes(train, 2)
    with pytest.raises(RequestError, match="has 1 class in 1 images, training needs 2 or more"):
        require_classes(train.first(1), 2)


def test_a_blank_has_the_shape_of_the_data_set_it_stands_for():
    stand_in = placeholder_dataset("cifar100", 64)
    assert (len(stand_in.train), len(stand_in.test), stand_in.num_classes) == (50_000, 10_000, 100)
    assert stand_in.test.images(torch.arange(3)).shape == (3, 3, 64, 64)
    assert placeholder_dataset("npz:mine.npz") is None


# --- npz ----------------------------------------------------------------------------------------


def arrays(count=12, side=8, classes=3):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = np.arange(count) % classes
    return {"x_train": images, "y_train": labels, "x_test": images[::2], "y_test": labels[::2]}


def save(tmp_path, **changes):
    kept = {key: value for key, value in {**arrays(), **changes}.items() if value is not None}
    np.savez(tmp_path / "mine.npz", **kept)
    return f"npz:{tmp_path / 'mine.npz'}"


def test_npz_images_are_delivered_as_255ths(tmp_path):
    data = load_dataset(save(tmp_path))
    expected = torch.from_numpy(arrays()["x_test"]).permute(0, 3, 1, 2) / 255
    assert torch.equal(everything(data.test), expected)
    assert data.train.is_uint8_exact and data.train.labels.dtype == torch.int64
    assert (data.num_classes, data.resolution, len(data.test)) == (3, 8, 6)
    assert not load_dataset(save(tmp_path), resolution=16).train.is_uint8_exact


def test_training_images_of_a_file_written_class_by_class_are_shuffled_once(tmp_path):
    images, labels = (np.arange(300) // 2).astype(np.uint8).repeat(192).reshape(300, 8, 8, 3), np.arange(300) // 100
    name = save(tmp_path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    data = load_dataset(name)
    for part in (data.train.first(200), data.train.last(50)):
        assert part.labels.bincount(minlength=3).min() > 5
        assert torch.equal((everything(part)[:, 0, 0, 0] * 255).round() // 50, part.labels.float())
    assert data.train.labels.bincount().tolist() == [100, 100, 100]
    assert data.train.labels.tolist() == load_dataset(name).train.labels.tolist()
    assert data.test.labels.tolist() == labels.tolist()  # row i of transfer:FILE belongs to test image i
    for count in (150, 201):
        request = ExperimentConfig(defenses=("standard",), dataset=name, preset="quick", examples=count, out=tmp_path)
        said = any("the first 150 show 2 of 3 classes; shuffle them" in note for note in make_plan(request).notes)
        assert said == (count == 150)


def test_npz_without_training_arrays_serves_testing_alone(tmp_path):
    name = save(tmp_path, x_train=None, y_train=None)
    assert load_dataset(name, need_train=False).train is None
    assert "lacks x_train, y_train to train; it needs x_test, y_test" in refusal(name)


def test_the_digest_sees_pixels_labels_and_shape(tmp_path):
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
        ({"x_test": np.zeros((6, 8, 8, 3), np.int64)}, "must be uint8 in 0 to 255 or float in [0, 1], got int64"),
        ({"x_test": np.zeros((6, 3, 8, 8), np.uint8)}, "images must be N x H x W x 3, got 6 x 3 x 8 x 8"),
        ({"x_test": np.zeros((6, 8, 8), np.uint8)}, "images must be N x H x W x 3, got 6 x 8 x 8"),
        ({"x_test": np.zeros((6, 8, 4, 3), np.uint8), "x_train": None}, "images of 8x4; they must be square"),
        ({"x_test": np.zeros((6, 4, 4, 3), np.uint8)}, "training and test images differ in size"),
        ({"x_test": np.zeros((0, 8, 8, 3), np.uint8), "y_test": np.zeros(0, int)}, "test split is empty"),
        ({"y_test": np.zeros(5, int)}, "6 images need as many labels, got shape (5,)"),
        ({"y_test": np.eye(6)}, "6 images need as many labels, got shape (6, 6)"),
        ({"y_test": np.zeros(6)}, "labels must be whole numbers, got float64"),
        ({"y_test": np.array([0, 1, -1, 0, 1, 2])}, "labels must be 0 or more, got -1 to 2"),
        ({"y_test": None}, "lacks y_test"),
        ({"x_test": np.array([{}] * 6, dtype=object)}, "cannot read"),
    ],
)
def test_arrays_that_are_no_images_with_labels_are_refused(tmp_path, changes, message):
    assert message in refusal(save(tmp_path, **changes), need_train=changes.get("x_train", 1) is not None)


def test_float_arrays_inside_the_box_are_taken_as_they_are_and_leave_the_grid(tmp_path):
    images = np.random.default_rng(1).random((6, 8, 8, 3))
    data = load_dataset(save(tmp_path, x_test=images), need_train=False)
    assert torch.equal(everything(data.test), torch.from_numpy(images).float().permute(0, 3, 1, 2))
    assert not data.test.is_uint8_exact


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_flipped_bytes_in_an_npz_are_noticed(tmp_path, where):
    file = tmp_path / "mine.npz"
    save(tmp_path, x_train=None, y_train=None, x_test=np.zeros((6, 64, 64, 3), np.uint8))
    content = bytearray(file.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    file.write_bytes(content)
    assert f"cannot read '{file}'" in refusal(f"npz:{file}", need_train=False)


def test_a_truncated_or_missing_npz_is_refused(tmp_path):
    file = tmp_path / "mine.npz"
    save(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    assert f"cannot read '{file}'" in refusal(f"npz:{file}")
    file.unlink()
    assert refusal(f"npz:{file}") == f"no file '{file}' for data set 'npz:{file}'; write npz:FILE"


# --- image folders ------------------------------------------------------------------------------


def write_folder(root, parts=("train", "test"), names=("cat", "dog", "elk"), size=(20, 12)):
    for part in parts:
        for label, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                color = (80 * label, 40, 10 * number)
                Image.new("RGB", size, color).save(root / part / name / f"{number}.png")
    return f"imagefolder:{root}"


def test_an_image_folder_is_streamed_resized_and_cropped(tmp_path):
    data = load_dataset(write_folder(tmp_path), resolution=16)
    assert (len(data.train), len(data.test), data.num_classes, data.resolution) == (12, 12, 3, 16)
    images = everything(data.train)
    assert images.shape == (12, 3, 16, 16) and data.train.is_uint8_exact
    assert torch.equal(images[:, 0, 0, 0], data.train.labels * 80 / 255)  # each picture beside its own label
    assert set(data.train.labels[:8].tolist()) == {0, 1, 2}
    assert load_dataset(f"imagefolder:{tmp_path}").resolution == 224


def test_the_crop_is_the_center(tmp_path):
    name = write_folder(tmp_path, parts=("val",), names=("a",))
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:, 4:16] = 255
    for file in (tmp_path / "val" / "a").iterdir():
        Image.fromarray(pixels).save(file)
    images = everything(load_dataset(name, resolution=12, need_train=False).test)
    assert images.min() == 1


def test_testing_alone_needs_no_train_folder(tmp_path):
    name = write_folder(tmp_path, parts=("val",))
    assert load_dataset(name, need_train=False, resolution=8).num_classes == 3
    assert "training needs PATH/train/<class>/*" in refusal(name)


def test_the_digest_of_a_folder_sees_every_file(tmp_path):
    name = write_folder(tmp_path)
    before = load_dataset(name, resolution=8)
    assert load_dataset(name, resolution=8).digest == before.digest != load_dataset(name, resolution=9).digest
    Image.new("RGB", (20, 12), (1, 2, 3)).save(tmp_path / "test" / "elk" / "3.png")
    after = load_dataset(name, resolution=8)
    assert after.test.digest != before.test.digest and after.train.digest == before.train.digest


def test_hidden_files_beside_the_images_are_no_images(tmp_path):
    name = write_folder(tmp_path)
    before = load_dataset(name, resolution=8).digest
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"Mac OS X")  # as macOS writes them into archives
    assert load_dataset(name, resolution=8).digest == before


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    assert "no folder" in refusal(f"imagefolder:{tmp_path / 'nowhere'}")
    name = write_folder(tmp_path / "a", parts=("train",))
    (tmp_path / "a" / "test" / "cat").mkdir(parents=True)
    assert "no images in" in refusal(name)
    (tmp_path / "a" / "test" / "fox").mkdir()
    assert "has the class 'fox', which" in refusal(name)


def test_a_torn_picture_is_named_when_it_is_read(tmp_path):
    data = load_dataset(write_folder(tmp_path), resolution=8)
    for file in (tmp_path / "test").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RequestError, match=r"cannot read the image .* replace or remove it"):
        everything(data.test)


def test_the_digits_are_scikit_learn_s_pixel_for_pixel():
    from sklearn.datasets import load_digits

    from robobench.data.digits import _scans

    pixels, labels = _scans()
    bunch = load_digits()
    assert (pixels == bunch.images).all() and (labels == bunch.target).all()
