"""Parse numbers, radii and norms as people write them. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from robobench.core.formatting import format_eps
from robobench.core.registry import unknown_name
from robobench.errors import RequestError

Channels = tuple[float, float, float]

NORMS = ("Linf", "L2", "L1")
DISTANCE_NORMS = (*NORMS, "L0")  # L0 counts changed values; it has no projection, so distances only
NORM_SPELLINGS = {
    "inf": "Linf",
    "linf": "Linf",
    "2": "L2",
    "2.0": "L2",
    "l2": "L2",
    "1": "L1",
    "1.0": "L1",
    "l1": "L1",
    "0": "L0",
    "0.0": "L0",
    "l0": "L0",
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


def canonical_norm(norm: str | float, allowed: Sequence[str] = NORMS) -> str:
    """Return a norm in RobustBench's spelling: 'linf', 'L-inf' and infinity are 'Linf', 'l2' and 2 are 'L2'.

    Args:
        allowed: NORMS, or DISTANCE_NORMS.

    Raises:
        RequestError: another norm.
    """
    plain = re.sub(r"[-_ ]", "", str(norm)).lower()
    if plain not in NORM_SPELLINGS:
        raise unknown_name("norm", str(norm), allowed)
    if NORM_SPELLINGS[plain] not in allowed:
        raise RequestError(
            f"norm '{norm}' is for distances only: robobench distances --norm L0 --attack sigma-zero; "
            f"use one of {', '.join(allowed)} here"
        )
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
    return canonical_eps(eps)


def format_radius(eps: float) -> str:
    """Write a radius so that parsing it gives exactly the same number."""
    return format_eps(eps) if parse_eps(format_eps(eps), "L2") == eps else repr(eps)


def canonical_eps(eps: float) -> float:
    """Return the multiple of 1/255 that a radius was rounded from, such as 8/255 for 0.03137254902; else `eps`."""
    nearest = round(eps * 255) / 255
    return nearest if abs(eps - nearest) < 1e-7 else eps


def parse_radii(texts: Iterable[str], norm: str) -> dict[str, tuple[str, ...]]:
    """Split texts such as '8/255, 16/255' (of `norm`) and 'L2:0.5,1.0' into the radii of every norm, still as text.

    Raises:
        RequestError: another norm, or no radius.
    """
    out: dict[str, tuple[str, ...]] = {}
    for text in texts:
        head, colon, rest = text.partition(":")
        own = canonical_norm(head) if colon else norm
        parts = tuple(split_numbers(rest if colon else text))
        if not parts:
            raise RequestError(f"--eps '{text}' names no radius; write 8/255,16/255 or L2:0.5,1.0")
        out[own] = out.get(own, ()) + parts
    return out


def parse_train_threat(norms: str, radii: str | None) -> list[tuple[str, str | None]]:
    """Return each norm of --train-norm with its radius of --train-eps, still as text; None without --train-eps.

    Raises:
        RequestError: an unknown norm, one that is named twice, or another number of radii than of norms.
    """
    names = [canonical_norm(norm.strip()) for norm in norms.split(",")]
    texts = split_numbers(radii) if radii is not None else [None] * len(names)
    if len(set(names)) < len(names):
        raise RequestError(f"--train-norm {norms} names a norm twice; each batch draws one of different norms")
    if len(texts) != len(names):
        raise RequestError(
            f"--train-eps takes one radius for each of {', '.join(names)}, in this order, got {radii}; leave it out "
            "for those of the data set"
        )
    return list(zip(names, texts, strict=True))


def check_eps(eps: float, norm: str, text: str | None = None) -> None:
    """Raise RequestError unless `eps` is a valid radius in `norm`."""
    shown = text or f"{eps:g}"
    if not math.isfinite(eps) or eps < 0:
        raise RequestError(f"eps must be a finite number >= 0, got {shown}; write 8/255 or 0.5")
    if norm == "Linf" and eps > 1:
        raise RequestError(f"eps {shown} is larger than the whole pixel range [0, 1]; did you mean {shown}/255?")


def parse_channels(flag: str, text: str) -> Channels:
    """Parse the three numbers of --mean or --std, on the [0, 1] scale; raises RequestError."""
    try:
        values = tuple(parse_number(part) for part in split_numbers(text))
    except ValueError:
        values = ()
    if len(values) != 3:
        same = f": {','.join([f'{values[0]:g}'] * 3)}" if len(values) == 1 else " such as 0.5,0.5,0.5"
        raise RequestError(f"--{flag} takes three numbers, one per channel{same}, got '{text}'")
    if max(values) > 1 and min(values) >= 0:
        scaled = ",".join(f"{value / 255:.4g}" for value in values)
        raise RequestError(
            f"--{flag} '{text}' is on the 0..255 scale, images lie in [0, 1]; divide by 255: --{flag} {scaled}"
        )
    if min(values) < 0 or (flag == "std" and min(values) == 0):
        raise RequestError(f"--{flag} must be {'above 0' if flag == 'std' else '0 or more'}, got '{text}'")
    return values
