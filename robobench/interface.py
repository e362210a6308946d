"""The Python API: what the command line does, as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.randomized import adapt_model
from robobench.core.console import Reporter
from robobench.core.module_state import attack_mode
from robobench.core.numbers import canonical_norm, parse_eps
from robobench.core.randomness import Randomness
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel, check_unit_range
from robobench.data.image_file import Submission, check_image_file, read_submission
from robobench.errors import RequestError, one_line
from robobench.evaluation.source_ensemble import as_source
from robobench.evaluation.tensors import TensorImages, as_module, device_of
from robobench.execution.load import load as load
from robobench.execution.load import load_external, load_trained
from robobench.execution.run import execute_request
from robobench.in_memory import Evaluation, diagnose_model, evaluate_model, read_images
from robobench.in_memory import benchmark as benchmark
from robobench.in_memory import distances as distances
from robobench.models.checks import try_model
from robobench.models.wrapper import UserModel
from robobench.planning.attacks import gradient_free_attacks, one_threat
from robobench.planning.parsing import build_config
from robobench.planning.planner import Planner
from robobench.planning.request import EVAL_BATCH_SIZE, ExperimentConfig
from robobench.planning.stored_models import use_hub_checkpoint, use_hub_weights
from robobench.plugins.discovery import discover, parse_attack_spec
from robobench.results.rows import make_frame, read_records, read_rows
from robobench.results.union import parse_threats, union_rows
from robobench.store.hub import fetch_store

ArrayLike = Tensor | Any  # a tensor, a numpy array or nested lists of numbers
Texts = str | Sequence[str] | None  # one, or several

if TYPE_CHECKING:
    import pandas as pd

    from robobench.evaluation.corruptions import CorruptionAccuracy
    from robobench.evaluation.diagnostics import Diagnosis
    from robobench.evaluation.score import Score

DIAGNOSED_IMAGES = 128  # test images of a diagnosis by default
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")  # such a name is a file, even if missing


def run(defense: str, **flags: Any) -> pd.DataFrame:
    """Train, time and attack one defense; return one row per cell.

    Args:
        flags: fields of ExperimentConfig, which are the command line's flags.

    Raises:
        RequestError: a name, a value or a file is wrong.
    """
    return compare([defense], **flags)


def compare(defenses: Sequence[str] | None = None, *, verbosity: int = -1, **flags: Any) -> pd.DataFrame:
    """Compare defenses (default: all). What is missing is run, the rest is reused. Arguments as in `run`."""
    chosen = tuple(defenses) if defenses is not None else tuple(discover("defense"))
    return make_frame(execute_request(_request(defenses=chosen, **flags), Reporter(verbosity)))


@overload
def evaluate(
    weights: str | Path | None = None, *, transfer_source: Texts = None, verbosity: int = -1, **flags: Any
) -> pd.DataFrame: ...


@overload
def evaluate(weights: None = None, *, model: Callable[[Tensor], Tensor], **flags: Any) -> Evaluation: ...


def evaluate(
    weights: str | Path | None = None, *, transfer_source: Any = None, verbosity: int = -1, **flags: Any
) -> pd.DataFrame | Evaluation:
    """Attack a model that was trained elsewhere; return one row per cell.

    A model in memory, `evaluate(model=module, images=x, labels=y, eps="8/255", attacks="pgd")`, gives an `Evaluation`:
    rows and per-image outcomes. Its arguments are those of `robobench.in_memory.evaluate_model`. Nothing is stored.

    Args:
        weights: a weights file for the model `model`, or hf:OWNER/REPO; None if its factory loads them.
        transfer_source: MODEL or MODEL=WEIGHTS to make transfer examples on, or a list; default: white-box only.
        flags: fields of ExperimentConfig, which are the command line's flags.

    Raises:
        RequestError: a name, a value or a file is wrong.
    """
    _check_weights(weights, flags)
    if callable(flags.get("model")):
        return evaluate_model(transfer_source=transfer_source, **flags)
    path = Path(weights) if weights is not None else None
    flags["preset"] = flags.get("preset") or "reference"
    protocol = "both" if transfer_source else "white-box"
    request = _request(weights=path, external=True, transfer_source=transfer_source or (), protocol=protocol, **flags)
    return make_frame(execute_request(use_hub_weights(request), Reporter(verbosity)))


def _check_weights(weights: object, flags: dict[str, Any]) -> None:
    """Raise RequestError if a model in memory is given in place of a file, or with one."""
    if callable(weights):
        raise RequestError("the first argument is a weights file; give a model in memory by its name: model=...")
    if weights is not None and callable(flags.get("model")):
        raise RequestError(f"a model in memory has its weights already; leave '{weights}' out")


def _request(**flags: Any) -> ExperimentConfig:
    """Build an ExperimentConfig; lists and single values are accepted where its fields hold tuples of text."""
    for name in ("attacks", "eps", "sets", "plugins", "seeds", "teachers", "track", "slurm", "transfer_source"):
        value = flags.get(name)
        if isinstance(value, (str, int, float)):
            value = (value,)
        if value is not None:
            flags[name] = tuple(v if name == "seeds" else str(v) for v in value)
    flags |= {n: Path(flags[n]) for n in ("data_dir", "out", "save_adversarial") if flags.get(n) is not None}
    for name in ("train_norm", "train_eps"):  # one value, or one for each norm
        if (value := flags.get(name)) is not None:
            flags[name] = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return build_config(ExperimentConfig, flags, "request")  # type: ignore[no-any-return]


def leaderboard(place: str | Path = "runs", union: str | None = None) -> pd.DataFrame:
    """Return the ranked models of a store, a folder of `leaderboards/` or hf:OWNER/REPO; accuracies are fractions.

    Args:
        union: NORM:EPS,NORM:EPS: rank by accuracy under all of these threats at once; see `results.union.union_rows`.
    """
    if union is not None:
        return union_rows(read_records(fetch_store(place, weights=False)), parse_threats(union))
    from robobench.report.leaderboard import rank_models

    return rank_models(read_rows(fetch_store(place, weights=False)))


def diagnose(
    checkpoint: str | Path | None = None,
    *,
    transfer_source: Any = None,
    on_check: Callable[[str], None] = lambda what: None,
    **flags: Any,
) -> Diagnosis:
    """Look for signs of gradient masking in a model. Nothing is stored.

    A model in memory is given as `diagnose(model=module, images=x, labels=y, eps="8/255")`, with the arguments of
    `robobench.in_memory.diagnose_model`.

    Args:
        checkpoint: a weights file (with `model` and the other flags of `evaluate`), the name of a trained model in the
            store `out`, hf:OWNER/REPO, or None if the factory `model` returns a trained one.
        transfer_source: MODEL or MODEL=WEIGHTS, another model or a list of them for the transfer check.
        on_check: called with what begins now; not for a model in memory.

    Raises:
        RequestError: no such model, no many-step attack among `attacks`, or another wrong value.
    """
    from robobench.evaluation import diagnostics
    from robobench.evaluation.near_chance import near_chance_warning

    _check_weights(checkpoint, flags)
    if callable(flags.get("model")):
        return diagnose_model(transfer_source=transfer_source, **flags)
    planner, model, trained = open_model(checkpoint, flags)
    request = planner.request
    texts = (transfer_source,) if isinstance(transfer_source, str) else transfer_source or ()
    helpers = [load_external(planner, planner.models.source(text)) for text in texts]
    reporter = Reporter(0)
    for note in planner.settings.notes:
        reporter.info(f"note: {note}")
    data, device = planner.models.dataset.test, planner.settings.device
    index = torch.arange(min(request.examples or DIAGNOSED_IMAGES, len(data)))
    attacks = [spec.attack for spec in planner.attacks]
    attacks += gradient_free_attacks(lambda cls, name: planner.settings.plugin_config(cls, name, {}), attacks)
    images, labels = data.images(index), data.labels[index].to(device)
    try_model(model.to(device), str(checkpoint or request.model), images)  # a model that fails is one line
    source = as_source(helpers, images) if helpers else None
    found = diagnostics.diagnose(model, images, labels, attacks, source=source, on_check=on_check)
    name, classes = str(checkpoint or request.model), planner.models.dataset.num_classes
    warning = near_chance_warning(name, found.clean_accuracy, labels.cpu(), classes, trained)
    if warning is not None:
        reporter.warning(warning)
    return found


def score(
    submitted: str | Path | Tensor,
    checkpoint: str | Path | None = None,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    verdict: str | None = None,
    **flags: Any,
) -> Score:
    """Score submitted adversarial images on a model; see `evaluation.score.Score`. Nothing is stored.

    Args:
        submitted: a file, or images (N, C, H, W); one for each test image, from the first on.
        checkpoint: as for `diagnose`; None for a model in memory, `model=module`.
        images, labels: for a model in memory; default: the test images of `dataset`.
        verdict: K/N, for random outputs: misclassified if K of N passes are wrong.
        flags: norm, one eps, and the other flags of `evaluate`.

    Raises:
        RequestError: the file holds no images, too many, or other labels than the data; or a wrong value.
    """
    from robobench.evaluation.score import score_images

    _check_weights(checkpoint, flags)
    given = Submission(submitted) if isinstance(submitted, Tensor) else read_submission(check_image_file(submitted))
    adv = given.images
    norm, eps = flags.pop("norm", "Linf"), flags.pop("eps", None)
    if callable(flags.get("model")):
        dataset, examples = flags.pop("dataset", None), flags.pop("examples", None)
        images, labels = read_images(images, labels, dataset, flags.pop("data_dir", None), examples)
        notes, count = list[str](), len(labels)
        model, batch_size = as_module(flags.pop("model")), flags.pop("batch_size", EVAL_BATCH_SIZE)
        device = torch.device(flags.pop("device", None) or device_of(model, images))
        if flags:
            raise RequestError(f"score of a model in memory takes no {', '.join(flags)}; leave it out")
    else:
        planner, model, _ = open_model(checkpoint, flags)
        test, device = planner.models.dataset.test, torch.device(planner.settings.device)
        dataset, examples = planner.request.dataset, planner.request.examples
        index = torch.arange(min(examples or len(adv), len(test)))
        images, labels = test.images(index), test.labels[index]
        batch_size, notes = planner.settings.run.eval_batch_size, [*planner.settings.notes]
        count = min(examples or len(test), len(test))
    if len(adv) < count:
        notes.append(f"{len(adv)} images were submitted for {count} test images; the score is of the first {len(adv)}")
    given.check_labels(labels)
    data, judged = TensorImages(images, labels, device), adapt_model(model, None, Randomness.parse(None, verdict))
    found = score_images(judged.to(device), adv[:examples], data, one_threat(norm, eps, dataset), batch_size)
    return replace(found, notes=(*given.notes, *notes))


def corruptions(
    checkpoint: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    kinds: Sequence[str] | None = None,
    **flags: Any,
) -> CorruptionAccuracy:
    """Classify images under common corruptions: the published ones of a folder, or those generated from a data set.

    A model in memory is given as `corruptions(model=module, folder=...)`. Nothing is stored.

    Args:
        checkpoint: as for `diagnose`.
        folder: CIFAR-10-C, CIFAR-100-C or ImageNet-C, unpacked; default: the test images of `dataset` are corrupted.
        kinds: names of corruptions; default: the 15 of the paper.
        flags: as for `diagnose`, such as examples=1000.

    Raises:
        RequestError: a corruption is missing in the folder, or another wrong value.
    """
    from robobench.data import corruptions
    from robobench.evaluation.corruptions import evaluate_corruptions

    chosen = tuple(kinds) if kinds is not None else corruptions.KINDS
    places = corruptions.find_corruptions(Path(folder).expanduser(), chosen) if folder is not None else {}
    own = {"dataset": corruptions.first_dataset(places)} if places else {}
    module = flags.get("model")
    if callable(module):
        _check_weights(checkpoint, flags)
        flags = {**flags, "model": "cnn"}
    planner, model, _ = open_model(checkpoint, {**flags, **own}, as_module(module) if callable(module) else None)
    examples, data = planner.request.examples, planner.models.dataset
    device = planner.settings.device
    if places:
        parts = corruptions.open_corruptions(places, resolution=data.resolution, device=device)
    else:
        parts = corruptions.generate_corruptions(data.test, kinds=chosen)
    batch_size = planner.settings.run.eval_batch_size
    return evaluate_corruptions(model.to(device), parts, examples=examples, batch_size=batch_size, device=device)


def open_model(checkpoint: str | Path | None, flags: dict[str, Any], model: Any = None) -> tuple[Planner, Any, bool]:
    """Plan a request for one model and load it, unless it is given; return whether it is one of the store, too.

    Args:
        checkpoint: as in `diagnose`. A model of the store brings its data set, unless `flags` name a path.
    """
    from robobench.models.spec import is_factory

    checkpoint, flags = use_hub_checkpoint(checkpoint, flags)
    is_file = checkpoint is not None and (Path(checkpoint).is_file() or Path(checkpoint).suffix in WEIGHT_SUFFIXES)
    if checkpoint is not None and not is_file:
        name = str(flags.get("model", ""))
        model, config = load_trained(flags.get("out", "runs"), str(checkpoint), name if is_factory(name) else None)
        built_by = name if is_factory(name) else config["spec"]["name"]
        own = {"preset": config["preset"], "model": built_by}
        if ":" not in str(flags.get("dataset", "")):
            own["dataset"] = config["dataset"]
        resolution = f"run.attack_resolution={config['resolution']}"
        flags = {**flags, **own, "sets": (*flags.get("sets", ()), resolution)}
    request = _request(external=True, protocol="white-box", **flags)
    planner = Planner(request)
    torch.set_num_threads(planner.settings.threads)
    if model is None:
        model = load_external(planner, planner.models.external(request.model, Path(checkpoint) if checkpoint else None))
    return planner, model, checkpoint is not None and not is_file


def attack(
    name: str,
    model: nn.Module,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    eps: str | float,
    norm: str | float = "Linf",
    seed: int = 0,
    **config: Any,
) -> Tensor:
    """Attack images with the full budget; return adversarial images (B, C, H, W), checked against the ball.

    Args:
        model: (B, C, H, W) -> logits (B, K), or an output that holds these; see `models.wrapper.extract_logits`.
        images: (B, C, H, W) float32 or float64 in [0, 1]: a tensor, an array or a list.
        labels: (B,) whole numbers below K.
        eps: radius on the [0, 1] scale, as a number or '8/255'.
        norm: "Linf" or "L2", or infinity or 2.
        config: fields of the attack's Config, such as steps=50.

    Raises:
        RequestError: an unknown attack or field, a wrong radius, other images or labels, a model that fails.
        ThreatModelError: the attack left the ball.
    """
    images, labels = _to_tensors(images, labels)
    model = _usable_model(model, images, labels)
    cls, values = parse_attack_spec(name)
    norm = cls.fixed_norm or canonical_norm(norm)
    threat = ThreatModel(norm, parse_eps(eps, norm))
    refusal = cls.why_unsupported(threat)
    if refusal:
        raise RequestError(refusal)
    made: Attack = cls(build_config(cls.Config, {**values, **config}, name), threat)
    rng = KeyedRng.of(torch.arange(len(images), device=images.device), "attack", name, seed)
    with attack_mode(model):
        adv = made.attack_full_budget(model, images, labels, rng).detach()
    threat.check(adv, images, f"attack '{name}'")
    return adv


def _to_tensors(images: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Convert images and labels to tensors on one device; raises RequestError."""
    tensors = []
    for what, value in (("images", images), ("labels", labels)):
        try:
            tensors.append(torch.as_tensor(value))
        except (TypeError, ValueError, RuntimeError) as err:
            raise RequestError(f"{what} must be a tensor, an array or a list of numbers: {one_line(err)}") from None
    images, labels = tensors
    if images.dim() != 4:
        raise RequestError(f"images must be (B, C, H, W), got {tuple(images.shape)}; a single one: images[None]")
    if images.dtype not in (torch.float32, torch.float64):
        how = "images / 255" if images.dtype == torch.uint8 else "images.float()"
        raise RequestError(f"images must be float32 in [0, 1], got {images.dtype}; an eps ball needs both: {how}")
    check_unit_range(images)
    if labels.shape != images.shape[:1] or labels.dtype.is_floating_point or labels.dtype.is_complex:
        raise RequestError(
            f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}; one class per image"
        )
    return images, labels.to(images.device, torch.int64)


def _usable_model(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Return a model that maps the images to logits: the model itself, or wrapped if its output holds logits.

    Raises:
        RequestError: it fails, or a label has no logit.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"model must be a torch.nn.Module, got {type(model).__name__}; wrap it in one")
    if len(images) == 0:
        return model
    with torch.no_grad(), torch.random.fork_rng(), attack_mode(model):
        given = images[:1].clone()
        try:
            logits = model(given)
        except Exception:  # `try_model` says why
            logits = None
        if not isinstance(logits, Tensor) or logits.dim() != 2 or not torch.equal(given, images[:1]):
            model = UserModel(model)
            logits, _ = try_model(model, "given", images[:1])
    classes, low, high = logits.shape[1], int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise RequestError(f"labels must be 0 to {classes - 1}, got {low} to {high}: the model gives {classes} logits")
    return model
