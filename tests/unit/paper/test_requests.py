"""Requests of the paper's tables: ablations, attacks, protocols and substitutes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace

import pytest

from robobench.core.numbers import parse_eps
from robobench.paper import published
from robobench.paper.requests import Scale, group_of, table_requests
from robobench.planning.plan import TrainingJob
from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig, RunConfig
from robobench.plugins.discovery import load_attack, load_defense
from robobench.store.artifacts import hash_recipe
from robobench.training.base import DefenseSetup, FrozenModel, Stage
from tests.helpers.macd import TINY
from tests.helpers.toys import TinyBatchNormNet

MakeJob = Callable[[ExperimentConfig], TrainingJob]


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path))  # CIFAR is not available
    return ExperimentConfig(out=tmp_path / "runs", threads=1)


@pytest.fixture(scope="module")
def macd_job(tmp_path_factory) -> MakeJob:
    """Return MACD's training job of a request. CIFAR is not available, so images are placeholders."""
    jobs: dict[tuple[str, ...], TrainingJob] = {}
    data_dir = tmp_path_factory.mktemp("none")

    def resolve(request: ExperimentConfig) -> TrainingJob:
        key = (request.dataset, request.model, *request.sets)
        if key not in jobs:
            jobs[key] = Planner(replace(request, data_dir=data_dir), dry=True).models.training("macd", 0)
        return jobs[key]

    return resolve


CHANGED = {  # what each table varies, by MACD's own field names
    "5": {"mae_mask_ratio"},
    "6": {"student_patch", "student_mask_ratio"},
    "7": {"attacked_images"},
    "8": {"mask"},
    "9": {"contrastive_only"},
}
VALUES = {
    "5": {(r,) for r in (0.75, 0.8, 0.85, 0.9, 0.95)},
    "6": {(ratio, patch) for ratio in (0.65, 0.7, 0.75, 0.8) for patch in (2, 4, 8, 16)},
    "7": {(True,), (False,)},
    "8": {(False,)},
    "9": {(True,)},
}


@pytest.mark.parametrize("table", CHANGED)
def test_ablation_changes_only_its_table_fields(table, base, macd_job):
    scale = Scale.load("paper")
    (main_table,) = table_requests("2", scale, base).values()
    original = macd_job(main_table[0])
    values = set()
    for group, requests in table_requests(table, scale, base).items():
        assert len({(r.dataset, r.model, r.train_norm, r.epochs, r.examples) for r in requests}) == 1
        for request in requests:
            assert {s for s in request.sets if not s.startswith("run.")} == set(group.settings)
        job = macd_job(requests[0])
        now, was = asdict(job.config), asdict(original.config)
        differing = {name for name in was if now[name] != was[name]}
        assert differing <= CHANGED[table]
        values.add(tuple(now[name] for name in sorted(CHANGED[table])))
        if (group.dataset, group.model) == ("CIFAR-10", "ResNet50"):
            rest = {"config": None}
            assert {**job.recipe, **rest} == {**original.recipe, **rest}
            assert (job.key == original.key) == (not differing)
    assert values == VALUES[table]


def test_ablations_share_autoencoder_and_static_attack(base, macd_job):
    scale = Scale.load("paper")

    def keys(table: str, stage: Stage) -> set[str]:
        by_group = table_requests(table, scale, base).items()
        return {
            hash_recipe(macd_job(requests[0]).stage_recipe(stage)) for g, requests in by_group if g.model == "ResNet50"
        }

    (main_table,) = table_requests("2", scale, base).values()
    job = macd_job(main_table[0])
    setup = DefenseSetup(
        model=TinyBatchNormNet(),
        threat=job.threat,
        num_classes=2,
        image_shape=(3, 8, 8),
        train_size=4,
        required_models={"standard": FrozenModel(TinyBatchNormNet())},
    )
    _, autoencoder, attack, distill, *_ = job.defense(TINY).stages(setup)
    for stage in (autoencoder, attack):
        assert len(keys("6", stage)) == 1
        assert len(keys("7", stage)) == 1
    assert len(keys("5", autoencoder)) == 5 and len(keys("5", attack)) == 1
    assert len(keys("6", distill)) == 16


@pytest.mark.parametrize("scale_name", ["quick", "paper"])
@pytest.mark.parametrize("table", ["2", "9"])
def test_every_number_has_requests_for_both_protocols(table, scale_name, base):
    scale = Scale.load(scale_name)
    cells = {
        group: {
            (name, spec.attack.name, spec.threat.norm, spec.threat.eps, protocol)
            for request in requests
            for spec in Planner(replace(request, dataset="cifar10"), dry=True).attacks
            for name in request.defenses
            for protocol in spec.protocols
        }
        for group, requests in table_requests(table, scale, base).items()
        if group.model == "ResNet50" and group.dataset == "CIFAR-10"
    }
    mapping = published.mapping()
    for r in published.records(table):
        if r["attack"] != "none" and group_of(r, scale) in cells:
            ours, defense = mapping["attacks"][r["attack"]], mapping["defenses"][r["defense"]]
            eps = parse_eps(scale.eps(r["eps"]), ours["norm"])
            for protocol in ("transfer", "white-box"):
                wanted = (defense, ours[protocol], ours["norm"], eps, protocol)
                assert wanted in cells[group_of(r, scale)], r["id"]


def test_tables_1_and_2_use_corrected_models(base):
    for table, model in (("1", "wrn50"), ("2", "resnet50")):
        (requests,) = table_requests(table, Scale.load("paper"), base).values()
        assert {r.model for r in requests} == {model}


def test_paper_scale_has_no_reductions_or_substitutes(base):
    scale = Scale.load("paper")
    for request in next(iter(table_requests("2", scale, base).values())):
        assert (request.examples, request.epochs, request.sets, request.preset) == (None, None, (), "paper")
    assert not [note for note in scale.notes([("CIFAR-10", "ResNet50")]) if "is replaced by" in note]


def test_substitutes_for_cifar100_are_noted(base):
    quick, cifar = Scale.load("quick"), Scale.load("cifar")
    assert "CIFAR-100 is replaced by digits" in quick.notes([("CIFAR-100", "ResNet50")])
    assert "CIFAR-100 is replaced by cifar10" in cifar.notes([("CIFAR-100", "ResNet50")])
    assert {r.dataset for r in next(iter(table_requests("3", cifar, base).values()))} == {"cifar10"}


def test_settings_of_scales_are_config_fields():
    mapping = published.mapping()
    settings = {name for scale in mapping["scales"].values() for name in scale.get("sets", {})}
    settings |= {name for changed in mapping["ablations"].values() for name in changed}
    defenses = set(mapping["defenses"].values())
    for setting in sorted(settings | set(mapping["varied"].values())):
        name, _, field = setting.partition(".")
        config = RunConfig if name == "run" else (load_defense if name in defenses else load_attack)(name).Config
        assert field in {f.name for f in fields(config)}, setting
