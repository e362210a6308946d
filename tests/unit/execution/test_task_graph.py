"""The task graph: every artifact once, after its dependencies, and long chains first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robobench.core.console import Reporter
from robobench.execution.runner import Runner
from robobench.execution.task_graph import build_task_graph, critical_path_first, task_forwards
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    out = tmp_path_factory.mktemp("graph") / "runs"
    request = ExperimentConfig(
        defenses=("iad", "standard", "macd", "rocl"), attacks=("pgd", "fgsm"), eps=("0.1",), threads=1, out=out
    )
    return Runner(*prepare(request), Reporter(-1))


def test_each_artifact_is_one_task_after_dependencies(runner):
    tasks = build_task_graph(runner)
    # iad requires at; standard is the transfer source and, with another seed, the undefended baseline.
    kinds = [task.kind for task in tasks.values()]
    assert (kinds.count("model"), kinds.count("transfer"), kinds.count("evaluations")) == (6, 2, 5 * 2 * 2)
    seen = set()
    for name, task in tasks.items():
        assert set(task.depends_on) <= seen
        seen.add(name)
    by = {(task.group, task.label): task for task in tasks.values()}
    student = by["iad (seed 0)", "training"]
    assert student.depends_on == (by["at (seed 0)", "training"].name,)
    examples = by["transfer examples", "pgd Linf 0.1"]
    assert examples.depends_on == (by["standard (seed 0)", "training"].name,)
    assert by["iad (seed 0)", "pgd Linf 0.1 transfer"].depends_on == (student.name, examples.name)
    assert by["iad (seed 0)", "pgd Linf 0.1 white-box"].depends_on == (student.name,)


def test_task_cost_follows_declared_passes(runner):
    plan = runner.plan
    by = {(task.group, task.label): task_forwards(plan, task) for task in build_task_graph(runner).values()}
    images, epochs, test = plan.train_images, 12, plan.examples
    # AT, 5 inner steps, per image: 6 forwards, 5 input gradients, 1 weight gradient (= 2 forwards).
    assert by["at (seed 0)", "training"] == epochs * images * (6 + 5 + 2)
    assert by["standard (seed 0)", "training"] == epochs * images * 3
    # RoCL, 2 inner steps: 8 forwards, 2 input and 5 weight gradients; then one forward for the features of the head.
    assert by["rocl (seed 0)", "training"] == images * (epochs * (8 + 2 + 10) + 1)
    assert by["at (seed 0)", "training"] < by["iad (seed 0)", "training"] < by["macd (seed 0)", "training"] * 2
    assert by["iad (seed 0)", "pgd Linf 0.1 white-box"] == test * (2 * 20 + 1)
    assert by["iad (seed 0)", "pgd Linf 0.1 transfer"] == test


def test_longest_chain_starts_first(runner):
    template = next(iter(build_task_graph(runner).values()))
    shape = {
        "a": ((), 1.0),
        "b": ((), 4.0),
        "c": (("a",), 2.0),
        "d": (("c",), 3.0),
        "e": (("b", "a"), 1.0),
        "f": ((), 2.0),
    }
    tasks = {
        f"t/{n}": replace(template, kind="t", key=n, depends_on=tuple(f"t/{x}" for x in names))
        for n, (names, _) in shape.items()
    }
    ordered = [task.key for task in critical_path_first(tasks, lambda task: shape[task.key][1])]
    # Chains: a-c-d 6, b-e 5, c-d 5, d 3, f 2, e 1; tasks of equal cost keep their order.
    assert ordered == ["a", "b", "c", "d", "f", "e"]
