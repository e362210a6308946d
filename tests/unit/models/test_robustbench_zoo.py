"""Models of RobustBench's zoo. The package itself is an extra that most tests do not need."""

import importlib.util

import pytest
import torch

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.robustbench_zoo import _find_model
from robobench.models.spec import ModelSpec
from robobench.models.weights import load_weights

PATHS = ["cifar10/Linf/Only", "cifar10/Linf/Two", "cifar10/L2/Two", "cifar100/Linf/Two", "imagenet/Linf/Big"]


def test_zoo_id_is_resolved_by_class_count():
    assert _find_model("Only", PATHS, 10) == "cifar10/Linf/Only"
    assert _find_model("Two", PATHS, 100) == "cifar100/Linf/Two"
    assert _find_model("cifar10/L2/Two", PATHS, 10) == "cifar10/L2/Two"
    assert _find_model("Big", PATHS, 1000) == "imagenet/Linf/Big"


@pytest.mark.parametrize(
    ("name", "num_classes", "message"),
    [
        ("Onyl", 10, "unknown model of RobustBench 'Onyl'; did you mean 'Only'?"),
        ("Only", 100, "'robustbench:cifar10/Linf/Only' is for cifar10, not for 100 classes"),
        ("Two", 10, "'robustbench:Two' means 2 models; write one of cifar10/Linf/Two, cifar10/L2/Two"),
    ],
)
def test_wrong_zoo_id_is_refused(name, num_classes, message):
    with pytest.raises(RequestError) as caught:
        _find_model(name, PATHS, num_classes)
    assert message in str(caught.value)


def test_weights_file_gives_robustbench_logits(tmp_path):
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("an extra")
    net = build_model(ModelSpec("robustbench:Wong2020Fast", 10)).eval()
    state = {f"module.{k.removeprefix('net.')}": v for k, v in net.state_dict().items() if "mu" not in k}
    assert len(state) > 60
    torch.save({"state_dict": {k: v for k, v in state.items() if "sigma" not in k}}, tmp_path / "fast.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        torch.manual_seed(1)
        other = build_model(ModelSpec("robustbench:Wong2020Fast", 10, seed=1)).eval()
        assert not torch.equal(other(images), expected)
        load_weights(other, tmp_path / "fast.pt")
        torch.testing.assert_close(other(images), expected)
    with pytest.raises(RequestError, match="did you mean 'Wong2020Fast'"):
        build_model(ModelSpec("robustbench:Wong2020Fsat", 10))
    with pytest.raises(RequestError, match="is for cifar10, not for 100 classes"):
        build_model(ModelSpec("robustbench:Wong2020Fast", 100))
