"""No masked model of the gallery passes for robust, and no honest one is flagged."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "gallery"))  # as for a user's factory, whose file may import its neighbors
import gallery_models as models  # type: ignore[import-not-found]  # noqa: E402
from examine import examine  # type: ignore[import-not-found]  # noqa: E402

sys.path.pop(0)


@pytest.mark.parametrize("name", models.OTHERS)
def test_masked_model_is_flagged_or_attacked(name):
    assert examine(name).passes


@pytest.mark.parametrize("name", models.HONEST)
def test_honest_model_is_not_flagged(name):
    assert examine(name).flags == []


def test_docs_list_the_gallery():
    factories = {
        name for name, value in vars(models).items()
        if inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["k"]
    }  # fmt: skip
    assert factories == {*models.OTHERS, *models.HONEST} and len(factories) >= 40
    page = (ROOT / "docs" / "gallery.md").read_text()
    assert all(f"| `{name}` |" in page for name in factories)
