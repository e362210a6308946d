"""Networks by name: protocol, weights from a seed, preparation inside, weight files of every shape, tiny maps."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from robobench.errors import RequestError
from robobench.models import load_weights, read_weights
from robobench.models.build import build_model
from robobench.models.checks import missing_attributes
from robobench.models.small_map_conv import SmallMapConv2d, use_small_map_convs
from robobench.models.spec import MODELS, ModelSpec
from robobench.models.weights import infer_class_count

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(**changes):
    return ModelSpec(**{"name": "cnn", "num_classes": 5, "image_size": 32, "mean": MEAN, "std": STD, **changes})


# --- building -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),  # with 10 classes, as published
    [("cnn", 0.13), ("resnet20", 0.27), ("resnet18", 11.17), ("preactresnet18", 11.17), ("wrn-28-10", 36.48)],
)
def test_networks_have_their_published_size_and_the_protocol(name, millions, images):
    model = build_model(ModelSpec(name, 10, stem="cifar", mean=MEAN, std=STD)).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert missing_attributes(model, ("features", "head")) == []
    if name != "wrn-28-10":  # 5 G multiplications an image
        with torch.no_grad():
            logits, features = model(images), model.features(images)
        assert logits.shape == (2, 10) and logits.dtype == features.dtype == torch.float32
        assert torch.equal(logits, model.head(features))


def test_wrn_34_10_has_34_layers_and_46_million_parameters():
    with torch.device("meta"):
        from robobench.models.networks import wide_resnet

        net = wide_resnet(34, 10)
    # Zagoruyko and Komodakis count every convolution, the three 1x1 shortcuts too.
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 34
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(46.15, abs=0.01)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:convnext_atto"])
def test_timm_features_are_what_timm_calls_pre_logits(name, images):
    import timm

    model = build_model(ModelSpec(name, 7, image_size=64, seed=3)).eval()
    options = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=7, **options).eval()
    theirs.load_state_dict(
        {k.replace("head.", f"{model.bare_head}.", 1) if k.startswith("head.") else k.removeprefix("net."): v
         for k, v in model.state_dict().items()}
    )  # fmt: skip
    with torch.no_grad():
        larger = F.interpolate(images, (64, 64), mode="bilinear", align_corners=False)
        expected = theirs.forward_head(theirs.forward_features(larger), pre_logits=True)
        torch.testing.assert_close(model.features(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(images), theirs(larger), rtol=1e-4, atol=1e-5)


def test_a_seed_gives_its_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = build_model(small(seed=1)), build_model(small(seed=1)), build_model(small(seed=2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_images_are_normalized_inside_and_the_constants_are_not_saved(images):
    model, plain = build_model(small()).eval(), build_model(small(mean=(0.0,) * 3, std=(1.0,) * 3)).eval()
    by_hand = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model(images), plain(by_hand))
    assert {key.split(".")[0] for key in model.state_dict()} == {"net", "head"}


def test_images_of_another_size_are_resized_inside_and_gradients_reach_them():
    model = build_model(small(image_size=16)).eval()
    large = torch.rand(2, 3, 32, 32).requires_grad_()
    smaller = F.interpolate(large, (16, 16), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(model(large), model(smaller))
    model(large).sum().backward()
    assert large.grad.abs().amax((1, 2, 3)).min() > 0


def test_the_cifar_stem_keeps_all_pixels_and_the_imagenet_stem_keeps_a_sixteenth():
    for stem, side in (("cifar", 32), ("imagenet", 8)):
        net = build_model(ModelSpec("resnet18", 10, stem=stem)).net
        assert net.maxpool(net.act1(net.bn1(net.conv1(torch.rand(1, 3, 32, 32))))).shape[-1] == side


def test_a_stem_is_a_choice_for_resnets_only():
    assert ModelSpec("resnet18", 10).stem == "imagenet"
    assert ModelSpec("resnet18", 10, stem="cifar").stem == "cifar"
    assert small(stem="cifar").recipe() == small(stem="imagenet").recipe()  # one network, one key
    with pytest.raises(RequestError, match="'timm:vit_tiny_patch16_224' has no stem to replace"):
        build_model(ModelSpec("timm:vit_tiny_patch16_224", 10, stem="cifar"))


def test_a_copy_of_a_model_is_independent_and_equal(images):
    model = build_model(small()).eval()
    twin = copy.deepcopy(model)
    assert torch.equal(model(images), twin(images))
    nn.init.zeros_(twin.head.weight)
    assert not torch.equal(model(images), twin(images))


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet81"}, "unknown model 'resnet81'; did you mean 'resnet18'?"),
        ({"name": "mine.py"}, "model 'mine.py' names no function; write mine.py:FUNCTION"),
        ({"name": "timm:NAME"}, "unknown model 'timm:NAME'"),
        ({"stem": "cifa"}, "unknown stem 'cifa'; did you mean 'cifar'?"),
        ({"interpolation": "linear"}, "unknown interpolation 'linear'; did you mean 'bilinear'?"),
        ({"num_classes": 1}, "a classifier needs 2 classes or more, got 1"),
        ({"std": (0.2, 0.0, 0.2)}, "std must be > 0 in every channel"),
        ({"image_size": -1}, "image_size must be >= 0"),
    ],
)
def test_a_wrong_spec_is_refused_when_it_is_made(changes, message):
    with pytest.raises(RequestError) as caught:
        small(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_timm_name_suggests_near_ones():
    with pytest.raises(RequestError, match=r"unknown timm model 'resnet_18'; did you mean .*resnet18"):
        build_model(ModelSpec("timm:resnet_18", 10))


def test_pretrained_weights_that_cannot_be_had_are_an_error_and_never_random(monkeypatch):
    import timm

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        RequestError, match=r"pretrained weights for 'resnet18' cannot be fetched .*--set run.pretrained=false"
    ):
        build_model(ModelSpec("resnet18", 10, pretrained=True))
    with pytest.raises(RequestError, match="'cnn' has no pretrained weights"):
        build_model(small(pretrained=True))


def test_names_are_listed_without_torch():
    code = "import sys, robobench.models as m; m.MODELS; m.ModelSpec('cnn', 2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert all(len(summary.splitlines()) == 1 for summary in MODELS.values())


# --- weight files -------------------------------------------------------------------------------


def bare_state(model):
    """The state as the bare network would save it."""
    return {k.replace("head.", "fc.") if k.startswith("head.") else k[4:]: v for k, v in model.state_dict().items()}


def wrappings(state):
    yield "plain", state
    yield "state_dict", {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}
    yield "model", {"model": {f"module.model.{k}": v for k, v in state.items()}, "optimizer": {"lr": 0.1}}
    yield "net", {"net": {**state, "mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD)}, "acc": 93.1}
    yield "last", {"last": {f"1.{k}": v for k, v in state.items()} | {"0.mean": torch.tensor(MEAN)}}
    yield "best", {"best": {"state_dict": state}}


@pytest.mark.parametrize("layout", ["own", "bare"])
@pytest.mark.parametrize("shape", ["plain", "state_dict", "model", "net", "last", "best", "safetensors"])
def test_weights_come_back_from_every_usual_file(tmp_path, images, layout, shape):
    model, fresh = build_model(small(seed=1)).eval(), build_model(small(seed=2)).eval()
    state = model.state_dict() if layout == "own" else bare_state(model)
    path = tmp_path / ("w.safetensors" if shape == "safetensors" else "w.pt")
    if shape == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(dict(wrappings(state))[shape], path)
    load_weights(fresh, path)
    assert torch.equal(fresh(images), model(images))


def test_other_projects_names_are_understood(tmp_path):
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


def test_weights_of_a_users_network_load_whatever_its_attributes_are_called(tmp_path):
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
def test_the_classes_of_a_file_are_read_off_its_head_whatever_the_order(tmp_path, factory, name):
    with torch.device("meta"):
        made = [build_model(ModelSpec(f"{factory}:bare" if name == "own" else name, k)) for k in (3, 11)]
    found = dict(sorted(made[1].state_dict().items()))
    assert infer_class_count(made[0], found, 3) == 11
    assert infer_class_count(made[1], found, 11) == 11
    assert infer_class_count(made[0], {"other.weight": torch.zeros(7, 5)}, 3) == 3  # nothing tells


@pytest.mark.parametrize("wrap", ["", "module."])
def test_constants_that_a_users_network_keeps_come_from_the_file(tmp_path, wrap):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch import nn\nclass Scale(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.register_buffer('mean', torch.zeros(3))\n"
        "        self.sigma = nn.Parameter(torch.ones(1))\n"
        "def net(k): return nn.Sequential(Scale(), nn.Linear(4, k))\n"
    )
    model = build_model(ModelSpec(f"{tmp_path / 'own.py'}:net", 3))
    state = {f"{wrap}{key}": torch.full_like(value, 0.5) for key, value in model.net.state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in model.state_dict().values())


def test_constants_of_a_file_that_differ_from_the_models_are_named(tmp_path):
    torch.save(
        {**bare_state(build_model(small())), "mu": torch.zeros(3), "sigma": torch.tensor(STD)}, tmp_path / "w.pt"
    )
    (said,) = load_weights(build_model(small()), tmp_path / "w.pt")
    assert "hold 'mu' = 0, 0, 0, the model normalizes with 0.5, 0.4, 0.3; give --mean and --std" in said


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weights file ran')",))


def write_faulty(tmp_path, fault):
    path = tmp_path / "w.pt"
    torch.save(build_model(small()).state_dict(), path)
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
        case "object":
            torch.save({"weight": torch.zeros(3), "note": "hello"}, path)
        case "torn safetensors":
            path = tmp_path / "w.safetensors"
            save_file({"head.weight": torch.zeros(5, 128)}, path)
            path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.mark.parametrize(
    "fault",
    ["missing", "truncated", "text", "code", "code in a torch file", "list", "object", "torn safetensors"],
)
def test_a_file_that_is_no_weights_is_refused_in_one_line_and_runs_no_code(tmp_path, fault):
    path = write_faulty(tmp_path, fault)
    with pytest.raises(RequestError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message and "safetensors file or a state dict" in message and "\n" not in message


def test_another_number_of_classes_is_named_with_both_counts(tmp_path):
    torch.save(bare_state(build_model(small(num_classes=100))), tmp_path / "w.pt")
    with pytest.raises(RequestError, match="have 100 classes, the data set has 5"):
        load_weights(build_model(small()), tmp_path / "w.pt")


def test_weights_of_another_network_name_the_first_key_that_differs(tmp_path):
    torch.save(bare_state(build_model(small(name="resnet20"))), tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"'net.body.0.weight' is missing \(\d+ missing, \d+ unexpected"):
        load_weights(build_model(small()), tmp_path / "w.pt")
    state = bare_state(build_model(small()))
    torch.save({**state, "body.0.weight": torch.zeros(32, 3, 5, 5)}, tmp_path / "w.pt")
    with pytest.raises(RequestError, match=r"'net.body.0.weight' has shape \(32, 3, 5, 5\), not \(32, 3, 3, 3\)"):
        load_weights(build_model(small()), tmp_path / "w.pt")


# --- tiny maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [(3, 1, 1, 1, 1), (3, 1, 1, 2, 2), (3, 2, 1, 2, 2), (3, 2, 1, 4, 4), (3, 2, 1, 3, 4), (1, 1, 0, 2, 2),
     (1, 2, 0, 2, 2), (7, 2, 3, 4, 4), (3, 1, 1, 1, 2), (3, 1, 1, 4, 4)],
)  # fmt: skip
def test_tiny_maps_give_the_convolution_and_its_gradients(kernel, stride, padding, height, width):
    conv = nn.Conv2d(8, 6, kernel, stride, padding, bias=False)
    fast = nn.Sequential(copy.deepcopy(conv)).to(memory_format=torch.channels_last)
    use_small_map_convs(fast)
    assert isinstance(fast[0], SmallMapConv2d) and list(fast.state_dict()) == ["0.weight"]
    mine = torch.randn(5, 8, height, width).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    out, expected = fast(mine), conv(theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast[0].weight.grad, conv.weight.grad, rtol=1e-5, atol=1e-5)


def test_only_plain_convolutions_are_replaced():
    odd = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (1, 3), bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
    )  # fmt: skip
    use_small_map_convs(odd)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in odd)


@pytest.mark.parametrize(("kernel", "padding", "side"), [(3, 1, 1), (3, 1, 2), (1, 0, 2)])
def test_under_autocast_tiny_maps_round_as_the_convolution_does(kernel, padding, side):
    conv = nn.Conv2d(32, 16, kernel, padding=padding, bias=False)
    fast = nn.Sequential(copy.deepcopy(conv)).to(memory_format=torch.channels_last)
    use_small_map_convs(fast)
    images, grad = torch.randn(8, 32, side, side), torch.randn(8, 16, side, side)
    found = []
    for layer, mixed in ((conv, False), (conv, True), (fast, True)):
        mine = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = layer(mine)
        weight = next(layer.parameters())
        grads = torch.autograd.grad(out, [mine, weight], grad.to(out.dtype))
        assert out.dtype == (torch.bfloat16 if mixed else torch.float32)
        assert all(g.dtype == torch.float32 for g in grads)
        found.append([out.detach().float(), *grads])
    exact, theirs, ours = found
    for e, t, o in zip(exact, theirs, ours, strict=True):
        assert 0 < (o - e).norm() <= 1.5 * (t - e).norm()  # a product is rounded before it is added
