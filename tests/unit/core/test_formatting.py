"""How radii are written."""

from __future__ import annotations

from robobench.core.formatting import format_eps


def test_eps_is_written_as_fraction_of_255():
    assert [format_eps(e) for e in (8 / 255, 0.5, 0.0, 0.05, 2.0)] == ["8/255", "0.5", "0", "0.05", "2"]
