"""Every defense beside its published code, as in docs/fidelity.md. Skipped without the fetched repositories.

ROBOBENCH_PUBLISHED=FOLDER pytest tests/parity/test_published.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/fidelity"))
import compare
from cases import CASES, Case
from published import namespace, run_definitions, run_loop

FOLDER = os.environ.get("ROBOBENCH_PUBLISHED", "")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not FOLDER, reason="ROBOBENCH_PUBLISHED names no folder of fetched repositories")
@pytest.mark.parametrize("case", CASES, ids=[f"{case.defense} {dict(case.changes)}" for case in CASES])
def test_defense_equals_published_code(case, float64):
    if not (Path(FOLDER) / case.repository.partition("@")[0].replace("/", "+")).is_dir():
        pytest.skip("not fetched")
    assert max(compare.compare(case, "GN", Path(FOLDER))) < compare.TOLERANCE
    if not case.difference:
        assert max(compare.compare(case, "BN", Path(FOLDER))) < compare.TOLERANCE


SCRIPT = """
import no_such_module

def loss_of(model, x, y, eps, beta):
    adv = x + torch.empty_like(x).uniform_(-eps, eps)
    adv.requires_grad_()
    grad = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)[0]
    adv = (x + STEP * grad.sign()).clamp(0, 1)
    return beta * F.cross_entropy(model(adv.detach()), y)

for epoch in range(1):
    for x, y in iter(loader):
        x = x.cuda()
        loss = loss_of(model, x, y, eps, beta)
        opt.zero_grad()
        loss.backward()
        opt.step()
"""


@pytest.mark.parametrize("beta", [1.0, 1.01])
def test_comparison_finds_a_wrong_weight(beta, tmp_path, float64):
    """A small "published" script of FGSM training: only the right weight agrees."""
    (tmp_path / "me+fgsm").mkdir()
    (tmp_path / "me+fgsm/train.py").write_text(SCRIPT)

    def run(w):
        space = namespace(model=w.student, opt=w.optimizer, eps=0.0, beta=beta, STEP=w.step, loader=w.loader())
        file = w.folder / "me+fgsm/train.py"
        run_loop(file, "loader", run_definitions(file, ["loss_of"], space))

    case = Case("n-fgsm", "me/fgsm@0", run, {"noise": 0.0})
    loss, gradient, weights = compare.compare(case, "BN", tmp_path)
    assert gradient < 1e-12
    assert (max(loss, weights) < compare.TOLERANCE) == (beta == 1)
