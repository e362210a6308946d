"""The Python interface: what the command line does, as functions that return pandas DataFrames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robobench import launch, plugins, processes, results
from robobench.errors import RequestError
from robobench.inner import frozen
from robobench.interrupts import Interrupted
from robobench.planner import Planner, make_plan
from robobench.progress import Reporter, Silent
from robobench.provenance import resolve_device
from robobench.randomness import Noise
from robobench.request import Request, make
from robobench.runner import Runner
from robobench.store import WEIGHT_FILES, Store
from robobench.threat import ThreatModel, canonical_norm, check_unit_range, parse_eps

if TYPE_CHECKING:
    import pandas as pd

    from robobench.doctor import Diagnosis
    from robobench.plan import Plan

DIAGNOSED = 128  # test images a diagnosis looks at, unless told
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")  # a missing file is named as one


def work(request: Request, reporter: Reporter, check: Callable[[Plan], None] | None = None) -> list[dict[str, Any]]:
    """Carry out a request, rewrite rows.csv, and return the records of the networks it asked for.

    `check` may refuse the plan before anything is made.

    Over several devices, this process starts one for each and waits; under torchrun it is one of them, and only the
    first one returns records.

    Raises:
        RequestError: the request is wrong; nothing was created.
        StorageError: the store cannot be written; what is finished stays, and the same request goes on from it.
        ProcessError: one of several processes died.
        ExecutorError: a cluster cannot go on; likewise.
    """
    alone = processes.count() == 1
    if alone and launch.outside() > 1:
        device = resolve_device(request.device)
        launch.devices(request.devices, device)
        return launch.join(device, partial(_in_step, request, reporter.verbosity, check))  # type: ignore[no-any-return]
    plan = make_plan(request)
    if check is not None:
        check(plan)
    with _pool(request, plan, reporter) as spread:
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise RequestError(
                f"--out '{plan.out}' cannot be written ({err.strerror}); choose another folder"
            ) from None
        runner = Runner(plan, reporter)
        if alone and plan.devices > 1:
            settled = replace(request, threads=plan.threads)
            launch.spawn(plan.device, plan.devices, partial(_in_step, settled, reporter.verbosity, None))
            wanted = {runner.key(*item) for item in plan.work()}
            return [r for r in results.records(plan.out, mend=runner.store) if r["key"] in wanted]
        for note in plan.notes:
            reporter.note(f"note: {note}")
        runner.announce()
        try:
            if spread is None:
                runner.train_all()
                wanted = runner.evaluate_all()
            else:
                wanted = spread(runner)
        except (KeyboardInterrupt, Interrupted):
            processes.from_first(partial(results.rewrite, runner.store))
            raise
        if not processes.first():
            return []
        return [record for record in results.rewrite(runner.store) if record["key"] in wanted]


def _pool(
    request: Request, plan: Plan, reporter: Reporter
) -> AbstractContextManager[Callable[[Runner], set[str]] | None]:
    """Return what carries the work out elsewhere, held open while it does; None: this process does it."""
    if request.executor == "serial":
        return nullcontext()
    from robobench import cluster

    return cluster.connected(request, plan, reporter)


def _in_step(
    request: Request, verbosity: int, check: Callable[[Plan], None] | None, device: str
) -> list[dict[str, Any]]:
    """Carry out a request as one of several processes, on its own device."""
    return work(replace(request, device=device), Reporter(verbosity) if processes.first() else Silent(), check)


def execute(request: Request, reporter: Reporter | None = None) -> pd.DataFrame:
    """Carry out a request as `work` does; return its rows."""
    return results.frame(work(request, reporter or Reporter(-1)))


def run(defense: str, **flags: Any) -> pd.DataFrame:
    """Train, clock and attack one defense; keyword arguments are Request's fields (the CLI's flags).

    Raises:
        RequestError: a name, a value or a file of the request is wrong.
    """
    return compare([defense], **flags)


def compare(defenses: Sequence[str] | None = None, *, verbosity: int = -1, **flags: Any) -> pd.DataFrame:
    """Put defenses side by side (all of them by default): run what is missing, reuse the rest."""
    chosen = tuple(defenses) if defenses is not None else tuple(plugins.found("defense"))
    return execute(_request(defenses=chosen, **flags), Reporter(verbosity))


def evaluate(
    weights: str | Path | None = None, *, source: str | None = None, verbosity: int = -1, **flags: Any
) -> pd.DataFrame:
    """Attack a network that somebody else trained; `source` is MODEL or MODEL=WEIGHTS for transfer."""
    path = Path(weights) if weights is not None else None
    protocol = "both" if source else "white-box"
    request = _request(weights=path, external=True, source=source, protocol=protocol, **flags)
    return execute(request, Reporter(verbosity))


def _request(**flags: Any) -> Request:
    """Make a Request, taking lists and plain numbers where the fields hold tuples of text."""
    for name in ("attacks", "eps", "sets", "plugins", "seeds", "teachers"):
        value = flags.get(name)
        if isinstance(value, (str, int, float)):
            value = (value,)
        if value is not None:
            flags[name] = tuple(v if name == "seeds" else str(v) for v in value)
    for name in ("data_dir", "out"):
        if flags.get(name) is not None:
            flags[name] = Path(flags[name])
    if flags.get("train_eps") is not None:
        flags["train_eps"] = str(flags["train_eps"])
    return make(Request, flags, "request")  # type: ignore[no-any-return]


def leaderboard(place: str | Path = "runs") -> pd.DataFrame:
    """Return the ranked networks of a store or a folder of `leaderboards/`; figures are fractions."""
    from robobench import report

    return report.board(results.read(Path(place)))


def load(store: str | Path, name: str, *, device: str = "cpu", factory: str | None = None) -> nn.Module:
    """Load a trained network, in eval mode: images (B, 3, H, W) in [0, 1] -> logits (B, K).

    Args:
        name: a defense, if the store holds one network of it, or the name of a network's folder.
        factory: the FILE.py:FUNCTION the network was made by, where a function of yours did; a store cannot name
            the code to be run.

    Raises:
        RequestError: no such network, or several.
        ArtifactError: its files do not match their digests.
    """
    return stored(store, name, factory)[0].to(device)


def stored(
    store: str | Path, name: str, factory: str | None = None, selection: str = "last"
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a trained network as `load` does, with its config beside it; `selection` says which of its epochs."""
    from safetensors.torch import load_file

    from robobench import models

    place = Store(Path(store))
    configs = {}
    for folder in place.manifests("model"):
        place.verify(folder, "config.json")
        configs[folder.name] = json.loads((folder / "config.json").read_text())
    fitting = [n for n, config in configs.items() if name in (n, config["defense"])]
    if len(fitting) != 1:
        what = f"{len(fitting)} networks" if fitting else "no network"
        options = ", ".join(fitting or configs) or "nothing yet"
        raise RequestError(f"'{store}' holds {what} called '{name}'; name one of: {options}")
    folder = place.folder("model", fitting[0])
    place.verify(folder)
    spec = models.ModelSpec.stored(configs[fitting[0]]["spec"])
    if models.is_factory(spec.name):
        if factory is None:
            raise RequestError(
                f"the network '{fitting[0]}' was made by your function '{spec.name}'; to let it run, "
                "name it: load(..., factory='FILE.py:FUNCTION')"
            )
        spec = replace(spec, name=factory)
    model = models.build(spec)
    file = folder / WEIGHT_FILES[selection]
    if not file.is_file():
        raise RequestError(f"the weights of '{fitting[0]}' are not in '{store}'; train the network again")
    model.load_state_dict(load_file(file))
    return model.eval(), configs[fitting[0]]


