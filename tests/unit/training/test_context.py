"""Settings of torch.compile for trainings."""

from __future__ import annotations

import pytest
import torch

from robobench.training.context import configure_compiler


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # torch's own
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    torch._dynamo.reset()
    configure_compiler()


def test_later_variants_are_compiled_too():
    """A grid of trainings has more variants than the 8 after which torch runs a function uncompiled."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    scale = torch.compile(lambda images, factor: factor * images, backend=backend, dynamic=False)
    for factor in range(12):
        assert torch.equal(scale(torch.ones(2), factor), torch.full((2,), float(factor)))
    assert len(graphs) == 12
    assert not torch._functorch.config.donated_buffer  # fgsm-pgi and liet differentiate a graph twice
