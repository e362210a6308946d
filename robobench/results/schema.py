"""JSON schema of the files of a board, made from the types of the records. `leaderboards/schema.json` is its text.

python -m robobench.results.schema > leaderboards/schema.json
"""

from __future__ import annotations

import json
import types
from typing import Any, Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from robobench.results.records import EvaluationRecord, TrainingTiming

TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
KEY = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
BITS = {"type": ["string", "null"], "pattern": "^[01]*$"}
TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}


def board_schema() -> dict[str, Any]:
    """Return the schemas of artifact.json, config.json, timing.json and record.json, under "$defs"."""
    record = type_schema(EvaluationRecord)
    fractions = {"type": "number", "minimum": 0}
    record["properties"] |= {
        **{"key": KEY, "data_digest": KEY, "clean_bits": BITS, "robust_bits": BITS, "threat_eps": fractions},
        "threat_norm": {"enum": ["Linf", "L2", "L1"]},
    }
    del record["properties"]["timing"]  # added when records are read
    timing = type_schema(TrainingTiming)
    artifact: dict[str, Any] = {"name": TEXT, "recipe": {"type": "object"}, "digest": KEY}
    artifact["files"] = {"type": "object", "additionalProperties": DIGEST}
    config = {
        **dict.fromkeys(("defense", "preset", "dataset", "precision", "torch"), TEXT),
        **dict.fromkeys(("data_digest", "key"), KEY),
        **dict.fromkeys(("train_images", "held_out", "resolution", "seed", "threads", "devices"), WHOLE),
        **{"spec": {"type": "object"}, "config": {"type": "object"}, "threat": {"type": ["object", "null"]}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "robobench board",
        "description": "Files of a board: artifact.json beside every model and record, config.json and timing.json of "
        "a model, record.json of a cell.",
        "$defs": {
            "artifact.json": _object(artifact),
            "config.json": _object(config),
            "timing.json": timing,
            "record.json": record,
        },
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these properties, and perhaps more."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def type_schema(kind: Any) -> dict[str, Any]:
    """Return the schema of a type annotation: a TypedDict, a union, a literal, a list, a dict or a plain type."""
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        optional = {name for name, hint in hints.items() if get_origin(hint) is NotRequired}
        properties = {name: type_schema(get_args(h)[0] if name in optional else h) for name, h in hints.items()}
        return {"type": "object", "properties": properties, "required": sorted(set(hints) - optional)}
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin is Literal:
        return {"enum": list(of)}
    if isinstance(kind, types.UnionType):
        return {"anyOf": [type_schema(option) for option in of]}
    if origin is list:
        return {"type": "array", "items": type_schema(of[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": type_schema(of[1])}
    return {"type": TYPES[kind]}


def schema_text() -> str:
    """Return the schema as the text of a file."""
    return json.dumps(board_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
