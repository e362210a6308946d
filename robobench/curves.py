"""Loss and success against the looks an attack takes at the model: what a record keeps of every search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Looks that are kept: every one of a short search, some of a long one.
LOOKS = (*range(20), *range(20, 100, 5), *range(100, 1000, 50), *range(1000, 10_001, 500))

# Of each search by its attack's name: "images", and for each of LOOKS, as far as the search went, "loss" (their mean
# cross-entropy in nats, of the last look for images that left) and "fallen" (the fraction fallen so far).
Curves = dict[str, dict[str, Any]]


def gather(kept: Mapping[str, Sequence[Tensor]]) -> Curves:
    """Make curves of what `search.recorded` kept: the parts of a batch that were searched at once, joined."""
    parts: list[Curves] = []
    for attack, searches in kept.items():
        for looks in searches:  # (E, 3): images, loss, fallen
            rows = looks[[look for look in LOOKS if look < len(looks)]].tolist()
            curve = {"images": int(looks[0, 0]), "loss": [r[1] for r in rows], "fallen": [r[2] for r in rows]}
            parts.append({attack: curve})
    return join(parts)


def join(parts: Iterable[Curves]) -> Curves:
    """Average curves over images; a search that ended early, all its images fallen, stays where it ended."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for attack, curve in part.items():
            found.setdefault(attack, []).append(curve)
    out: Curves = {}
    for attack, curves in found.items():
        images, length = sum(c["images"] for c in curves), max(len(c["loss"]) for c in curves)
        out[attack] = {"images": images}
        for name in ("loss", "fallen"):
            whole = [[*c[name], *[c[name][-1]] * (length - len(c[name]))] for c in curves]
            out[attack][name] = [
                sum(c["images"] * values[i] for c, values in zip(curves, whole, strict=True)) / images
                for i in range(length)
            ]
    return out


def rounded(curves: Curves) -> Curves:
    """Round for a record."""
    return {
        attack: {"images": c["images"], **{name: [round(v, 5) for v in c[name]] for name in ("loss", "fallen")}}
        for attack, c in curves.items()
    }
