"""CIFAR from parquet files and from archives: exact pixels; damaged or wrong files are refused."""

from __future__ import annotations

import hashlib
import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from robobench.data import load_dataset
from tests.helpers.datasets import all_images, load_error

pytestmark = pytest.mark.usefixtures("cache")

# --- parquet ------------------------------------------------------------------------------------


def random_image(number, side=32):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_parquet(file, numbers, classes=10, image="img", label="label", side=32, columns=()):
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": png(random_image(n, side)), "path": None} for n in numbers]
    table = {image: cells, label: [n % classes for n in numbers], **dict(columns)}
    pq.write_table(pa.table(table), file)
    return file


@pytest.mark.parametrize("folder", [".", "data", "cifar10", "cifar10/data"])
def test_parquet_files_give_exact_pixels(tmp_path, folder):
    place = tmp_path / "hf" / folder
    write_parquet(place / "train-00000-of-00002.parquet", range(20))
    write_parquet(place / "train-00001-of-00002.parquet", range(20, 30))
    write_parquet(place / "test-00000-of-00001.parquet", range(30, 40), image="image")
    data = load_dataset("cifar10", data_dir=tmp_path / "hf")
    expected = torch.from_numpy(np.stack([random_image(n) for n in range(30)])).permute(0, 3, 1, 2) / 255
    assert torch.equal(all_images(data.train), expected)
    assert data.train.labels.tolist() == [n % 10 for n in range(30)]
    assert (len(data.test), data.num_classes, data.train.is_uint8_exact) == (10, 10, True)


def test_cifar100_reads_fine_labels(tmp_path):
    coarse = {"coarse_label": [0] * 100}.items()
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(100), 100, label="fine_label", columns=coarse)
    data = load_dataset("cifar100", data_dir=tmp_path, need_train=False)
    assert data.test.labels.tolist() == list(range(100)) and data.num_classes == 100


def test_decoded_pixels_are_cached_and_verified(tmp_path, cache, monkeypatch):
    write_parquet(tmp_path / "hf" / "test-00000-of-00001.parquet", range(10))
    first = load_dataset("cifar10", data_dir=tmp_path / "hf", need_train=False)
    (cached,) = cache.rglob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr("robobench.data.cifar._decode_parquet", None)  # the cache is used
        assert load_dataset("cifar10", data_dir=tmp_path / "hf", need_train=False).digest == first.digest
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(content)
    again = load_dataset("cifar10", data_dir=tmp_path / "hf", need_train=False)
    assert again.digest == first.digest and sorted(p.suffix for p in (tmp_path / "hf").iterdir()) == [".parquet"]


def test_unwritable_cache_is_ignored(tmp_path, monkeypatch):
    write_parquet(tmp_path / "hf" / "test-00000-of-00001.parquet", range(10))
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("robobench.data.cifar.cache_root", lambda: tmp_path / "file")
    assert len(load_dataset("cifar10", data_dir=tmp_path / "hf", need_train=False).test) == 10


def test_parquet_of_another_data_set_is_refused(tmp_path):
    file = write_parquet(tmp_path / "test-00000-of-00001.parquet", range(10))
    message = load_error("cifar100", data_dir=tmp_path, need_train=False)
    assert message == f"'{file}' has labels of 10 classes, 0 to 9; cifar100 has 0 to 99, each of them"
    write_parquet(file, range(100), classes=100)
    assert "has labels of 100 classes, 0 to 99; cifar10 has 0 to 9" in load_error(
        "cifar10", data_dir=tmp_path, need_train=False
    )
    write_parquet(file, range(10), image="picture")
    assert "has the columns picture, label; cifar10 needs img or image" in load_error(
        "cifar10", data_dir=tmp_path, need_train=False
    )
    write_parquet(file, range(10), side=28)
    assert "holds images of [(28, 28, 3)]; cifar10 has 32 x 32 x 3" in load_error(
        "cifar10", data_dir=tmp_path, need_train=False
    )


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "text", "truncated image"])
def test_damaged_parquet_is_refused(tmp_path, fault):
    file = write_parquet(tmp_path / "test-00000-of-00001.parquet", range(10))
    content = bytearray(file.read_bytes())
    match fault:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "flipped":
            content[len(content) // 2] ^= 0xFF  # inside an image
            file.write_bytes(content)
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("<html>rate limit</html>")
        case "truncated image":
            cells = [{"bytes": png(random_image(n))[:300], "path": None} for n in range(10)]
            pq.write_table(pa.table({"img": cells, "label": list(range(10))}), file)
    assert f"cannot read '{file}'" in load_error("cifar10", data_dir=tmp_path, need_train=False)


def test_missing_parquet_file_is_refused(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(10))
    assert "has 0 of the files train-*-of-*.parquet" in load_error("cifar10", data_dir=tmp_path)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(10))
    assert "has 1 of the 2 files train-*-of-*.parquet of cifar10; fetch" in load_error("cifar10", data_dir=tmp_path)


# --- archives -----------------------------------------------------------------------------------


def write_archive(folder):
    """Write a small data set in the layout of CIFAR-10's archive; return the checksums of its files."""
    folder.mkdir()
    sums = {}
    for name, numbers in (("data_batch_1", range(20)), ("test_batch", range(20, 30))):
        pixels = np.stack([random_image(n).transpose(2, 0, 1).reshape(-1) for n in numbers])
        content = pickle.dumps({"data": pixels, "labels": [n % 10 for n in numbers]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(content)
    sums["batches.meta"] = hashlib.md5(content).hexdigest()
    return sums


@pytest.fixture
def archive(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    sums = write_archive(tmp_path / "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return tmp_path


def test_archive_is_preferred_over_parquet(archive):
    write_parquet(archive / "test-00000-of-00001.parquet", range(50, 60))
    data = load_dataset("cifar10", data_dir=archive)
    expected = torch.from_numpy(np.stack([random_image(n) for n in range(20)])).permute(0, 3, 1, 2) / 255
    assert torch.equal(all_images(data.train), expected) and data.train.labels.tolist() == [n % 10 for n in range(20)]
    assert torch.equal(all_images(data.test)[0], torch.from_numpy(random_image(20)).permute(2, 0, 1) / 255)


def test_archive_with_wrong_checksum_is_not_unpickled(archive):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code from an archive ran')",))

    (archive / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    message = load_error("cifar10", data_dir=archive)
    assert "is damaged or incomplete (checksums differ); delete it and download it again" in message


def test_damaged_tar_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half a download")
    assert "cifar-100-python.tar.gz' is damaged" in load_error("cifar100", data_dir=tmp_path)


def test_missing_data_offline_names_next_step(tmp_path, monkeypatch):
    from urllib.error import URLError

    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    message = load_error("cifar10", data_dir=tmp_path, download=False)
    assert f"no cifar10 in '{tmp_path}' (looked for cifar-10-batches-py/ and test-*.parquet" in message
    assert "--data-dir" in message
    monkeypatch.setattr("robobench.data.cifar._open_torchvision", offline)
    message = load_error("cifar10", data_dir=tmp_path)
    assert (
        "cannot be downloaded (<urlopen error Name or service not known>); name its folder with --data-dir" in message
    )
