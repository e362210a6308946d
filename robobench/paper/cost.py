"""What a table will cost, every network, stage and attack counted once."""

from __future__ import annotations

import torch

from robobench import estimate
from robobench.paper.reproduce import Scale, requests, training_request
from robobench.plan import Plan, Training
from robobench.planner import make_plan
from robobench.progress import duration
from robobench.request import Request
from robobench.store import Store


def plans(table: str, scale: Scale, base: Request) -> list[tuple[Plan, tuple[str, ...]]]:
    """Plan a table, with the settings that tell its networks apart; missing data become a line of the plan."""
    if table == "times":
        return [(make_plan(training_request(scale, base), dry=True), ())]
    return [
        (make_plan(request, dry=True), group.settings)
        for group, asked in requests(table, scale, base).items()
        for request in asked
    ]


def cost_lines(made: list[tuple[Plan, tuple[str, ...]]]) -> list[str]:
    """Estimate this machine's time for some plans, a line a network, and the sum.

    What the store holds costs nothing, and a stage that several networks share costs once.
    """
    forward: dict[str, float] = {}
    seen: set[str] = set()
    total, out = 0.0, []
    for plan, settings in made:
        torch.set_num_threads(plan.threads)
        for training in plan.order():
            if training.key in seen:
                continue
            seen.add(training.key)
            spent = training_seconds(plan, training, seen)
            total += spent or 0.0
            name = f"{training.name} (seed {training.seed}) on {training.spec.name}, {training.dataset}"
            changed = f" with {', '.join(settings)}" if settings and training in plan.trainings else ""
            out.append(f"train {name}{changed}: {'in the store' if spent is None else duration(spent)}")
        for training, cell, protocol in plan.work():
            attacked = plan.source if protocol == "transfer" and plan.source else training
            key = f"{attacked.key} {cell.recipe()}"
            if key not in seen and cell.attack.cost is not None:
                seen.add(key)
                name = attacked.spec.name
                if name not in forward:
                    forward[name] = estimate.one_forward(plan, attacked)
                total += cell.attack.cost * forward[name] * plan.examples
    out.append(f"estimated on this machine: {duration(total)} in all; attacks end sooner where images fall")
    out += dict.fromkeys(f"missing: {line}" for plan, _ in made for line in plan.missing)
    return out


def training_seconds(plan: Plan, training: Training, seen: set[str]) -> float | None:
    """Estimate what is left to do of a training, and add its stages to `seen`; None where the store has it."""
    store = Store(plan.out)
    if store.find("model", training.folder):
        return None
    return estimate.unpaid(store, estimate.rehearse(plan, training), seen)
