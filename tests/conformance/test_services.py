"""Every defense works with every service of the training loop, and a service changes what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from robobench.core.alternating_threat import AlternatingThreat
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import discover
from robobench.testing import Blobs, SmallNet
from robobench.training.sampling import MixedImages
from tests.distributed.services import DEFENSES, train_with_services
from tests.distributed.services import SERVICES as ALL_SERVICES

SERVICES = {
    "ema": {"average": "ema", "average_start": 0.0},
    "awp": {"awp_gamma": 0.01},
    "smoothing": {"label_smoothing": 0.1},
}
ONE_NORM = ("free-at", "fgsm-pgi", "liet")  # keep perturbations from step to step, or know Linf only
WITHOUT_LABELS = {"iad", "mtard", "adaad"}  # learn from teachers only in their quick presets


def train(name, data=None, precision="fp32", **services):
    teachers = [SmallNet(seed=1), SmallNet(seed=2)]
    return train_with_services(name, SmallNet(), teachers, data or Blobs(24), 12, precision, **services)


def changed(one, two):
    return any(not torch.equal(one[name], two[name]) for name in one if name in two)


@pytest.mark.parametrize("name", DEFENSES)
def test_services_change_what_they_should(name):
    plain = train(name)
    results = {service: train(name, **values) for service, values in SERVICES.items()}
    results["extra"] = train(name, MixedImages(Blobs(24), Blobs(30), 0.7))
    results["bf16"] = train(name, precision="bf16")
    for service, result in results.items():
        assert all(value.isfinite().all() for value in result.values()), service
        same = service == "ema" or (service == "smoothing" and name in WITHOUT_LABELS)
        assert changed(plain, result) != same, service
    ema = results["ema"]
    assert any(not torch.equal(value, ema[f"average.{key}"]) for key, value in plain.items())


@pytest.mark.parametrize("name", sorted(set(discover("defense")) - set(DEFENSES)))
def test_newer_defenses_work_with_all_services(name):
    """All at once: averaging, weight perturbation, label smoothing and clipping, on real and extra images in bf16."""
    plain, result = train(name), train(name, MixedImages(Blobs(24), Blobs(30), 0.7), "bf16", **ALL_SERVICES)
    assert all(value.isfinite().all() for value in result.values())
    assert changed(plain, result)
    assert any(not torch.equal(result[key], result[f"average.{key}"]) for key in plain)


@pytest.mark.parametrize("name", sorted(set(discover("defense")) - {"standard", "gaussian", *ONE_NORM}))
def test_every_defense_trains_against_several_norms(name):
    seen = set()

    class Recording(AlternatingThreat):
        @property
        def norm(self):
            seen.add(super().norm)
            return super().norm

    threat = Recording([ThreatModel("Linf", 0.05), ThreatModel("L1", 20.0)])
    teachers = [SmallNet(seed=1), SmallNet(seed=2)]
    result = train_with_services(name, SmallNet(), teachers, Blobs(24), 4, "fp32", threat=threat)
    assert all(value.isfinite().all() for value in result.values())
    assert seen == {"Linf", "L1"} or name == "macd"  # its static attack has 128 images in a batch, and 24 here


@pytest.mark.parametrize("name", ["free-at", "fgsm-pgi"])
def test_kept_perturbations_belong_to_one_norm(name):
    threat = AlternatingThreat([ThreatModel("Linf", 0.05), ThreatModel("L1", 20.0)])
    with pytest.raises(ValueError, match="keeps its perturbations from step to step, which belong to one norm"):
        train_with_services(name, SmallNet(), [], Blobs(24), 12, "fp32", threat=threat)


def test_two_processes_match_one_with_services():
    script = Path(__file__).parents[1] / "distributed" / "services.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
