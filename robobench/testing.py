"""Contract checks for plug-ins, run on a small model and small images.

The same checks apply to robobench's own plug-ins and to third-party ones. A failed check raises AssertionError with one
sentence. `robobench check` prints one line per check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.core.module_state import attack_mode
from robobench.core.registry import ATTACKS, DEFENSES, unknown_name
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.core.timing import Stopwatch
from robobench.errors import RequestError
from robobench.plugins.discovery import KINDS, discover, load_plugin, load_plugin_module, parse_attack_spec
from robobench.training.base import Defense, DefenseSetup, FrozenModel, PrecomputedArray, Train
from robobench.training.context import TrainRuntime
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute


class SmallNet(nn.Module):
    """Two convolutions with BatchNorm, `features` and `head`. Every plug-in must work with it."""

    def __init__(self, num_classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(16, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, 16)."""
        maps: Tensor = self.body(images)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Blobs:
    """Separable images, 32 px, values in [0, 1]: classes 0 to 2 each raise one color channel, class 3 none."""

    def __init__(self, count: int = 48, size: int = 32, num_classes: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % num_classes
        self._images = 0.3 + 0.2 * torch.rand(count, 3, size, size, generator=generator)
        colored = (self.labels < 3).nonzero().flatten()
        self._images[colored, self.labels[colored]] += 0.25

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) at positions (B,)."""
        return self._images[index]


def model_state(model: nn.Module) -> dict[str, Any]:
    """Copy weights, buffers, modes and gradient flags, to find out later whether a plug-in changed them."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "has_grad": [p.grad is not None for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
    }


def is_same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether two results of `model_state` are equal bit by bit."""
    equal = all(torch.equal(a["tensors"][k], b["tensors"][k]) for k in a["tensors"])
    return equal and all(a[k] == b[k] for k in ("modes", "has_grad", "requires_grad"))


def trained_net(num_classes: int = 3) -> SmallNet:
    """Train SmallNet on Blobs until it classifies all of them correctly."""
    net, data = SmallNet(num_classes), Blobs(num_classes=num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(data.images(torch.arange(len(data)))), data.labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def check_attack(cls: type[Attack], values: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (name, check) for every rule of the contract and every norm of the attack.

    Args:
        values: fields of its Config; they override its quick preset.
    """
    net, data = trained_net(4), Blobs(num_classes=4)  # the targeted DLR loss needs four classes
    images, labels = data.images(torch.arange(len(data))), data.labels
    rng = KeyedRng.of(torch.arange(len(data)), "check")
    config = cls.Config(**{**cls.presets.get("quick", {}), **values})

    def attack(threat: ThreatModel, inputs: Tensor | None = None) -> Tensor:
        inputs = images.clone() if inputs is None else inputs
        with attack_mode(net):
            return cls(config, threat).attack_full_budget(net, inputs, labels, rng).detach()

    def stays_in_threat_model(threat: ThreatModel) -> None:
        adv = attack(threat)
        assert adv.dtype == images.dtype, f"it returned {adv.dtype} for {images.dtype} images"
        threat.check(adv, images, f"attack '{cls.name}'")

    def accuracy_does_not_rise(threat: ThreatModel) -> None:
        with torch.no_grad():
            clean = (net(images).argmax(1) == labels).sum()
            after = (net(attack(threat)).argmax(1) == labels).sum()
        assert after <= clean, f"{after} images are classified correctly after the attack, {clean} before"

    def deterministic(threat: ThreatModel) -> None:
        assert torch.equal(attack(threat), attack(threat)), "two runs with the same seed differ"

    def no_side_effects(threat: ThreatModel) -> None:
        inputs, before, global_rng = images.clone(), model_state(net), torch.get_rng_state()
        attack(threat, inputs)
        assert is_same_state(before, model_state(net)), "it changed the model's weights, buffers or modes"
        assert torch.equal(inputs, images), "it changed its input images in place"
        assert torch.equal(global_rng, torch.get_rng_state()), "it draws from torch's global generator, not from rng"

    def reports_true_success(threat: ThreatModel) -> None:
        with attack_mode(net):
            result = cls(config, threat).attack_early_stop(net, images, labels, rng)
            threat.check(result.adv, images, f"attack '{cls.name}'")
            assert torch.equal(result.success, net(result.adv).argmax(1) != labels), (
                "its success flags disagree with the model"
            )

    def zero_eps_changes_nothing(threat: ThreatModel) -> None:
        adv = attack(replace(threat, eps=0.0))
        assert float((adv - images).abs().max()) <= 1e-6, "it changed images at eps 0"

    checks = (
        *(stays_in_threat_model, accuracy_does_not_rise, deterministic, no_side_effects),
        *(reports_true_success, zero_eps_changes_nothing),
    )
    for norm in cls.norms:
        radius = {"Linf": 0.3, "L2": 10.0, "L1": 300.0, "L0": 3000.0}[norm]  # wide, so that every attack ends soon
        threat = ThreatModel(norm, radius)
        for check in checks:
            yield f"{check.__name__.replace('_', ' ')} ({norm})", lambda c=check, t=threat: c(t)  # type: ignore[misc]


