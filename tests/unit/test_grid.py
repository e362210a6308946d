"""A plan as a graph: every artefact once, after what it needs; long chains first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robobench.core.console import Reporter
from robobench.execution.evaluation_job import Runner
from robobench.execution.task_graph import build_task_graph, critical_path_first, task_forwards
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    out = tmp_path_factory.mktemp("grid") / "runs"
    request = ExperimentConfig(
        defenses=("iad", "standard", "macd", "rocl"), attacks=("pgd", "fgsm"), eps=("0.1",), threads=1, out=out
    )
    return Runner(make_plan(request), Reporter(-1))


def test_every_artefact_of_a_plan_is_one_task_after_what_it_needs(runner):
    tasks = build_task_graph(runner)
    # iad needs at; standard is the source and, with another seed, the control.
    kinds = [task.kind for task in tasks.values()]
    assert (kinds.count("model"), kinds.count("transfer"), kinds.count("evaluations")) == (6, 2, 5 * 2 * 2)
    seen = set()
    for name, task in tasks.items():
        assert set(task.depends_on) <= seen
        seen.add(name)
    by = {(task.network, task.label): task for task in tasks.values()}
    student = by["iad (seed 0)", "training"]
    assert student.depends_on == (by["at (seed 0)", "training"].name,)
    examples = by["transfer examples", "pgd Linf 0.1"]
    assert examples.depends_on == (by["standard (seed 0)", "training"].name,)
    assert by["iad (seed 0)", "pgd Linf 0.1 transfer"].depends_on == (student.name, examples.name)
    assert by["iad (seed 0)", "pgd Linf 0.1 white-box"].depends_on == (student.name,)


def test_the_work_of_a_task_is_what_its_method_declares(runner):
    plan = runner.plan
    by = {(task.network, task.label): task_forwards(plan, task) for task in build_task_graph(runner).values()}
    images, epochs, test = plan.train_images, 12, plan.examples
    # AT, 5 inner steps: 6 forwards, 5 backwards to the input and one (two forwards) to the weights an image.
    assert by["at (seed 0)", "training"] == epochs * images * (6 + 5 + 2)
    assert by["standard (seed 0)", "training"] == epochs * images * 3
    # RoCL, 2 inner steps: 8 forwards, 2 and 5 backwards; then 20 epochs of one forward for the head.
    assert by["rocl (seed 0)", "training"] == images * (epochs * (8 + 2 + 10) + 20)
    assert by["at (seed 0)", "training"] < by["iad (seed 0)", "training"] < by["macd (seed 0)", "training"] * 2
    assert by["iad (seed 0)", "pgd Linf 0.1 white-box"] == test * (2 * 20 + 1)
    assert by["iad (seed 0)", "pgd Linf 0.1 transfer"] == test


def test_the_head_of_the_longest_chain_goes_first(runner):
    some = next(iter(build_task_graph(runner).values()))
    shape = {
        "a": ((), 1.0),
        "b": ((), 4.0),
        "c": (("a",), 2.0),
        "d": (("c",), 3.0),
        "e": (("b", "a"), 1.0),
        "f": ((), 2.0),
    }
    tasks = {
        f"t/{n}": replace(some, kind="t", key=n, needs=tuple(f"t/{x}" for x in needs))
        for n, (needs, _) in shape.items()
    }
    ordered = [task.key for task in critical_path_first(tasks, lambda task: shape[task.key][1])]
    # Chains: a-c-d 6, b-e 5, c-d 5, d 3, f 2, e 1; equal ones as they stood.
    assert ordered == ["a", "b", "c", "d", "f", "e"]
