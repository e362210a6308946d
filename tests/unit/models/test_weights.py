"""Weight files of the usual formats and layouts, and files that are refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checkpoint import StateDict, read_state_dicts
from robobench.models.spec import ModelSpec
from robobench.models.weights import infer_class_count, load_weights, match_weights
from tests.helpers.models import MEAN, STD, cnn_spec


def unwrapped_state(model):
    """The state dict as the unwrapped network would save it."""
    return {k.replace("head.", "fc.") if k.startswith("head.") else k[4:]: v for k, v in model.state_dict().items()}


def containers(state):
    yield "plain", state
    yield "state_dict", {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    yield "model", {"model": {f"module.model.{k}": v for k, v in state.items()}, "optimizer": {"lr": 0.1}}
    yield "net", {"net": {**state, "mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD)}, "acc": 93.1}
    yield "last", {"last": {f"1.{k}": v for k, v in state.items()} | {"0.mean": torch.tensor(MEAN)}}
    yield "best", {"best": {"state_dict": state}}


@pytest.mark.parametrize("layout", ["wrapped", "unwrapped"])
@pytest.mark.parametrize("container", ["plain", "state_dict", "model", "net", "last", "best", "safetensors"])
def test_weights_load_from_usual_files(tmp_path, images, layout, container):
    model, fresh = build_model(cnn_spec(seed=1)).eval(), build_model(cnn_spec(seed=2)).eval()
    state = model.state_dict() if layout == "wrapped" else unwrapped_state(model)
    path = tmp_path / ("w.safetensors" if container == "safetensors" else "w.pt")
    if container == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(dict(containers(state))[container], path)
    load_weights(fresh, path)
    assert torch.equal(fresh(images), model(images))


def test_parameter_names_of_other_projects_are_mapped():
    cases = {
        "wrn-28-10": {"layers.0.0.conv1.weight": "block1.layer.0.conv1.weight", "bn.weight": "bn1.weight",
                      "layers.1.0.shortcut.weight": "block2.layer.0.convShortcut.weight"},
        "preactresnet18": {"layers.1.0.shortcut.weight": "layer2.0.shortcut.0.weight", "fc.weight": "linear.weight"},
        "resnet18": {"layer2.0.downsample.0.weight": "layer2.0.shortcut.0.weight", "fc.bias": "linear.bias"},
    }  # fmt: skip
    for name, names in cases.items():
        with torch.device("meta"):
            model = build_model(ModelSpec(name, 10, stem="cifar"))
        for ours, theirs in names.items():
            assert model.map_key(theirs) == model.map_key(ours) and model.map_key(ours) in model.state_dict()


def test_user_model_weights_load_with_any_attribute_name(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, k, name):\n        super().__init__()\n"
        "        setattr(self, name, nn.Linear(4, k))\n"
        "def net(k): return Net(k, 'net')\ndef model(k): return Net(k, 'model')\ndef head(k): return Net(k, 'head')\n"
    )
    for name in ("net", "model", "head"):
        spec = ModelSpec(f"{tmp_path / 'own.py'}:{name}", 3, seed=1)
        model, fresh = build_model(spec), build_model(ModelSpec(spec.name, 3, seed=2))
        for number, state in enumerate((model.state_dict(), model.net.state_dict())):
            torch.save(state, tmp_path / f"{name}{number}.pt")
            nn.init.zeros_(fresh.get_parameter(f"net.{name}.weight"))
            load_weights(fresh, tmp_path / f"{name}{number}.pt")
            assert torch.equal(next(fresh.parameters()), next(model.parameters()))


@pytest.mark.parametrize("name", ["cnn", "timm:vit_tiny_patch16_224", "own"])
def test_class_count_is_inferred_from_head(tmp_path, factory, name):
    with torch.device("meta"):
        models = [build_model(ModelSpec(f"{factory}:bare" if name == "own" else name, k)) for k in (3, 11)]
    found = dict(sorted(models[1].state_dict().items()))  # the order of entries does not matter

    def inferred(model, tensors, count):
        return infer_class_count(model, match_weights(model, [StateDict("", tensors)], "w.pt"), count)

    assert inferred(models[0], found, 3) == 11
    assert inferred(models[1], found, 11) == 11
    assert inferred(models[0], {"other.weight": torch.zeros(7, 5)}, 3) == 3  # cannot be inferred


@pytest.mark.parametrize("prefix", ["", "module."])
def test_user_model_constants_load_from_file(tmp_path, prefix):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\nclass Scale(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('mean', torch.zeros(3))\n"
        "        self.sigma = nn.Parameter(torch.ones(1))\n"
        "def net(k): return nn.Sequential(Scale(), nn.Linear(4, k))\n"
    )
    model = build_model(ModelSpec(f"{tmp_path / 'own.py'}:net", 3))
    state = {f"{prefix}{key}": torch.full_like(value, 0.5) for key, value in model.net.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in model.state_dict().values())


def test_different_normalization_constants_give_warning(tmp_path):
    torch.save(
        {**unwrapped_state(build_model(cnn_spec())), "mu": torch.zeros(3), "sigma": torch.tensor(STD)},
        tmp_path / "w.pt",
    )
    (warning,) = load_weights(build_model(cnn_spec()), tmp_path / "w.pt")
    assert "hold 'mu' = 0, 0, 0, the model normalizes with 0.5, 0.4, 0.3; give --mean and --std" in warning


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weights file ran')",))


def write_bad_file(tmp_path, fault):
    path = tmp_path / "w.pt"
    torch.save(build_model(cnn_spec()).state_dict(), path)
    match fault:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:4000])
        case "text":
            path.write_text("epoch,loss\n1,2.3\n")
        case "code":
            path.write_bytes(pickle.dumps(Evil()))
        case "code in a torch file":
            torch.save({"state_dict": Evil()}, path)
        case "list":
            torch.save([torch.zeros(3)], path)
        case "torn safetensors":
            path = tmp_path / "w.safetensors"
            save_file({"head.weight": torch.zeros(5, 128)}, path)
            path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize(
    "fault",
    ["missing", "truncated", "text", "code", "code in a torch file", "list", "torn safetensors"],
)
def test_bad_weights_file_is_refused_without_running_code(tmp_path, fault):
    path = write_bad_file(tmp_path, fault)
    with pytest.raises(RequestError) as caught:
        read_state_dicts(path)
    message = str(caught.value)
    assert str(path) in message and "safetensors file or a state dict" in message and "\n" not in message


def test_wrong_class_count_is_refused(tmp_path):
    torch.save(unwrapped_state(build_model(cnn_spec(num_classes=100))), tmp_path / "w.pt")
    with pytest.raises(RequestError, match="have 100 classes, the data set has 5"):
        load_weights(build_model(cnn_spec()), tmp_path / "w.pt")


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(unwrapped_state(build_model(cnn_spec(name="resnet20"))), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"'net.body.0.weight' is missing \(\d+ missing, \d+ unexpected"):
        load_weights(build_model(cnn_spec()), tmp_path / "w.pt")
    state = unwrapped_state(build_model(cnn_spec()))
    torch.save({**state, "body.0.weight": torch.zeros(32, 3, 5, 5)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"'net.body.0.weight' has shape \(32, 3, 5, 5\), not \(32, 3, 3, 3\)"):
        load_weights(build_model(cnn_spec()), tmp_path / "w.pt")