def quick_config(cls: type[Defense]) -> Any:
    """Build a defense's config for the checks: its quick preset with three short epochs and two attack steps."""
    base = {"epochs": 3, "batch_size": 16, "lr": 0.05, "schedule": "constant", "augment": "none"}
    names = {f.name for f in fields(cls.Config)}
    short = {name: 2 for name in names if name.endswith("_epochs") and name != "head_epochs"}
    short |= {"inner_steps": 2} if "inner_steps" in names else {}
    return cls.Config(**{**base, **cls.presets.get("quick", {}), **base, **short})


def train_small(
    cls: type[Defense], config: Any, seed: int = 0, precision: str = "fp32"
) -> tuple[nn.Module, DefenseSetup, list[Any]]:
    """Train a defense on Blobs with the core's training loop.

    Returns:
        The model, its setup, and (stage, epoch, metrics) of every epoch.
    """
    data, net = Blobs(), SmallNet(seed=seed)
    setup = DefenseSetup(
        model=net, threat=ThreatModel("Linf", 0.05), num_classes=3, image_shape=(3, 32, 32),
        train_size=len(data),
        seed=seed,
        required_models={role: FrozenModel(trained_net()) for role in cls(config).requires},
    )  # fmt: skip
    runtime, history = TrainRuntime("cpu", precision, seed), []

    def log(stage: str, epoch: int, metrics: dict[str, float]) -> None:
        history.append((stage, epoch, metrics))

    for stage in cls(config).stages(setup):
        stopwatch = Stopwatch()
        if isinstance(stage, Train):
            run_train(runtime, stage, data, stopwatch, log)
        else:
            setup.precomputed[stage.name] = PrecomputedArray(
                np.concatenate(run_precompute(runtime, stage, data, stopwatch)[1])
            )
    return net, setup, history


def check_defense(cls: type[Defense]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (name, check) for every rule of the contract."""
    done: dict[str, Any] = {}

    def trains_on_blobs() -> None:
        config = quick_config(cls)
        done["first"] = train_small(cls, config)
        history = done["first"][2]
        assert history, "no stage trained for an epoch"

    def metrics_finite() -> None:
        for stage, epoch, metrics in done["first"][2]:
            for name, value in metrics.items():
                assert np.isfinite(value), f"metric '{name}' of stage '{stage}', epoch {epoch + 1} is {value}"

    def loss_decreases() -> None:
        history = done["first"][2]
        last = [metrics["loss"] for stage, _, metrics in history if stage == history[-1][0]]
        assert len(last) < 2 or last[-1] < last[0], f"the last stage's loss went from {last[0]:.4g} to {last[-1]:.4g}"

    def teachers_unchanged() -> None:
        for role, teacher in done["first"][1].required_models.items():
            fresh, state = trained_net().state_dict(), teacher.module.state_dict()
            assert all(torch.equal(fresh[k], state[k]) for k in fresh), f"the '{role}' model was changed"

    def deterministic() -> None:
        again = train_small(cls, quick_config(cls))[0].state_dict()
        first = done["first"][0].state_dict()
        different = [k for k in first if not torch.equal(first[k], again[k])]
        assert not different, f"two runs with the same seed differ in {different[0]}"

    def trains_same_parameters_in_bf16() -> None:
        new = SmallNet(seed=0).state_dict()
        nets = [done["first"][0], train_small(cls, quick_config(cls), precision="bf16")[0]]
        plain, mixed = ({k for k, v in net.state_dict().items() if not torch.equal(v, new[k])} for net in nets)
        assert plain <= mixed, f"in bf16, {min(plain - mixed)} is never trained"

    def passes_declared() -> None:
        stages = cls(quick_config(cls)).stages(done["first"][1])
        undeclared = [s.name for s in stages if s.passes is None]
        assert not undeclared, f"stage '{undeclared[0]}' declares no passes"

    checks = (
        *(trains_on_blobs, metrics_finite, loss_decreases, teachers_unchanged, deterministic),
        *(trains_same_parameters_in_bf16, passes_declared),
    )
    for check in checks:
        yield check.__name__.replace("_", " "), check


def check_plugin(what: str) -> Iterator[tuple[str, str, str, str | None]]:
    """Check a plug-in, given by registered name (NAME:FILE if it takes a file), dotted module or .py file.

    Yields:
        (kind, name, check, problem): problem is None if the check passed.

    Raises:
        RequestError: no plug-in of that name, or the module registers none.
    """
    values: Mapping[str, str] = {}
    if what.partition(":")[0] in discover("attack"):
        cls, values = parse_attack_spec(what)
        what = cls.name
    pairs = [(kind, what) for kind in KINDS if what in discover(kind)]
    if not pairs:
        if not what.endswith(".py") and "." not in what:
            known = [name for kind in KINDS for name in discover(kind)]
            raise unknown_name("defense or attack", what, known)
        pairs = load_plugin_module(what)
    else:
        for kind, name in pairs:
            load_plugin(kind, name)
    if not pairs:
        raise RequestError(f"'{what}' registers no defense and no attack")
    for kind, name in pairs:
        checks = check_attack(ATTACKS.get(name), values) if kind == "attack" else check_defense(DEFENSES.get(name))
        for check, run in checks:
            problem = None
            try:
                run()
            except Exception as err:  # any exception of the plug-in is a finding
                problem = f"{type(err).__name__}: {err}" if not isinstance(err, AssertionError) else str(err)
            yield kind, name, check, problem
