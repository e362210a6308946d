"""The contract of a plug-in, checked on small networks and images: for ours and for a stranger's.

A failed check raises AssertionError with one sentence. `robobench check` prints a line for each.
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
    """Two convolutions with BatchNorm, `features` and `head`: the smallest network every plug-in must work with."""

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
        """(B, 3, H, W) -> (B, 16)."""
        maps: Tensor = self.body(images)
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Blobs:
    """Separable images: each class raises one color channel, a fourth none. 32 px, values in [0, 1]."""

    def __init__(self, count: int = 48, size: int = 32, num_classes: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % num_classes
        self._images = 0.3 + 0.2 * torch.rand(count, 3, size, size, generator=generator)
        colored = (self.labels < 3).nonzero().flatten()
        self._images[colored, self.labels[colored]] += 0.25

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """(B,) -> (B, 3, H, W)."""
        return self._images[index]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Copy everything about a network that a caller could find changed."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "grads": [p.grad is None for p in model.parameters()],
        "wants": [p.requires_grad for p in model.parameters()],
    }


def same_state(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Compare two copies bit by bit."""
    equal = all(torch.equal(a["state"][k], b["state"][k]) for k in a["state"])
    return equal and all(a[k] == b[k] for k in ("modes", "grads", "wants"))


def trained_net(num_classes: int = 3) -> SmallNet:
    """Train the small network on the blobs until it is right on all of them."""
    net, data = SmallNet(num_classes), Blobs(num_classes=num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(data.images(torch.arange(len(data)))), data.labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def check_attack(cls: type[Attack], values: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the checks of an attack, one for each thing the contract asks, on every norm it has.

    Args:
        values: fields of its Config, laid over its quick preset.
    """
    net, data = trained_net(4), Blobs(num_classes=4)  # four: what the targeted DLR loss needs
    images, labels = data.images(torch.arange(len(data))), data.labels
    rng = KeyedRng.of(torch.arange(len(data)), "check")
    config = cls.Config(**{**cls.presets.get("quick", {}), **values})

    def perturb(threat: ThreatModel) -> Tensor:
        with attack_mode(net):
            return cls(config, threat).attack_full_budget(net, images.clone(), labels, rng).detach()

    def in_threat_model(threat: ThreatModel) -> None:
        adv = perturb(threat)
        assert adv.dtype == images.dtype, f"it returns {adv.dtype} for {images.dtype} images"
        threat.check(adv, images, f"attack '{cls.name}'")

    def accuracy_not_up(threat: ThreatModel) -> None:
        with torch.no_grad():
            clean = (net(images).argmax(1) == labels).sum()
            after = (net(perturb(threat)).argmax(1) == labels).sum()
        assert after <= clean, f"{after} images are right after the attack, {clean} before"

    def same_twice(threat: ThreatModel) -> None:
        assert torch.equal(perturb(threat), perturb(threat)), "two runs from one seed differ"

    def leaves_no_trace(threat: ThreatModel) -> None:
        kept, before, rng = images.clone(), state_of(net), torch.get_rng_state()
        perturb(threat)
        assert same_state(before, state_of(net)), "it changed the network's weights, buffers or modes"
        assert torch.equal(kept, images), "it changed the images it was given"
        assert torch.equal(rng, torch.get_rng_state()), "it draws from torch's global generator, not from noise"

    def verdicts_true(threat: ThreatModel) -> None:
        with attack_mode(net):
            found = cls(config, threat).attack_early_stop(net, images, labels, rng)
            threat.check(found.adv, images, f"attack '{cls.name}'")
            assert torch.equal(found.success, net(found.adv).argmax(1) != labels), "a verdict is not the model's"

    def zero_radius(threat: ThreatModel) -> None:
        adv = perturb(replace(threat, eps=0.0))
        assert float((adv - images).abs().max()) <= 1e-6, "at eps 0 the images still move"

    for norm in cls.norms:
        threat = ThreatModel(norm, 0.3 if norm == "Linf" else 10.0)  # wide enough that every attack ends soon
        for check in (in_threat_model, accuracy_not_up, same_twice, leaves_no_trace, verdicts_true, zero_radius):
            yield f"{check.__name__.replace('_', ' ')} ({norm})", lambda c=check, t=threat: c(t)  # type: ignore[misc]


def quick_config(cls: type[Defense]) -> Any:
    """Build a defense's config for the small check: its quick preset, three short epochs."""
    base = {"epochs": 3, "batch_size": 16, "lr": 0.05, "schedule": "constant", "augment": "none"}
    names = {f.name for f in fields(cls.Config)}
    short = {name: 2 for name in names if name.endswith("_epochs") and name != "head_epochs"}
    return cls.Config(**{**base, **cls.presets.get("quick", {}), **base, **short})


def train_small(
    cls: type[Defense], config: Any, seed: int = 0, precision: str = "fp32"
) -> tuple[nn.Module, DefenseSetup, list[Any]]:
    """Train a defense on the blobs through the core's own loop; returns the network, setup and histories."""
    data, net = Blobs(), SmallNet(seed=seed)
    setup = DefenseSetup(
        model=net, threat=ThreatModel("Linf", 0.05), num_classes=3, image_shape=(3, 32, 32),
        train_size=len(data),
        seed=seed,
        required_models={role: FrozenModel(trained_net()) for role in cls(config).requires},
    )  # fmt: skip
    engine, history = TrainRuntime("cpu", precision, seed), []

    def log(stage: str, epoch: int, metrics: dict[str, float]) -> None:
        history.append((stage, epoch, metrics))

    for stage in cls(config).stages(setup):
        watch = Stopwatch()
        if isinstance(stage, Train):
            run_train(engine, stage, data, watch, log)
        else:
            setup.precomputed[stage.name] = PrecomputedArray(
                np.concatenate(run_precompute(engine, stage, data, watch)[1])
            )
    return net, setup, history


def check_defense(cls: type[Defense]) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give the checks of a defense."""
    done: dict[str, Any] = {}

    def trains_on_blobs() -> None:
        config = quick_config(cls)
        done["first"] = train_small(cls, config)
        history = done["first"][2]
        assert history, "no stage trained an epoch"

    def metrics_finite() -> None:
        for stage, epoch, metrics in done["first"][2]:
            for name, value in metrics.items():
                assert np.isfinite(value), f"metric '{name}' of stage '{stage}', epoch {epoch + 1} is {value}"

    def loss_falls() -> None:
        history = done["first"][2]
        last = [metrics["loss"] for stage, _, metrics in history if stage == history[-1][0]]
        assert len(last) < 2 or last[-1] < last[0], f"the last stage's loss went from {last[0]:.4g} to {last[-1]:.4g}"

    def teachers_unchanged() -> None:
        for role, teacher in done["first"][1].required.items():
            fresh, state = trained_net().state_dict(), teacher.module.state_dict()
            assert all(torch.equal(fresh[k], state[k]) for k in fresh), f"the '{role}' network was changed"

    def same_twice() -> None:
        again = train_small(cls, quick_config(cls))[0].state_dict()
        first = done["first"][0].state_dict()
        differs = [k for k in first if not torch.equal(first[k], again[k])]
        assert not differs, f"two runs from one seed differ in {differs[0]}"

    def trains_as_much_in_bf16() -> None:
        new = SmallNet(seed=0).state_dict()
        nets = [done["first"][0], train_small(cls, quick_config(cls), precision="bf16")[0]]
        plain, mixed = ({k for k, v in net.state_dict().items() if not torch.equal(v, new[k])} for net in nets)
        assert plain <= mixed, f"under bf16 {min(plain - mixed)} is never trained"

    def passes_declared() -> None:
        stages = cls(quick_config(cls)).stages(done["first"][1])
        silent = [s.name for s in stages if s.passes is None]
        assert not silent, f"stage '{silent[0]}' declares no passes"

    checks = (
        *(trains_on_blobs, metrics_finite, loss_falls, teachers_unchanged, same_twice),
        *(trains_as_much_in_bf16, passes_declared),
    )
    for check in checks:
        yield check.__name__.replace("_", " "), check


def check_plugin(what: str) -> Iterator[tuple[str, str, str, str | None]]:
    """Check a plug-in by registered name (with its argument, as NAME:FILE), dotted module or .py file.

    Yields:
        (kind, name, check, problem): problem is None where the check holds.

    Raises:
        RequestError: nothing of that name, or the module registers nothing.
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
            except Exception as err:  # whatever a stranger's code raises is the finding
                problem = f"{type(err).__name__}: {err}" if not isinstance(err, AssertionError) else str(err)
            yield kind, name, check, problem
