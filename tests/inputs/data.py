"""Data sets of one's own: arrays, image folders, Hugging Face files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from robobench.data import load_dataset
from robobench.data.info import Resize
from tests.helpers.datasets import all_images
from tests.inputs.case import Case

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
PIXELS[0, 0, 0] = (0, 255, 128)
LABELS = np.array([0, 1, 2, 0, 1, 2])
UNIT = PIXELS / 255
GRAY = PIXELS[..., 0]


# --- arrays -------------------------------------------------------------------------------------


def check(data, pixels=PIXELS, labels=LABELS, atol=1e-7):
    """Assert the images and labels of a data set; return its notes."""
    expected = torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(all_images(data.test), expected.float(), rtol=0, atol=atol)
    assert data.test.labels.tolist() == list(labels)
    return list(data.notes)


def npz(given, says="", *, refused=False, pixels=PIXELS, need_train=False, resolution=None, atol=1e-7, **arrays):
    def run(folder):
        np.savez(folder / "mine.npz", **arrays)
        name = f"npz:{folder / 'mine.npz'}"
        return check(load_dataset(name, need_train=need_train, resolution=resolution), pixels, atol=atol)

    return Case("Arrays", given, run, says, refused)


def files(given, name, says="", *, refused=False, pixels=PIXELS, **arrays):
    def run(folder):
        for key, value in arrays.items():
            np.save(folder / f"{key}.npy", value)
        return check(load_dataset(f"npz:{folder / name}", need_train=False), pixels)

    return Case("Arrays", given, run, says, refused)


def named(x, y):
    return {x: PIXELS, y: LABELS}


def tensors(folder, content):
    torch.save(content, folder / "mine.pt")
    return check(load_dataset(f"npz:{folder / 'mine.pt'}", need_train=False))


def zipped(folder):
    with zipfile.ZipFile(folder / "mine.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    return check(load_dataset(f"npz:{folder / 'mine.npz'}", need_train=False))


def labels_from_one(folder):
    np.savez(folder / "mine.npz", x=PIXELS, y=LABELS + 1)
    return check(load_dataset(f"npz:{folder / 'mine.npz'}", need_train=False), labels=LABELS + 1)


GRAY3 = GRAY[..., None].repeat(3, 3)
ARRAYS = [
    npz("uint8 N x H x W x 3 as x_test, y_test (Keras)", **named("x_test", "y_test")),
    npz("images, labels", **named("images", "labels")),
    npz("data, targets", **named("data", "targets")),
    npz("test_images, test_labels (MedMNIST)", **named("test_images", "test_labels")),
    npz("X_test, Y_test in capitals", **named("X_test", "Y_test")),
    npz("X, y", **named("X", "y")),
    npz("image, label", **named("image", "label")),
    npz("testx, testy", **named("testx", "testy")),
    npz("numpy.savez(file, images, labels) without names", arr_0=PIXELS, arr_1=LABELS),
    npz("x_val, y_val and no test arrays", "x_val and y_val are used", **named("x_val", "y_val")),
    npz("train and test arrays of MedMNIST's names", need_train=True,
        **named("train_images", "train_labels"), **named("test_images", "test_labels")),
    npz("float images in [0, 1]", x_test=UNIT, y_test=LABELS),
    npz("float32 images in [0, 1]", x_test=UNIT.astype(np.float32), y_test=LABELS),
    npz("float16 images in [0, 1]", atol=1e-3, x_test=UNIT.astype(np.float16), y_test=LABELS),
    npz("float images within 1e-6 outside [0, 1]", "outside [0, 1] are clipped", atol=1e-5,
        x_test=UNIT * (1 + 1e-6) - 5e-7, y_test=LABELS),
    npz("float images in 0 to 255", "are divided by 255", x_test=PIXELS.astype(np.float64), y_test=LABELS),
    npz("float images in 0 to 255, not whole", "are divided by 255", atol=1e-5,
        x_test=PIXELS * 0.999, y_test=LABELS, pixels=PIXELS * 0.999),
    npz("int64 images in 0 to 255", "are read as uint8", x_test=PIXELS.astype(np.int64), y_test=LABELS),
    npz("int16 images in 0 to 255", "are read as uint8", x_test=PIXELS.astype(np.int16), y_test=LABELS),
    npz("uint16 images above 255", "got uint16 in [0, 65535]", refused=True,
        x_test=PIXELS.astype(np.uint16) * 257, y_test=LABELS),
    npz("normalized images", "do not normalize", refused=True, x_test=(UNIT - 0.5) / 0.25, y_test=LABELS),
    npz("images in [-1, 1]", "float images must lie in [0, 1]", refused=True, x_test=UNIT * 2 - 1, y_test=LABELS),
    npz("images with NaN", "got [nan, nan]", refused=True, x_test=np.where(UNIT == 0, np.nan, UNIT), y_test=LABELS),
    npz("complex images", "got complex128", refused=True, x_test=UNIT * 1j, y_test=LABELS),
    npz("N x 3 x H x W", "N x channels x height x width", x_test=PIXELS.transpose(0, 3, 1, 2), y_test=LABELS),
    npz("float N x 3 x H x W", "N x channels", x_test=UNIT.transpose(0, 3, 1, 2), y_test=LABELS),
    npz("gray N x H x W", "three equal channels", pixels=GRAY3, x_test=GRAY, y_test=LABELS),
    npz("gray N x H x W x 1", "three equal channels", pixels=GRAY3, x_test=GRAY[..., None], y_test=LABELS),
    npz("gray N x 1 x H x W", "three equal channels", pixels=GRAY3, x_test=GRAY[:, None], y_test=LABELS),
    npz("4 channels", "got 6 x 8 x 8 x 4", refused=True, x_test=np.zeros((6, 8, 8, 4), np.uint8), y_test=LABELS),
    npz("flat images N x D", "reshape them", refused=True, x_test=PIXELS.reshape(6, -1), y_test=LABELS),
    npz("labels N x 1 (CIFAR of Keras)", x_test=PIXELS, y_test=LABELS[:, None]),
    npz("one-hot labels", "one-hot labels of 3 classes", x_test=PIXELS, y_test=np.eye(3)[LABELS]),
    npz("soft labels", "are not one-hot", refused=True, x_test=PIXELS, y_test=np.full((6, 3), 1 / 3)),
    npz("float labels that are whole", x_test=PIXELS, y_test=LABELS.astype(float)),
    npz("float labels that are not whole", "labels must be whole numbers", refused=True,
        x_test=PIXELS, y_test=LABELS + 0.5),
    npz("uint8 labels", x_test=PIXELS, y_test=LABELS.astype(np.uint8)),
    npz("text labels", "number the classes from 0", refused=True, x_test=PIXELS, y_test=np.array(list("abcabc"))),
    npz("negative labels", "got -1 to 2", refused=True, x_test=PIXELS, y_test=np.where(LABELS == 0, -1, LABELS)),
    npz("fewer labels than images", "6 images need as many labels", refused=True, x_test=PIXELS, y_test=LABELS[:5]),
    npz("images without labels", "it holds x_test (6 x 8 x 8 x 3 uint8)", refused=True, x_test=PIXELS),
    npz("one array of images and one of labels, of any name", "a and b are used", a=PIXELS, b=LABELS),
    npz("several arrays of other names", "expected x_test and y_test", refused=True, a=PIXELS, b=LABELS, c=PIXELS),
    npz("inputs, lbls", **named("inputs", "lbls")),
    npz("test_x, test_y", **named("test_x", "test_y")),
    Case("Arrays", "labels from 1 on", labels_from_one, "subtract 1"),
    npz("no training arrays, and training", "lacks x_train, y_train to train", refused=True, need_train=True,
        **named("x_test", "y_test")),
    npz("images that are not square", "add --image-size 4", refused=True, x_test=PIXELS[:, :4], y_test=LABELS),
    npz("images that are not square, --image-size 4", "the central 4x4", resolution=4, pixels=PIXELS[:, :4, 2:6],
        x_test=PIXELS[:, :4], y_test=LABELS),
    npz("uint8 images of 0 and 1", "if 1 means white", pixels=PIXELS // 255,
        x_test=PIXELS // 255, y_test=LABELS),
    npz("uint8 images in 0 to 16", "if 16 means white", pixels=PIXELS // 255 * 16,
        x_test=PIXELS // 255 * 16, y_test=LABELS),
    npz("pickled objects", "cannot read", refused=True, x_test=np.array([{}], object), y_test=LABELS),
    Case("Arrays", ".pt with images and labels",
         lambda folder: tensors(folder, {"images": torch.tensor(PIXELS), "labels": torch.tensor(LABELS)})),
    Case("Arrays", ".pt with a pair of tensors, N x 3 x H x W",
         lambda folder: tensors(folder, (torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS))),
         "N x channels"),
    Case("Arrays", ".pt with something else", lambda folder: tensors(folder, 3), "cannot read", True),
    Case("Arrays", "a zip archive of something else", lambda folder: zipped(folder), "which is no array", True),
    files("x_test.npy beside y_test.npy", "x_test.npy", x_test=PIXELS, y_test=LABELS),
    files("images.npy beside labels.npy", "images.npy", images=PIXELS, labels=LABELS),
    files("a folder of x_test.npy and y_test.npy", ".", x_test=PIXELS, y_test=LABELS),
    files("CIFAR-10-C: fog.npy beside labels.npy", "fog.npy", fog=PIXELS, snow=PIXELS, labels=LABELS),
    files("the folder of CIFAR-10-C", ".", "or name one file: npz:", refused=True, fog=PIXELS, snow=PIXELS,
          labels=LABELS),
    files("an .npy file without labels", "x.npy", "lacks y_test", refused=True, x=PIXELS),
]  # fmt: skip


# --- image folders ------------------------------------------------------------------------------


def paint(path, value, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    color = {"RGB": (value, 7, 9), "RGBA": (value, 7, 9, 100)}.get(mode, value)
    Image.new(mode, size, color).save(path, **options)


def tree(given, says="", *, place="", reds=(0, 90), train=False, resolution=None, published=None, refused=False, **how):
    """A folder of images; the test images must have the red values `reds`, by label."""

    def run(folder):
        how["write"](folder)
        data = load_dataset(
            f"imagefolder:{folder / place}", need_train=train, resolution=resolution, published=published
        )
        red = (all_images(data.test)[:, 0].amax((1, 2)) * 255).round().int().tolist()
        assert sorted(zip(data.test.labels.tolist(), red, strict=True)) == sorted(how.get("pairs") or enumerate(reds))
        return list(data.notes)

    return Case("Image folders", given, run, says, refused)


def write(*parts, names=("a", "b"), suffix="png", **options):
    def make(folder):
        for part in parts:
            for label, name in enumerate(names):
                paint(folder / part / name / f"0.{suffix}", 90 * label, **options)

    return make


def both(*makers):
    return lambda folder: [make(folder) for make in makers]


def tiny_imagenet(folder):
    write("train", names=("n01", "n02"))(folder)
    for number in range(2):
        paint(folder / "val/images" / f"val_{number}.png", 90 * (1 - number))
    rows = "".join(f"val_{number}.png\tn0{2 - number}\t0\t0\t1\t1\n" for number in range(2))
    (folder / "val/val_annotations.txt").write_text(rows)


def deep_gray(folder):
    for label, value in enumerate((0, 65535)):
        (folder / "test" / "ab"[label]).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(folder / "test" / "ab"[label] / "0.png")


def rotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255
    (folder / "test/a").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "test/a/0.png", exif=exif)
    data = load_dataset(f"imagefolder:{folder}", need_train=False)
    assert all_images(data.test)[0, 0, 0].min() == 1  # the first row is still the first row
    return list(data.notes)


NUMBERS = ("0", "1", "2", "10")
FOLDERS = [
    tree("test/CLASS/*.png", write=write("test")),
    tree("train/ and test/, in training", train=True, write=write("train", "test")),
    *(tree(f"{part}/CLASS/*.png", write=write(part)) for part in ("val", "valid", "validation")),
    tree("Train/ and Test/ in capitals", train=True, write=write("Train", "Test")),
    tree("training/ and testing/", train=True, write=write("training", "testing")),
    tree("PATH/val itself", place="val", train=True, write=write("train", "val")),
    tree("a bare folder of classes", write=write("")),
    tree("Tiny ImageNet as downloaded", reds=(0, 90), write=tiny_imagenet),
    *(tree(f".{suffix} files", write=write("test", suffix=suffix)) for suffix in ("bmp", "ppm", "tif", "tiff", "webp")
      if suffix != "webp"),
    tree(".pgm files, 8-bit gray", write=write("test", suffix="pgm", mode="L")),
    tree(".PNG in capitals", write=write("test", suffix="PNG")),
    tree("gray PNG of 16 bits: scaled", reds=(0, 255), write=deep_gray),
    tree("alpha channel: ignored, as in torchvision", write=write("test", mode="RGBA")),
    Case("Image folders", "EXIF rotation: ignored, as in torchvision", rotated),
    tree("classes 0, 1, 2, 10: sorted as numbers", "sorted as numbers", reds=(0, 90, 180, 210),
         write=lambda folder: [paint(folder / "test" / n / "0.png", v)
                               for n, v in zip(NUMBERS, (0, 90, 180, 210), strict=True)]),
    tree("sub-folders of a class", write=lambda folder: [paint(folder / "test" / n / "deep/er/0.png", 90 * k)
                                                         for k, n in enumerate("ab")]),
    tree("other files beside images", "skipped in",
         write=both(write("test"), lambda folder: (folder / "test/a/readme.md").write_text("x"))),
    tree("images beside the class folders", "skipped in",
         write=both(write("test"), lambda folder: paint(folder / "test/0.png", 1))),
    tree("hidden files: ignored", write=both(write("test"), lambda folder: paint(folder / "test/a/.x.png", 1))),
    tree("an empty class folder", "1 of 3 classes have no image", reds=(0, 90),
         write=both(write("test"), lambda folder: (folder / "test/c").mkdir())),
    tree("a test class that train/ lacks", "has the class 'b', which", refused=True,
         write=both(write("train", names=("a",)), write("test"))),
    tree("no images", "no images in", refused=True, write=lambda folder: (folder / "test/a").mkdir(parents=True)),
    tree("a missing folder", "no folder", place="nowhere", refused=True, write=lambda folder: None),
    tree("no training images, and training", "training needs PATH/train", train=True, refused=True,
         write=write("test")),
    tree("images that are not square", "add --image-size 6", refused=True, write=write("test", size=(8, 6))),
    tree("images of several sizes", "and 1 other sizes", refused=True,
         write=both(write("test"), lambda folder: paint(folder / "test/a/1.png", 0, (6, 6)))),
    tree("not square, --image-size 4", "is cropped and resized to 4 px", resolution=4,
         write=write("test", size=(8, 6))),
    tree("not square, a model with published weights", "as the model's published weights expect",
         published=Resize(4, 0.875, "bicubic"), write=write("test", size=(8, 6))),
    tree("TIFF of floats", "floats of no known range", refused=True, write=write("test", suffix="tif", mode="F")),
    tree("a damaged image", "cannot read the image", refused=True,
         write=both(write("test"), lambda folder: (folder / "test/a/0.png").write_bytes(b"no png"))),
]  # fmt: skip


# --- Hugging Face -------------------------------------------------------------------------------


def parquet(given, *shards, image="img", label="label", name="cifar10", raw=False, says="", refused=False):
    def run(folder):
        classes = 100 if name == "cifar100" else 10
        pixels = RNG.integers(0, 256, (classes * len(shards), 32, 32, 3), dtype=np.uint8)
        for number, shard in enumerate(shards):
            cells = []
            for picture in pixels[classes * number : classes * (number + 1)]:
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "png")
                cells.append(buffer.getvalue() if raw else {"bytes": buffer.getvalue(), "path": None})
            (folder / shard).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({image: cells, label: list(range(classes))}), folder / shard)
        data = load_dataset(name, data_dir=folder, need_train=False, download=False)
        return check(data, pixels, list(range(classes)) * len(shards))

    return Case("Hugging Face files of CIFAR", given, run, says, refused)


HUGGING_FACE = [
    parquet("data/test-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    parquet("plain_text/test-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    parquet("cifar10/plain_text/ below the data folder", "cifar10/plain_text/test-00000-of-00001.parquet"),
    parquet("a hash in the file name", "data/test-00000-of-00001-a1b2c3d4e5f6a7b8.parquet"),
    parquet("several shards", "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"),
    parquet("one shard of two", "data/test-00001-of-00002.parquet", says="fetch the missing ones", refused=True),
    parquet("test/0000.parquet, as the Hub converts", "plain_text/test/0000.parquet"),
    parquet("test.parquet", "test.parquet"),
    parquet("columns image, labels", "test-00000-of-00001.parquet", image="image", label="labels"),
    parquet("fine_label of CIFAR-100", "test-00000-of-00001.parquet", label="fine_label", name="cifar100"),
    parquet("images as plain bytes", "test-00000-of-00001.parquet", raw=True),
    parquet("other columns", "test-00000-of-00001.parquet", image="pixels", says="img or image", refused=True),
]

CASES = [*ARRAYS, *FOLDERS, *HUGGING_FACE]
