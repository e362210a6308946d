"""Evaluate, benchmark and diagnose a model that is already in memory. Nothing is stored and nothing is reused.

The same model, images and attacks give the same outcomes as the command line: batches and random numbers are the same.
A stored result is never taken: weights do not identify a module, since two modules with equal weights may compute
different functions.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack, AttackBudget
from robobench.attack_engine.randomized import adapt_model
from robobench.core import provenance
from robobench.core.numbers import DISTANCE_NORMS, NORMS, canonical_norm, parse_eps
from robobench.core.randomness import Randomness
from robobench.core.registry import unknown_name
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.data.image_file import write_image_file
from robobench.data.info import dataset_info
from robobench.errors import RequestError
from robobench.evaluation.accuracy import batch_indices, clean_outcomes, transfer_examples, transfer_outcomes
from robobench.evaluation.diagnostics import Diagnosis, diagnose
from robobench.evaluation.distances import Distances, find_distances, widest
from robobench.evaluation.model_checks import check_unchanged, image_logits, quick_model_checks, tell_about_masking
from robobench.evaluation.source_ensemble import as_source
from robobench.evaluation.tensors import TensorImages, as_module, attack_tensors, combine_examples, device_of, supported
from robobench.planning.attacks import check_one_ball, choose_eot, gradient_free_attacks
from robobench.planning.parsing import build_config, parse_fields, parse_sets
from robobench.planning.request import EVAL_BATCH_SIZE
from robobench.plugins.discovery import parse_attack_spec
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame
from robobench.results.statistics import to_bitstring

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_ATTACKS = ("fgsm", "pgd", "apgd-t")
CHECKED_IMAGES = 128  # of the quick model checks
Model = Callable[[Tensor], Tensor]
Eps = str | float | Sequence[str | float]


@dataclass(frozen=True)
class Evaluation:
    """Rows and per-image outcomes of a model in memory.

    Attributes:
        rows: one row per attack, radius and protocol, with the columns of rows.csv; accuracies are fractions.
        clean: (N,) bool, images classified correctly.
        outcomes: (attack, radius, protocol) -> (N,) bool, images correct when clean and under the attack.
        adversarial: the same keys -> images (N, C, H, W), unchanged where the attack failed; empty unless asked for.
    """

    rows: pd.DataFrame
    clean: Tensor
    outcomes: dict[tuple[str, float, str], Tensor] = field(default_factory=dict)
    adversarial: dict[tuple[str, float, str], Tensor] = field(default_factory=dict)


def make_attacks(
    attacks: str | Sequence[str] | None,
    eps: Eps | None,
    norm: str,
    sets: Sequence[str] = (),
    dataset: str | None = None,
    norms: Sequence[str] = NORMS,
) -> list[Attack]:
    """Return attacks by name at each radius.

    Args:
        attacks: names, or one text with commas; default: FGSM, PGD and targeted APGD.
        eps: radii on the [0, 1] scale, such as 0.5 or "8/255"; default: those of the data set.
        sets: NAME.FIELD=VALUE, as for `--set`.
        norms: those that `norm` may be.

    Raises:
        RequestError: an unknown name, one without a form in this norm, or a wrong or missing radius.
    """
    names = attacks.split(",") if isinstance(attacks, str) else list(attacks or DEFAULT_ATTACKS)
    given = parse_sets(sets)
    out: list[Attack] = []
    for name in dict.fromkeys(name.strip() for name in names):
        cls, values = parse_attack_spec(name)
        own = cls.fixed_norm or canonical_norm(norm, norms)
        config = build_config(cls.Config, {**values, **parse_fields(cls.Config, given.pop(cls.name, {}), name)}, name)
        for radius in _radii(eps, own, dataset):
            threat = ThreatModel(own, radius)
            if refusal := cls.why_unsupported(threat):
                raise RequestError(refusal)
            out.append(cls(config, threat))
    if given:
        raise unknown_name("attack in sets", next(iter(given)), {attack.name for attack in out})
    return out


def _radii(eps: Eps | None, norm: str, dataset: str | None) -> list[float]:
    if eps is None:
        known = dataset_info(dataset).eps if dataset is not None else {}
        if norm not in known:
            raise RequestError(f"eps is missing; give the radius of the {norm} ball, such as eps='8/255' or eps=0.5")
        return list(known[norm])
    if isinstance(eps, str):
        return [parse_eps(part.strip(), norm) for part in eps.split(",")]
    return [parse_eps(value, norm) for value in (eps if isinstance(eps, Sequence) else [eps])]


def read_images(
    images: Tensor | None,
    labels: Tensor | None,
    dataset: str | None,
    data_dir: str | Path | None,
    examples: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the given images and labels, or the first `examples` test images of a data set.

    Raises:
        RequestError: neither or both are given, or the data set is missing.
    """
    if (images is None) != (labels is None) or (images is None) == (dataset is None):
        raise RequestError("give images and labels, or the name of a data set: dataset='cifar10'")
    if images is None or labels is None:
        test = load_dataset(str(dataset), data_dir=data_dir, need_train=False).test
        return test.images(torch.arange(min(examples or len(test), len(test)))), test.labels[: examples or None]
    return images[: examples or None], labels[: examples or None]