def diagnose(checkpoint: str | Path | None = None, *, source: str | None = None, **flags: Any) -> Diagnosis:
    """Look for signs of gradient masking in a network; writes nothing.

    Args:
        checkpoint: a weights file (with `model` and the other flags of `evaluate`), the name of a trained network in
            the store `out`, or None where the factory `model` returns a trained one.
        source: MODEL or MODEL=WEIGHTS, another network for the transfer check.

    Raises:
        RequestError: no such network; an attack set without a many-step attack; another wrong value.
    """
    from robobench import models
    from robobench.doctor import diagnose as examine

    trained = checkpoint is not None and not Path(checkpoint).is_file() and Path(checkpoint).suffix not in WEIGHTS
    if trained:
        typed = str(flags.get("model", ""))
        model, config = stored(flags.get("out", "runs"), str(checkpoint), typed if models.is_factory(typed) else None)
        given = {"dataset": config["dataset"], "preset": config["preset"], "model": config["spec"]["name"]}
        flags = {**flags, **given}
        flags["sets"] = (*flags.get("sets", ()), f"run.attack_resolution={config['resolution']}")
    request = _request(external=True, protocol="white-box", **flags)
    planner = Planner(request)
    torch.set_num_threads(planner.threads)

    def external(name: str, weights: Path | None, *, beside: bool = False) -> nn.Module:
        spec = planner.external(name, weights, beside=beside).spec
        network = models.build(spec)
        if weights is not None:
            models.load_weights(network, weights)
        return network.to(planner.device).eval()

    if not trained:
        model = external(request.model, Path(checkpoint) if checkpoint is not None else None)
    other = None
    if source is not None:
        name, _, file = source.partition("=")
        other = external(name, Path(file) if file else None, beside=True)
    count = min(request.examples or DIAGNOSED, len(planner.dataset.test))
    index = torch.arange(count)
    images, labels = planner.dataset.test.images(index), planner.dataset.test.labels[index].to(planner.device)
    attacks = [*(cell.attack for cell in planner.cells), *planner.gradient_free()]
    return examine(model.to(planner.device), images, labels, attacks, source=other)


def attack(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: str | float,
    norm: str = "Linf",
    seed: int = 0,
    **config: Any,
) -> Tensor:
    """Attack images with the full budget and return them: (B, C, H, W) in [0, 1], checked against the ball.

    Args:
        eps: radius on the [0, 1] scale, as a number or '8/255'.
        config: fields of the attack's Config, such as steps=50.

    Raises:
        RequestError: an unknown attack or field, a wrong radius, images outside [0, 1].
        ThreatModelError: the attack left the ball.
    """
    check_unit_range(images)
    if images.dtype not in (torch.float32, torch.float64):
        raise RequestError(
            f"images must be float32, got {images.dtype}; an eps ball needs its precision: images.float()"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise RequestError(
            f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}; one class an image"
        )
    cls, values = plugins.attack_and_values(name)
    norm = cls.own_norm or canonical_norm(norm)
    threat = ThreatModel(norm, parse_eps(eps, norm))
    refusal = cls.refuses(threat)
    if refusal:
        raise RequestError(refusal)
    made = cls(make(cls.Config, {**values, **config}, name), threat)
    noise = Noise.of(torch.arange(len(images), device=images.device), "attack", name, seed)
    with frozen(model):
        adv = made.perturb(model, images, labels, noise).detach()
    threat.check(adv, images, f"attack '{name}'")
    return adv
