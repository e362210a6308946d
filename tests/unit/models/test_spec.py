"""Model specs: stems, wrong values, names without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.spec import MODELS, ModelSpec
from tests.helpers.models import cnn_spec


def test_stem_applies_to_resnets_only():
    assert ModelSpec("resnet18", 10).stem == "imagenet"
    assert ModelSpec("resnet18", 10, stem="cifar").stem == "cifar"
    assert cnn_spec(stem="cifar").recipe() == cnn_spec(stem="imagenet").recipe()  # one model, one key
    with pytest.raises(RequestError, match="'timm:vit_tiny_patch16_224' has no stem to replace"):
        build_model(ModelSpec("timm:vit_tiny_patch16_224", 10, stem="cifar"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet81"}, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        ({"name": "mine.py"}, "model 'mine.py' has no function; write mine.py:FUNCTION"),
        ({"name": "timm:NAME"}, "unknown model 'timm:NAME'"),
        ({"stem": "cifa"}, "unknown stem 'cifa'; did you mean 'cifar'?"),
        ({"interpolation": "linear"}, "unknown interpolation 'linear'; did you mean 'bilinear'?"),
        ({"num_classes": 1}, "a classifier needs 2 classes or more, got 1"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be > 0 in every channel"),
        ({"image_size": -1}, "image_size must be >= 0"),
    ],
)
def test_wrong_spec_is_refused(changes, message):
    with pytest.raises(RequestError) as caught:
        cnn_spec(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_names_need_no_torch():
    code = "import sys, robobench.models.spec as m; m.MODELS; m.ModelSpec('cnn', 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(len(summary.splitlines()) == 1 for summary in MODELS.values())
