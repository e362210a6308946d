"""Every board in leaderboards/ fits its JSON schema; the checks of a pull request run this file."""

import hashlib
import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from robobench.results.rows import bundled_boards, read_records
from robobench.results.schema import schema_text
from robobench.store.artifacts import WEIGHT_FILES
from tests.helpers.boards import BOARD

SCHEMA = json.loads(schema_text())
BOARDS = [board for board in bundled_boards() if (board / "artifacts").is_dir()]


def problems(folder):
    """Return what does not fit the schema, one line per file."""
    found = []
    for name, schema in SCHEMA["$defs"].items():
        validator = jsonschema.Draft202012Validator(schema)
        for file in sorted(folder.rglob(name)):
            found += [
                f"{file}: {error.json_path}: {error.message}"
                for error in validator.iter_errors(json.loads(file.read_text()))
            ]
    return found


def test_schema_file_is_current():
    """If not: python -m robobench.results.schema > leaderboards/schema.json"""
    assert (BOARD.parent / "schema.json").read_text() == schema_text()


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_records_name_weights_of_their_selection(board):
    """One training may store the weights of several selections, and may be the transfer source itself."""
    for record in read_records(board):
        file = board / record["training"] / WEIGHT_FILES[record["selection"]]
        if file.is_file():
            assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(record["weights_digest"]), record["key"]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_board_fits_schema(board):
    assert problems(board) == []


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [
        ("record.json", "threat_eps", -0.1, "less than the minimum"),
        ("record.json", "robust_bits", "012", "does not match"),
        ("record.json", "protocol", "grey-box", "is not one of"),
        ("record.json", "attack", None, "is not of type 'string'"),
        ("config.json", "seed", "0", "is not of type 'integer'"),
        ("timing.json", "stages", [{}], "is a required property"),
        ("artifact.json", "files", {"record.json": "abc"}, "does not match"),
    ],
)
def test_wrong_value_is_found(file, field, value, words, tmp_path):
    source = next(Path(BOARD).rglob(file))
    (tmp_path / file).write_text(json.dumps(json.loads(source.read_text()) | {field: value}))
    (problem, *_) = problems(tmp_path)
    assert f"$.{field}" in problem and words in problem
