"""Rows: views of the records in a store, rewritten from them and never edited.

A row is one network under one attack at one radius and protocol. Accuracies are fractions over all test images.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock

from robobench.errors import RequestError
from robobench.store import Store, write_atomic

if TYPE_CHECKING:
    from robobench.evaluation import Bits  # brings torch, which reading rows.csv does not need

COLUMNS = [
    *("dataset", "data_digest", "model", "image_size", "preset", "config_digest"),
    *("defense", "defense_version", "train_norm", "train_eps", "attack", "attack_version"),
    *("threat_norm", "threat_eps", "relative_step", "stop", "budget", "protocol", "source_digest"),
    *("seed", "selection", "examples", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high"),
    *("own_seconds", "whole_seconds", "warmup_seconds", "peak_memory_bytes", "precision", "threads"),
    *("hardware", "torch_version", "commit", "flags", "status", "reason"),
    *("stem", "interpolation", "weights_digest", "control"),  # what else a reader needs to redo the row
    # over all attacks on this network at this (norm, eps) and protocol, image by image:
    *("worst_case_accuracy", "worst_case_ci_low", "worst_case_ci_high", "worst_case_attacks"),
    *("own_forwards", "whole_forwards"),  # training cost in passes, where every stage declares them
]
LATER = ["own_forwards", "whole_forwards"]  # columns that older tables lack

DIGESTS = ["data_digest", "config_digest", "source_digest", "weights_digest", "commit"]  # text, also "1234"

TRANSFER_ONLY_IMAGES = 200


def records(root: Path) -> list[dict[str, Any]]:
    """Read every evaluation record of a store, its training's timing beside it, in a stable order."""
    store, out = Store(root), []

    @functools.cache
    def timing(name: str) -> dict[str, Any]:
        path = store.folder("model", name) / "timing.json"
        if not path.exists():
            return {}
        found: dict[str, Any] = json.loads(path.read_text())
        parts = [forwards(found), *(forwards(timing(other)) for other in found.get("required", {}))]
        whole = None if None in parts else sum(part for part in parts if part is not None)
        return {**found, "own_forwards": parts[0], "whole_forwards": whole}

    for folder in store.manifests("evaluations"):
        record = json.loads((folder / "record.json").read_text())
        out.append({**record, "timing": timing(record["training"])})
    keys = ("dataset", "model", "defense", "seed", "protocol", "attack", "threat_norm", "threat_eps")
    out.sort(key=lambda r: (*(str(r[k]) for k in keys), r["training"], r["examples"], r["budget"]))
    return out


def forwards(timing: dict[str, Any]) -> float | None:
    """Add up what the stages of a training declare, in forward passes of one image; None where one is silent.

    A backward to the input counts one forward, to the parameters two. Passes of a teacher count as forwards of the
    teacher, whatever its size.
    """
    stages = timing.get("stages") or []
    if not stages or any(stage.get("passes") is None for stage in stages):
        return None
    weights = {"weight_grad": 2.0}
    return float(sum(s["images"] * sum(weights.get(k, 1.0) * v for k, v in s["passes"].items()) for s in stages))


def worst_case(group: list[dict[str, Any]], norm: str, eps: float, protocol: str) -> Bits | None:
    """Combine the attacks of one network at one (norm, eps): an image survives if it survives all."""
    from robobench.evaluation import Bits

    worst: Bits | None = None
    for r in group:
        if (r["threat_norm"], r["threat_eps"], r["protocol"], r["status"]) == (norm, eps, protocol, "ok"):
            bits = Bits.read(r["robust_bits"])
            worst = bits if worst is None else worst & bits
    return worst


def transfer_only(clean: Bits, white: Bits | None, transfer: Bits | None) -> bool:
    """Say whether a network lives on transfer alone.

    On 200 images or more: the white-box worst case is at most a tenth of the clean accuracy, while at
    least half of the clean accuracy is left under transfer.
    """
    if white is None or transfer is None or len(white.values) < TRANSFER_ONLY_IMAGES:
        return False
    return white.accuracy <= 0.1 * clean.accuracy and transfer.accuracy >= 0.5 * clean.accuracy


def rows_of(group: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn the records of one network on one set of images into rows."""
    from robobench.evaluation import Bits

    rows = []
    for record in group:
        timing, point = record["timing"], (record["threat_norm"], record["threat_eps"])
        out = {name: record.get(name) for name in COLUMNS}
        for name in ("own_seconds", "whole_seconds", "warmup_seconds", "peak_memory_bytes", *LATER):
            out[name] = timing.get(name)
        flags = list(timing.get("flags", []))
        if record["status"] == "ok":
            clean, bits = Bits.read(record["clean_bits"]), Bits.read(record["robust_bits"])
            worst = worst_case(group, *point, record["protocol"])
            assert worst is not None
            out["clean_accuracy"], out["robust_accuracy"] = clean.accuracy, bits.accuracy
            out["ci_low"], out["ci_high"] = bits.interval
            out["worst_case_accuracy"] = worst.accuracy
            out["worst_case_ci_low"], out["worst_case_ci_high"] = worst.interval
            if transfer_only(clean, *(worst_case(group, *point, p) for p in ("white-box", "transfer"))):
                flags.append("transfer-only")
        same = [r for r in group if (r["threat_norm"], r["threat_eps"], r["protocol"]) == (*point, record["protocol"])]
        out["worst_case_attacks"] = ",".join(sorted({r["attack"] for r in same if r["status"] == "ok"}))
        out["flags"] = ",".join(dict.fromkeys(flags))
        rows.append(out)
    return rows


def networks(all_records: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Group records by trained network and number of images, in the order they come."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in all_records:
        groups.setdefault((record["training"], record["examples"]), []).append(record)
    return groups


def frame(all_records: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the table of rows from records."""
    rows = [row for group in networks(all_records).values() for row in rows_of(group)]
    return pd.DataFrame(rows, columns=COLUMNS)


def rewrite(root: Path) -> pd.DataFrame:
    """Rewrite rows.csv from the records, in one step, one process at a time; return the rows."""
    with FileLock(root / ".rows.lock"):
        rows = frame(records(root))
        write_atomic(root / "rows.csv", rows.to_csv(index=False))
    return rows


def read(place: Path) -> pd.DataFrame:
    """Read the rows of a store or of a folder of `leaderboards/`; raises RequestError."""
    file = place / "rows.csv"
    if not file.is_file():
        raise RequestError(
            f"no rows in '{place}' (no rows.csv); run 'robobench run' or 'robobench compare' first, "
            "or name another store with --out"
        )
    try:
        rows = pd.read_csv(file, dtype=dict.fromkeys(DIGESTS, str), keep_default_na=True)
    except (ValueError, UnicodeDecodeError) as err:
        raise RequestError(f"'{file}' is not a table of rows: {' '.join(str(err).split())}") from None
    missing = [name for name in COLUMNS if name not in [*rows.columns, *LATER]]
    if missing:
        raise RequestError(f"'{file}' is not a table of rows: it lacks {', '.join(missing[:3])}")
    for name in LATER:
        if name not in rows.columns:
            rows[name] = float("nan")
    return rows