def evaluate_model(
    model: Model,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    examples: int | None = None,
    attacks: str | Sequence[str] | None = None,
    norm: str = "Linf",
    eps: Eps | None = None,
    sets: Sequence[str] = (),
    transfer_source: Model | Sequence[Model] | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    device: str | torch.device | None = None,
    keep_adversarial: bool = False,
    save_adversarial: str | Path | None = None,
    eot: int | None = None,
    verdict: str | None = None,
    bpda: Model | None = None,
) -> Evaluation:
    """Attack a model in memory. Its weights, buffers and modes are restored.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K); a module, or a function.
        images, labels: (N, C, H, W) float in [0, 1], (N,) int64; default: the test images of `dataset`.
        attacks, norm, eps, sets, transfer_source: as for `make_attacks`; another model or a list to make examples on.
        examples, device: number of images, where to compute; default: all, where the model is.
        keep_adversarial, save_adversarial: return all adversarial images; FILE.safetensors or .pt for one per image.
        eot, verdict: for random outputs: passes to average over; K/N, misclassified if K of N fresh passes are wrong.
        bpda: differentiable replacement that gives the gradients; verdicts are the model's own.

    Raises:
        RequestError: wrong images, labels, attacks or radii, or the model returns no logits.
    """
    images, labels = read_images(images, labels, dataset, data_dir, examples)
    module, made = as_module(model), make_attacks(attacks, eps, norm, sets, dataset)
    data = TensorImages(images, labels, torch.device(device) if device is not None else device_of(module, images))
    file = None if save_adversarial is None else check_one_ball(Path(save_adversarial), made)
    randomness = Randomness.parse(choose_eot(made) if eot is None else eot, verdict)
    attacked = adapt_model(module, as_module(bpda) if bpda is not None else None, randomness)
    made = made if attacks is not None else supported(made, module, images, torch.device(data.device))
    batches = batch_indices(len(data), batch_size)
    first = batches[0][:CHECKED_IMAGES]
    before = image_logits(attacked, data.images(first))
    clean = torch.cat([clean_outcomes(attacked, data, index, str(data.device)) for index in batches])
    shared = _describe(model, data, first, [attack.threat for attack in made])
    shared |= {"dataset": dataset or "tensors", "clean_bits": to_bitstring(clean)}
    shared |= {"eot": randomness.eot, "verdict": randomness.verdict} if randomness else {}
    sources = [None] if transfer_source is None else [None, as_source(transfer_source, data.images(first))]
    records, result = [], Evaluation(make_frame([]), clean.to(labels.device))
    for attack, source in itertools.product(made, sources):
        values = _attack(attacked, source, attack, data, batches, result, keep_adversarial or file is not None)
        budget = attack.budget.adapted(randomness, type(bpda).__name__ if bpda and source is None else None)
        records.append(_record(attack, budget, {**shared, **values}))
    shared["findings"].append(check_unchanged(before, image_logits(attacked, data.images(first))).record())
    if file is not None:
        found = [(adv, result.outcomes[key]) for key, adv in result.adversarial.items() if key[2] == "white-box"]
        write_image_file(file, combine_examples(images, result.clean, found), labels, str(made[0].threat))
    return Evaluation(make_frame(records), result.clean, result.outcomes, result.adversarial)


