"""Parse numbers, radii and norms as people write them. No torch."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from robobench.core.registry import unknown_name
from robobench.errors import RequestError

NORMS = ("Linf", "L2")
NORM_SPELLINGS = {
    "inf": "Linf",
    "linf": "Linf",
    "2": "L2",
    "2.0": "L2",
    "l2": "L2",
}  # lower case, without - _ and spaces


def parse_number(text: str) -> float:
    """Parse a decimal number or a fraction, such as '0.5', '.031', '8/255', '8./255.' or '125.3 / 255'.

    Raises:
        ValueError: the text is no number.
    """
    top, slash, bottom = text.partition("/")
    try:
        value = Fraction(top.strip())
        return float(value / Fraction(bottom.strip()) if slash else value)
    except ZeroDivisionError:
        raise ValueError(f"'{text}' divides by zero") from None


def split_numbers(text: str) -> list[str]:
    """Split a list of numbers at commas, semicolons and spaces; brackets around it are ignored."""
    together = re.sub(r"\s*/\s*", "/", text.strip().strip("()[]"))
    return [part for part in re.split(r"[,;\s]+", together) if part]


def canonical_norm(norm: str | float) -> str:
    """Return a norm in RobustBench's spelling: 'linf', 'L-inf' and infinity are 'Linf', 'l2' and 2 are 'L2'.

    Raises:
        RequestError: another norm.
    """
    plain = re.sub(r"[-_ ]", "", str(norm)).lower()
    if plain not in NORM_SPELLINGS:
        raise unknown_name("norm", str(norm), NORMS)
    return NORM_SPELLINGS[plain]


def parse_eps(text: str | float, norm: str) -> float:
    """Parse a radius on the [0, 1] image scale, such as '8/255' or '0.5'.

    Raises:
        RequestError: not a number, negative, or above 1 for Linf.
    """
    try:
        eps = parse_number(text) if isinstance(text, str) else float(text)
    except (ValueError, TypeError):
        raise RequestError(
            f"eps '{text}' is not a number; write a fraction such as 8/255 or a decimal such as 0.5"
        ) from None
    check_eps(eps, norm, str(text))
    return eps


def check_eps(eps: float, norm: str, text: str | None = None) -> None:
    """Raise RequestError unless `eps` is a valid radius in `norm`."""
    shown = text or f"{eps:g}"
    if not math.isfinite(eps) or eps < 0:
        raise RequestError(f"eps must be a finite number >= 0, got {shown}; write 8/255 or 0.5")
    if norm == "Linf" and eps > 1:
        raise RequestError(f"eps {shown} is larger than the whole pixel range [0, 1]; did you mean {shown}/255?")
