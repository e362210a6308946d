"""--init, --extra, frozen backbones and recipes, from the request to the trained model."""

from __future__ import annotations

import importlib.util
import json

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import robobench
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec
from robobench.planning.planner import make_plan
from robobench.planning.recipes import RECIPES
from robobench.planning.request import ExperimentConfig

SETS = ("run.train_images=64", "run.baseline_control=false")
FLAGS = {"attacks": (), "protocol": "white-box", "threads": 1, "epochs": 1, "batch_size": 32}


def plan(out, **changes):
    return make_plan(ExperimentConfig(**{"defenses": ("standard",), "out": out, "sets": SETS, **FLAGS, **changes}))


@pytest.fixture
def five_classes(tmp_path):
    """Weights of a cnn for five classes."""
    file = tmp_path / "five.safetensors"
    save_file({k: v.contiguous() for k, v in build_model(ModelSpec("cnn", 5, seed=7)).state_dict().items()}, file)
    return file


def train(out, *sets, **flags):
    robobench.run("standard", out=out, sets=(*SETS, *sets), examples=16, **{**FLAGS, "attacks": "fgsm", **flags})
    (folder,) = out.glob("standard-*")
    return folder


def test_probe_keeps_backbone_and_trains_new_head(tmp_path, five_classes):
    folder = train(tmp_path / "a", "standard.freeze=backbone", init=str(five_classes))
    given, trained = load_file(five_classes), load_file(folder / "model.safetensors")
    assert trained["head.weight"].shape[0] == 10
    assert all(torch.equal(given[name], trained[name]) for name in given if not name.startswith("head."))
    new = build_model(ModelSpec("cnn", 10)).state_dict()["head.weight"]
    assert not torch.equal(trained["head.weight"], new)
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["stages"][0]["passes"]["weight_grad"] == 0


def test_training_starts_from_stored_model(tmp_path, five_classes):
    first = train(tmp_path / "a")
    second = train(tmp_path / "b", init=str(first), epochs=0)
    weights = [load_file(folder / "model.safetensors") for folder in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    keys = {model.key for init in (None, str(first), str(five_classes)) for model in plan(tmp_path, init=init).models}
    assert len(keys) == 3


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The cache of the Hugging Face Hub, offline; returns a function that stores weights as a repository's file."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def store(repository, state):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        for part in ("refs", "snapshots/0123abc"):
            (folder / part).mkdir(parents=True)
        (folder / "refs" / "main").write_text("0123abc")
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "snapshots/0123abc/model.safetensors")

    return store


def test_timm_weights_come_from_its_hub_cache(tmp_path, hub):
    """timm.create_model loads them; the head of 1000 classes is replaced."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet", num_classes=1000).state_dict()
    hub("timm/test_resnet.r160_in1k", state)
    sets = ("run.stem=native", "run.image_size=32")
    folder = train(tmp_path / "out", *sets, model="timm:test_resnet", init="timm", epochs=0)
    trained = load_file(folder / "model.safetensors")
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    assert all(torch.equal(trained[f"net.{name}"], value) for name, value in given.items())
    assert [value.shape[0] for name, value in trained.items() if name.startswith("head.")] == [10, 10]


def test_hub_weights_are_loaded_or_named(tmp_path, hub, five_classes):
    hub("me/cnn", load_file(five_classes))
    folder = train(tmp_path / "out", init="hf:me/cnn", epochs=0)
    trained, given = load_file(folder / "model.safetensors"), load_file(five_classes)
    assert all(torch.equal(trained[name], given[name]) for name in given if not name.startswith("head."))
    with pytest.raises(RequestError, match="--init hf:me/other: no weights"):
        plan(tmp_path / "out", init="hf:me/other")


def test_robustbench_weights_come_from_its_cache(tmp_path, cache):
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("an extra")
    name = "robustbench:Wong2020Fast"
    state = build_model(ModelSpec(name, 10, seed=3)).net.state_dict()
    file = cache / "robobench/robustbench/cifar10/Linf/Wong2020Fast.pt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {key: value for key, value in state.items() if key not in ("mu", "sigma")}}, file)
    started = build_model(plan(tmp_path / "out", init=name).models[0].spec).net.state_dict()
    assert all(torch.equal(started[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "none.pt"}, "no file 'none.pt'; give a weights file"),
        ({"init": "."}, "is not the folder of a trained model"),
        ({"init": "robustbench:Rice2020Overfitting", "model": "resnet18"}, "is a model of its own"),
        ({"sets": ("run.selection=average",)}, "averages no weights; set standard.average=ema or swa"),
        ({"sets": ("standard.average=mean",)}, "average must be one of none, ema, swa, got mean"),
        ({"sets": ("standard.augment=crop-flip+cutout",)}, "augment must be one of"),
        ({"sets": ("run.extra_fraction=0",)}, "extra_fraction must be above 0"),
        ({"defenses": ("rocl",), "sets": ("rocl.optimizer=adamw",)}, "has its own optimizer"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        plan(tmp_path / "out", **changes)


def test_extra_images_are_part_of_key(tmp_path):
    images = np.zeros((40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(40) % 10)
    np.savez(tmp_path / "b.npz", image=images + 1, label=np.arange(40) % 10)
    extras = [None, tmp_path / "a.npz", tmp_path / "b.npz"]
    assert len({plan(tmp_path / "out", extra=extra).models[0].key for extra in extras}) == 3
    folder = train(tmp_path / "out", extra=tmp_path / "a.npz")
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["stages"][0]["images"] == 64 and timing["extra"] == "0.7 of 40"
    assert timing["forward_flops"] == 9882112


@pytest.mark.parametrize("preset", RECIPES)
def test_recipes_apply_to_their_defenses(preset, tmp_path):
    """Every value of a recipe is a field, and reaches the config of a defense that has it."""
    wanted = RECIPES[preset]
    model, sets = ("cnn", ("run.image_size=32", "run.attack_resolution=32", "run.held_out=1000"))
    jobs = plan(
        tmp_path, preset=preset, epochs=None, batch_size=None, defenses=("at", "trades"), model=model, sets=sets
    )
    for job in jobs.models:
        values = {**wanted["training"], **wanted.get("adversarial", {}), **wanted.get("defenses", {}).get(job.name, {})}
        assert {name: getattr(job.config, name) for name in values} == values
        assert job.threat.eps == pytest.approx(4 / 255 if "4/255" in str(preset_radii(preset)) else 0.1)


def preset_radii(preset):
    below = RECIPES.get(RECIPES[preset].get("over", ""), {})
    return {**below.get("run", {}), **RECIPES[preset].get("run", {})}.get("linf_eps")


def test_damaged_init_is_refused_before_training(tmp_path, five_classes):
    five_classes.write_bytes(five_classes.read_bytes()[:-100])
    with pytest.raises(RequestError, match=r"five\.safetensors"):
        plan(tmp_path / "runs", init=str(five_classes))
    assert not (tmp_path / "runs").exists()
