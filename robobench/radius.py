"""How a radius is spelled; no torch, so that reading a table needs none."""

from __future__ import annotations


def eps_text(eps: float) -> str:
    """Spell a radius as people do: '8/255' where it is a whole number of 255ths, else '0.5'."""
    times = eps * 255
    if 0 < eps < 0.2 and abs(times - round(times)) < 1e-9 * 255:
        return f"{round(times)}/255"
    return f"{eps:g}"
