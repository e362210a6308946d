"""Rows: views of the records in a store, rewritten from them and never edited.

A row is one network under one attack at one radius and protocol. Accuracies are fractions over all test images.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from robobench.errors import ArtifactError, RequestError
from robobench.flags import examined, from_records, worst
from robobench.statistics import Bits
from robobench.store import Store, storing, write_atomic

if TYPE_CHECKING:
    import pandas as pd
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
    *("own_forwards", "whole_forwards", "passes"),  # training cost in passes, where stages declare them
    *("own_cpu_seconds", "whole_cpu_seconds"),  # beside seconds they show a crowded machine
    "compiled",
    "stage_memory",
]
LATER = ["stage_memory"]  # columns that boards made before lack

COSTS = [
    *("own_seconds", "whole_seconds", "warmup_seconds", "peak_memory_bytes", "own_forwards", "whole_forwards"),
    *("own_cpu_seconds", "whole_cpu_seconds"),
]
DIGESTS = ["data_digest", "config_digest", "source_digest", "weights_digest", "commit"]  # text, also "1234"

TRANSFER_ONLY_IMAGES = 200


def records(root: Path, mend: Store | None = None) -> list[dict[str, Any]]:
    """Read every evaluation record of a store, its training's timing beside it, in a stable order.

    Args:
        mend: the store, where damaged records are to be set aside and left out, as they are while running.

    Raises:
        ArtifactError: a record is damaged; without it a worst case would look better than it is.
    """
    store, out = Store(root), []

    def whole(kind: str, name: str, file: str) -> dict[str, Any] | None:
        folder = store.folder(kind, name)
        if not folder.exists():
            return None
        try:
            store.verify(folder, file)
            return json.loads((folder / file).read_text())  # type: ignore[no-any-return]
        except ArtifactError as err:
            if mend is None:
                raise ArtifactError(f"{err}; run its command again, which sets it aside and builds it anew") from None
            store.tell = mend.tell
            store.find(kind, name, file)
            return None

    @functools.cache
    def timing(name: str) -> dict[str, Any]:
        found = whole("model", name, "timing.json") or {}
        for what, sum_of in (("forwards", forwards), ("cpu_seconds", cpu_seconds)):
            parts = [sum_of(found), *(sum_of(timing(other)) for other in found.get("required", {}))]
            found[f"own_{what}"] = parts[0]
            found[f"whole_{what}"] = None if None in parts else sum(part for part in parts if part is not None)
        return found

    for folder in store.manifests("evaluations"):
        record = whole("evaluations", folder.name, "record.json")
        if record is not None:
            out.append({**record, "timing": timing(record["training"])})
    asked = {r["training"] for r in out if not r["control"]}  # a control of one request may be asked for in another
    for r in out:
        r["control"] = r["control"] and r["training"] not in asked
    keys = ("dataset", "model", "defense", "seed", "protocol", "attack", "threat_norm", "threat_eps")
    out.sort(key=lambda r: (*(str(r[k]) for k in keys), r["training"], r["selection"], r["examples"], r["budget"]))
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


def cpu_seconds(timing: dict[str, Any]) -> float | None:
    """Add up the processor time of a training's stages; None where there is none (a network from elsewhere)."""
    stages = timing.get("stages") or []
    return float(sum(stage["cpu_seconds"] for stage in stages)) if stages else None


def met(group: list[dict[str, Any]], record: dict[str, Any], protocol: str) -> list[dict[str, Any]]:
    """Return the records of a network at a record's (norm, eps) under a protocol.

    Transfer examples of one source only: the record's own, else the first one there is.
    """
    same = [r for r in group if all(r[key] == record[key] for key in ("threat_norm", "threat_eps"))]
    same = [r for r in same if r["protocol"] == protocol]
    source = (record if record["protocol"] == protocol else same[0])["source_digest"] if same else None
    return [r for r in same if r["source_digest"] == source]


