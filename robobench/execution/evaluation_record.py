"""The record of a cell before its evaluation: every field except the outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from robobench.attack_engine.base import Attack
from robobench.core import provenance
from robobench.execution.context import RunContext
from robobench.planning.plan import Cell, Plan, PlannedModel
from robobench.results.records import EvaluationRecord, Protocol


def uses_bf16_search(attack: Attack, protocol: Protocol, precision: str) -> bool:
    """Return whether an attack's gradient steps run in bfloat16."""
    if protocol != "white-box" or precision != "bf16":
        return False
    return attack.supports_bf16_search or any(part.supports_bf16_search for part in attack.components)


def _digests(context: RunContext, models: Sequence[PlannedModel]) -> dict[tuple[str, str], str]:
    """Return the digest of the weights of every model that was trained."""
    return {m.identity: context.weights_digest(m) for m in models if m.key not in context.failures}


def _source_digest(context: RunContext, sources: Sequence[PlannedModel]) -> str | None:
    """Return the digest of the weights of the transfer sources; None if there is none or one was not trained."""
    known = sources and all(source.key not in context.failures for source in sources)
    return context.digest_of(sources) if known else None


def _computes_the_same(model: PlannedModel, source: PlannedModel, digests: Mapping[tuple[str, str], str]) -> bool:
    """Return whether two models have the same weights and, where they are known, the same logits."""
    logits = [other.recipe.get("logits") for other in (model, source)]
    same_logits = None in logits or logits[0] == logits[1]
    return same_logits and digests.get(model.identity, "") == digests.get(source.identity)


def budget_fields(plan: Plan, attack: Attack, protocol: Protocol) -> dict[str, Any]:
    """Return the fields of an attack's budget."""
    bpda = plan.bpda.name.removeprefix("external:") if plan.bpda and protocol == "white-box" else None
    budget = attack.budget.adapted(plan.randomness, bpda)
    return {
        "attack_budget": budget.text,
        "budget_reduced": budget.reduced,
        "budget_standard": budget.standard,
    }


def blank_record(context: RunContext, cell: Cell, key: str) -> EvaluationRecord:
    """Return a cell's record with status "failed" and no outcomes."""
    plan, model, attack, protocol = context.plan, cell.model, cell.spec.attack, cell.protocol
    sources = plan.transfer_sources if protocol == "transfer" else ()
    digests = _digests(context, (model, *sources))
    bf16_search = uses_bf16_search(attack, protocol, plan.precision)
    trained_against = model.threat.recipe() if model.threat else {"norm": None, "eps": None}
    record: dict[str, Any] = {
        "key": key,
        "training": model.folder,
        "dataset": model.dataset,
        "data_digest": plan.dataset.test_digest,
        "model": model.spec.name,
        "image_size": model.spec.image_size,
        "resolution": plan.dataset.resolution,
        "stem": model.spec.stem,
        "interpolation": model.spec.interpolation,
        "preset": plan.preset,
        "config_digest": model.config_digest,
        "defense": model.name,
        "defense_version": model.version,
        "train_norm": trained_against["norm"],
        "train_eps": trained_against["eps"],
        "attack": attack.name,
        "attack_version": attack.version,
        "threat_norm": cell.spec.threat.norm,
        "threat_eps": cell.spec.threat.eps,
        "relative_step": attack.relative_step,
        "steps": attack.steps,
        "gradient_free": attack.gradient_free,
        "early_stop": protocol == "white-box" and attack.early_stop,
        **budget_fields(plan, attack, protocol),
        "search_precision": "bf16" if bf16_search else "fp32",
        "protocol": protocol,
        "source_digest": _source_digest(context, sources),
        "weights_digest": digests.get(model.identity),
        "own_source": any(_computes_the_same(model, source, digests) for source in sources),
        "seed": model.seed,
        "selection": model.selection,
        "examples": plan.examples,
        "precision": plan.precision,
        "compiled": model.compiled,
        "threads": plan.threads,
        "hardware": provenance.hardware(plan.device, plan.devices),
        "torch_version": torch.__version__,
        "commit": provenance.commit(),
        "is_control": plan.is_control(model),
        "status": "failed",
        "reason": "",
        "clean_bits": None,
        "robust_bits": None,
        "seconds": None,
    }
    if len(sources) > 1:
        record["sources"] = [{"training": s.folder, "weights_digest": digests.get(s.identity)} for s in sources]
    if plan.randomness is not None:
        record["eot"], record["verdict"] = plan.randomness.eot, plan.randomness.verdict
    if plan.bpda is not None and protocol == "white-box":
        record["bpda"] = plan.bpda.name
    return cast(EvaluationRecord, record)
