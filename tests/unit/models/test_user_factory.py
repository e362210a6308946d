"""User factories: the built model, its key, and errors."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checks import missing_attributes
from robobench.models.spec import ModelSpec
from robobench.models.user_factory import _read_once
from tests.helpers.models import MEAN, STD
from tests.helpers.toys import FACTORY


def test_factory_model_keeps_features_and_head(factory, images):
    model = build_model(ModelSpec(f"{factory}:make", 7))
    assert torch.equal(model(images), model.net(images))  # no normalization, no resizing
    assert torch.equal(model.head(model.features(images)), model(images))
    assert missing_attributes(model, ("features", "head")) == []
    assert model.head.out_features == 7
    assert torch.equal(copy.deepcopy(model).features(images), model.features(images))


def test_factory_model_is_preprocessed_on_request(factory, images):
    spec = ModelSpec(f"{factory}:make", 7, mean=MEAN, std=STD, image_size=8)
    model = build_model(spec)
    by_hand = F.interpolate(images, (8, 8), mode="bilinear", align_corners=False, antialias=True)
    by_hand = (by_hand - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.features(images), model.net.features(by_hand))


def test_factory_key_depends_on_source(factory):
    spec = ModelSpec(f"{factory}:make", 7)
    before = spec.recipe()
    with open(factory, "a") as file:
        file.write("# changed\n")
    assert spec.recipe() != before and spec.recipe()["name"] == before["name"]


def test_factory_file_may_define_dataclass(tmp_path, images):
    config = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    (tmp_path / "mine.py").write_text(f"{config}{FACTORY}\n@dataclass\nclass Config:\n    width: int = 4\n")
    assert build_model(ModelSpec(f"{tmp_path / 'mine.py'}:make", 7))(images).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "imported"),
    [
        ("net.py:make", ["net.py", "blocks.py", "parts/deep.py"]),
        ("nets:make", ["nets/__init__.py", "nets/resnet.py", "blocks.py", "parts/deep.py"]),
    ],
)
def test_factory_key_depends_on_imported_local_files(tmp_path, monkeypatch, name, imported):
    texts = {
        "net.py": "import torch\nfrom blocks import Net\n",
        "blocks.py": "def lazy():\n    import parts.deep\n",
        "parts/deep.py": "import blocks\n",
        "nets/__init__.py": "from .resnet import make\n",
        "nets/resnet.py": "from blocks import *\n",
        "other.py": "",
        "nets/other.py": "",
    }
    for file, text in texts.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)

    def key():
        _read_once.cache_clear()  # as in a new process
        return ModelSpec(name, 7).recipe()["source"]

    before = key()
    for file, text in texts.items():
        (tmp_path / file).write_text(text + "# changed\n")
        assert (key() != before) is (file in imported), file
        (tmp_path / file).write_text(text)
    assert key() == before


def test_factory_key_is_file_digest(factory):
    with open(factory, "rb") as file:
        assert ModelSpec(f"{factory}:make", 7).recipe()["source"] == hashlib.sha256(file.read()).hexdigest()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("mak", "did you mean 'make'?"),
        ("broken", "broken(7) raised KeyError: 'no such weights'"),
        ("number", "must return an nn.Module, got int"),
    ],
)
def test_failing_factory_raises_one_line(factory, function, message):
    with pytest.raises(RequestError) as caught:
        build_model(ModelSpec(f"{factory}:{function}", 7))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_or_broken_factory_file_is_refused(tmp_path):
    (tmp_path / "torn.py").write_text("def make(:\n")
    for name, message in (
        (f"{tmp_path}/none.py:make", "no file "),
        ("no_such_package.models:make", "no module 'no_such_package.models'"),
        (f"{tmp_path}/torn.py:make", "fails to import: SyntaxError"),
    ):
        with pytest.raises(RequestError, match=message):
            build_model(ModelSpec(name, 3))


def test_module_factory_is_found_in_working_folder(tmp_path, monkeypatch, images):
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "small.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert build_model(ModelSpec("own_nets.small:make", 4))(images).shape == (2, 4)


def test_factory_imports_neither_timm_nor_torchvision(factory):
    code = (
        "import sys; from robobench.models.build import *; build_model(ModelSpec(sys.argv[1], 3)); "
        "sys.exit('timm' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, f"{factory}:make"], check=False).returncode == 0