def _describe(model: Model, data: TensorImages, first: Tensor, threats: list[ThreatModel]) -> dict[str, Any]:
    """Return what a record says about a model and the images: quick checks on the `first` images, hardware."""
    labels = data.labels[first].to(data.device)
    found = quick_model_checks(as_module(model), data.images(first), labels, threats)
    return {
        "examples": len(data),
        "model": type(model).__name__,
        "findings": [f.record() for f in found],
        "hardware": provenance.hardware(str(data.device)),
    }


def _attack(
    module: nn.Module,
    source: nn.Module | None,
    attack: Attack,
    data: TensorImages,
    batches: list[Tensor],
    result: Evaluation,
    keep: bool,
) -> dict[str, Any]:
    """Run one attack, white-box or on a transfer source, and add its outcomes to `result`; return values of its record.

    A failed attack has its reason there and no outcomes; other attacks continue.
    """
    begun = time.perf_counter()
    key = (attack.name, attack.threat.eps, "transfer" if source is not None else "white-box")
    try:
        if source is None:
            first = batches[0][:CHECKED_IMAGES]
            tell_about_masking(attack, module, data.images(first), data.labels[first].to(data.device))
            adv, left = attack_tensors(module, attack, data, result.clean, len(batches[0]))
        else:
            adv, left = _transfer(module, source, attack, data, result.clean.cpu(), batches)
    except Exception as err:
        reason = " ".join(str(err).split())
        warnings.warn(f"attack '{attack.name}' failed: {reason}", stacklevel=3)
        return {"protocol": key[2], "status": "failed", "reason": reason, "seconds": None}
    result.outcomes[key] = left
    if keep:
        result.adversarial[key] = adv
    seconds = time.perf_counter() - begun
    return {"protocol": key[2], "status": "ok", "seconds": seconds, "robust_bits": to_bitstring(left)}