def worst_case(group: list[dict[str, Any]], record: dict[str, Any], protocol: str) -> Bits | None:
    """Combine the attacks of one network at a record's (norm, eps): an image survives if it survives all."""
    return worst(r for r in met(group, record, protocol) if r["status"] == "ok")


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
    rows = []
    for record in group:
        timing, point = record["timing"], (record["threat_norm"], record["threat_eps"])
        out = {name: record.get(name) for name in COLUMNS}
        for name in COSTS:
            out[name] = timing.get(name)
        out["passes"], out["stage_memory"] = passes_of(timing), memory_of(timing)
        flags = [*timing.get("flags", []), *examined(group)]
        if record["status"] == "ok":
            clean, bits = Bits.read(record["clean_bits"]), Bits.read(record["robust_bits"])
            worst = worst_case(group, record, record["protocol"])
            assert worst is not None
            out["clean_accuracy"], out["robust_accuracy"] = clean.accuracy, bits.accuracy
            out["ci_low"], out["ci_high"] = bits.interval
            out["worst_case_accuracy"] = worst.accuracy
            out["worst_case_ci_low"], out["worst_case_ci_high"] = worst.interval
            if transfer_only(clean, *(worst_case(group, record, p) for p in ("white-box", "transfer"))):
                flags.append("transfer-only")
            flags += [f.check.name for f in from_records(group, *point) if f.raised]
        same = met(group, record, record["protocol"])
        out["worst_case_attacks"] = ",".join(sorted({r["attack"] for r in same if r["status"] == "ok"}))
        out["flags"] = ",".join(dict.fromkeys(flags))
        rows.append(out)
    return rows


def passes_of(timing: dict[str, Any]) -> str:
    """Spell the declared passes of a training stage by stage, for each image and epoch.

    F is a forward, Gx a backward to the input, Gw one to the weights; T stands before those of teachers.
    """
    signs = {
        "forward": "F",
        "input_grad": "Gx",
        "weight_grad": "Gw",
        "teacher_forward": "TF",
        "teacher_input_grad": "TGx",
    }
    stages = [s for s in timing.get("stages", []) if s["passes"]]
    made = [" + ".join(f"{s['passes'][k]:.4g} {sign}" for k, sign in signs.items() if s["passes"][k]) for s in stages]
    return "; ".join(f"{s['name']} {s['epochs']} x ({text})" for s, text in zip(stages, made, strict=True))


def memory_of(timing: dict[str, Any]) -> str:
    """Spell the peak memory of a training stage by stage."""
    return "; ".join(f"{s['name']} {s['peak_memory_bytes'] / 2**20:.0f} MiB" for s in timing.get("stages", []))


def networks(all_records: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group records by trained network (and which of its epochs) and test images, in the order they come.

    Weights trained again under the same name, as `--fresh` does, are another network where their bytes differ.
    """
    at = ("training", "selection", "weights_digest", "precision", "data_digest", "examples")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in all_records:
        groups.setdefault(tuple(record.get(name) for name in at), []).append(record)
    return groups


def frame(all_records: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the table of rows from records."""
    import pandas as pd

    rows = [row for group in networks(all_records).values() for row in rows_of(group)]
    return pd.DataFrame(rows, columns=COLUMNS)


def rewrite(store: Store) -> list[dict[str, Any]]:
    """Rewrite rows.csv from the records, in one step, one process at a time; return the records.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    root = store.root
    with storing(root / "rows.csv"), FileLock(root / ".rows.lock"):
        for left in root.glob(".rows.csv.*"):  # of a process that died while it wrote
            left.unlink(missing_ok=True)
        found = records(root, mend=store)
        write_atomic(root / "rows.csv", frame(found).to_csv(index=False))
    return found


def read(place: Path) -> pd.DataFrame:
    """Read the rows of a store, from its records, or of a folder of `leaderboards/`.

    Raises:
        RequestError: no rows there, or no table of rows.
        ArtifactError: a record of the store is damaged.
    """
    import pandas as pd

    file, found = place / "rows.csv", records(place)
    if not found and not file.is_file():
        raise RequestError(
            f"no rows in '{place}' (no rows.csv); run 'robobench run' or 'robobench compare' first, "
            "or name another store with --out"
        )
    try:
        text: Any = io.StringIO(frame(found).to_csv(index=False)) if found else file
        rows = pd.read_csv(text, dtype=dict.fromkeys(DIGESTS, str), keep_default_na=True)
    except (ValueError, UnicodeDecodeError) as err:
        raise RequestError(f"'{file}' is not a table of rows: {' '.join(str(err).split())}") from None
    missing = [name for name in COLUMNS if name not in [*rows.columns, *LATER]]
    if missing:
        raise RequestError(f"'{file}' is not a table of rows: it lacks {', '.join(missing[:3])}")
    return rows


def measured() -> list[Path]:
    """Return the folders of the boards that robobench itself measured and brings along."""
    found = importlib.util.find_spec("robobench.leaderboards")
    assert found is not None and found.submodule_search_locations
    place = Path(next(iter(found.submodule_search_locations)))
    return sorted(file.parent for file in place.glob("[!.]*/rows.csv"))  # not what a broken-off `publish` left