def _transfer(
    module: nn.Module, source: nn.Module, attack: Attack, data: TensorImages, clean: Tensor, batches: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Attack the source with the full budget; return the images and which stay correct on the model."""
    parts, left = [], []
    for index in batches:
        adv = transfer_examples(source, attack, data, index, str(data.device))
        left.append(transfer_outcomes(module, adv, data.labels[index], clean[index]))
        parts.append(adv.to(data.labels.device))
    return torch.cat(parts), torch.cat(left).to(data.labels.device)


def _record(attack: Attack, budget: AttackBudget, values: dict[str, Any]) -> EvaluationRecord:
    """Return a record as a run writes it; what belongs to a training or to a store is empty."""
    record = {
        **{"training": "in memory", "preset": "", "defense": values["model"], "seed": 0, "selection": "last"},
        **{"is_control": False, "source_digest": None, "weights_digest": None, "precision": "fp32", "reason": ""},
        **{"clean_bits": None, "robust_bits": None, "search_precision": "fp32", "compiled": False},
        "attack": attack.name,
        "attack_version": attack.version,
        "threat_norm": attack.threat.norm,
        "threat_eps": attack.threat.eps,
        "relative_step": attack.relative_step,
        "steps": attack.steps,
        "gradient_free": attack.gradient_free,
        "early_stop": values["protocol"] == "white-box" and attack.early_stop,
        "attack_budget": budget.text,
        "budget_reduced": budget.reduced,
        "budget_standard": budget.standard,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "commit": provenance.commit(),
        **values,
    }
    return cast(EvaluationRecord, record)


def distances(
    model: Model,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    attack: str = "fmn",
    norm: str = "L2",
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    examples: int | None = None,
    sets: Sequence[str] = (),
    batch_size: int = EVAL_BATCH_SIZE,
    device: str | torch.device | None = None,
) -> Distances:
    """Find the distance of each image to its closest adversarial example; `.curve()` gives accuracy against radius.

    Args:
        attack: a minimum-norm attack: fmn, ddn, fab-t or, in L0, sigma-zero.
        norm: L0 is the number of changed values.
        images, labels, dataset, examples, sets, device: as for `evaluate_model`.

    Raises:
        RequestError: another attack, a norm that the attack lacks, or wrong images.
    """
    images, labels = read_images(images, labels, dataset, data_dir, examples)
    module = as_module(model)
    device = torch.device(device) if device is not None else device_of(module, images)
    data = TensorImages(images, labels, device)
    threat = widest(canonical_norm(norm, DISTANCE_NORMS), images)
    (made,) = make_attacks([attack], threat.eps, threat.norm, sets, norms=DISTANCE_NORMS)
    return find_distances(module, made, data, batch_size)


def benchmark(
    model: nn.Module,
    n_examples: int = 10_000,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path | None = None,
    corruptions_data_dir: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    eps: str | float | None = None,
    log_path: str | None = None,
    preprocessing: Any = None,
    aa_state_path: str | Path | None = None,
) -> tuple[float, float]:
    """Return clean accuracy and robust accuracy under AutoAttack, as fractions: RobustBench's function.

    The arguments and their order are RobustBench's. It prints the same two lines, 'Clean accuracy: 95.00%' and
    'Adversarial accuracy: 50.00%'.

    Args:
        model: images in [0, 1] -> logits. It is moved to `device`.
        dataset, threat_model: a name or RobustBench's enum; every data set of robobench, and Linf, L2 or L1.
        to_disk, corruptions_data_dir, log_path, preprocessing, aa_state_path: refused;
            `robobench evaluate --model-info FILE` writes RobustBench's JSON, and resumes. `model_name` is not used.
        data_dir: default: robobench's folder for data sets.

    Raises:
        RequestError: a wrong or unsupported argument, or a missing data set.
    """
    norm, name = getattr(threat_model, "value", threat_model), getattr(dataset, "value", dataset)
    refused: dict[str, Any] = {"to_disk": to_disk or None, "threat_model": norm if norm == "corruptions" else None}
    others = ("corruptions_data_dir", "log_path", "preprocessing", "aa_state_path")
    refused |= dict(zip(others, (corruptions_data_dir, log_path, preprocessing, aa_state_path), strict=True))
    if given := [f"{argument}={value!r}" for argument, value in refused.items() if value is not None]:
        raise RequestError(f"benchmark does not support {given[0]}; use robobench evaluate --model-info FILE")
    if eps is None:
        raise RequestError(f"eps is missing; give the radius of the {norm} ball, such as eps=8/255")
    result = evaluate_model(
        model if device is None else model.to(device),
        dataset=name,
        data_dir=data_dir,
        examples=n_examples,
        attacks="autoattack",
        norm=norm,
        eps=eps,
        batch_size=batch_size,
    )
    if not result.outcomes:
        raise RequestError(f"AutoAttack failed: {result.rows['reason'].iloc[0]}")
    clean = float(result.clean.double().mean())
    robust = float(next(iter(result.outcomes.values())).double().mean())
    print(f"Clean accuracy: {clean:.2%}")
    print(f"Adversarial accuracy: {robust:.2%}")
    return clean, robust


def diagnose_model(
    model: Model,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    examples: int | None = None,
    attacks: str | Sequence[str] | None = None,
    norm: str = "Linf",
    eps: Eps | None = None,
    sets: Sequence[str] = (),
    transfer_source: Model | Sequence[Model] | None = None,
    device: str | torch.device | None = None,
) -> Diagnosis:
    """Look for signs of gradient masking in a model in memory. Arguments as in `evaluate_model`.

    Every gradient-free attack is added to `attacks`.
    """
    images, labels = read_images(images, labels, dataset, data_dir, examples)
    module = as_module(model)
    device = torch.device(device) if device is not None else device_of(module, images)
    data = TensorImages(images, labels, device)
    made = make_attacks(attacks, eps, norm, sets, dataset)
    made += gradient_free_attacks(lambda cls, name: cls.Config(), made)
    source = as_source(transfer_source, images.to(device)) if transfer_source is not None else None
    return diagnose(module, data.images(torch.arange(len(data))), labels.to(device), made, source=source)
