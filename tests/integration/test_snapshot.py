"""A snapshot of a small store: its contents, its tables, and whether `reproduce` detects wrong results."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import robobench
from robobench.cli import main
from robobench.core.memory import keep_freed_memory
from robobench.data.info import dataset_info
from robobench.errors import RequestError
from robobench.execution.reproduce import Reproducer
from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig
from robobench.report import board_folder
from robobench.report.board_folder import stale_tables, write_snapshot
from robobench.report.board_readme import TABLE, update_file, update_tables
from robobench.report.method_summary import method_summary
from robobench.results import rows as results_rows
from robobench.results.rows import OPTIONAL_COLUMNS, make_frame, read_records, read_rows
from robobench.store.artifacts import MANIFEST, file_digest, hash_recipe

ROOT = Path(__file__).parents[2]
TINY = ("--dataset", "digits", "--model", "cnn", "--threads", "1", "--epochs", "2", "--examples", "24",
        "--precision", "fp32")  # fmt: skip
ATTACKS = ("--attacks", "pgd,fgsm", "--eps", "0.1", "--set", "run.train_images=96", "--set", "run.eval_batch_size=16")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    assert main(["compare", "-q", "--defenses", "standard,at", *TINY, *ATTACKS, "--out", str(place)]) == 0
    return place


@pytest.fixture
def board(store, tmp_path):
    assert write_snapshot(store, tmp_path / "board", intro="Made by hand.") == []
    return tmp_path / "board"


def rewrite(artifact: Path, file: str, **changes: object) -> None:
    """Change a stored file and update every digest."""
    data = json.loads((artifact / file).read_text())
    (artifact / file).write_text(json.dumps({**data, **changes}))
    made = json.loads((artifact / MANIFEST).read_text())
    made["files"][file] = file_digest(artifact / file)
    del made["digest"]
    (artifact / MANIFEST).write_text(json.dumps({**made, "digest": hash_recipe(made)}))


def cell(board: Path, **wanted: object) -> Path:
    (found,) = [r for r in read_records(board) if all(r[k] == v for k, v in wanted.items())]
    return board / "artifacts" / "evaluations" / found["key"]


AT = {"defense": "at", "attack": "pgd", "protocol": "white-box"}
THREAT = "2 attacks Linf 0.1 (n = 24)"


def test_snapshot_has_results_and_small_weights(store, board):
    rows = read_rows(board)
    pd.testing.assert_frame_equal(rows, read_rows(store))
    assert rows["train_cpu_seconds"].gt(0).all() and rows["total_train_cpu_seconds"].ge(rows["train_cpu_seconds"]).all()
    assert not list(board.rglob("examples.safetensors")) and len(list(board.rglob("model.safetensors"))) == 3
    lines = list(csv.DictReader(io.StringIO((board / "matrix.csv").read_text())))
    assert {line["protocol"] for line in lines} == {"white-box", "transfer"}
    (line,) = [line for line in lines if line["defense"] == "at" and line["protocol"] == "white-box"]
    (row,) = [r for r in rows.to_dict("records") if all(r[k] == v for k, v in AT.items())]
    assert line["pgd Linf 0.1"] == f"{100 * row['robust_accuracy']:.1f}" and float(line["CPU time (s)"]) > 0
    model, image = robobench.load(board, "at"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(image), robobench.load(store, "at")(image))


def test_readme_has_provenance_and_keeps_user_text(store, board):
    text = (board / "README.md").read_text()
    for part in ("Made by hand.", "| at | 1 |", f"* {THREAT}: worst case per image over fgsm (fixed); ",
                 "pgd (steps=20, relative_step=0.25, restarts=1), on digits", "CPU time (s)", "epochs=2 (200)",
                 "robobench run --defense at --model cnn"):  # fmt: skip
        assert part in text, part
    (board / "README.md").write_text(text.replace("Made by hand.", "Mine."))
    write_snapshot(store, board)
    assert (board / "README.md").read_text() == text.replace("Made by hand.", "Mine.")


def test_method_summary_leaves_out_transfer_source(board):
    lines = [line.split(" | ") for line in method_summary(board).splitlines() if line.startswith("|")]
    head = [name.strip("| ") for name in lines[0]]
    by_name = {line[0].strip("| "): dict(zip(head, line, strict=True)) for line in lines[2:]}
    assert set(by_name) == {"at", "standard"} and by_name["standard"]["seeds"] == "2"
    rows = read_rows(board)
    control = rows[(rows["seed"] == 1) & (rows["protocol"] == "transfer")].iloc[0]["worst_case_accuracy"]
    transfer = f"{THREAT}: transfer"
    shown = by_name["standard"][transfer]
    assert shown.startswith(f"{100 * control:.1f} [") and shown.endswith("] (control)")  # only the other seed
    assert "control" not in by_name["at"][transfer]
    seeds = rows[(rows["defense"] == "standard") & (rows["protocol"] == "white-box")].drop_duplicates("seed")
    assert by_name["standard"]["clean (n = 24)"].startswith(f"{100 * seeds['clean_accuracy'].mean():.1f} ± ")
    assert "a" in {by_name[name][f"{THREAT}: significance group"] for name in ("at", "standard")}


def test_method_summary_joins_bf16_search_with_transfer(tmp_path):
    """Transfer examples are always made in float32."""
    command = ["compare", "-q", "--defenses", "standard,at", "--out", str(tmp_path)]
    assert main([*command, *TINY[:-1], "bf16", *ATTACKS]) == 0
    text = method_summary(tmp_path)
    head, _, *lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    (at,) = [dict(zip(map(str.strip, head), line, strict=True)) for line in lines if line[0].strip() == "at"]
    assert "[" in at[f"{THREAT}: white-box"] and "[" in at[f"{THREAT}: transfer"]
    assert "bfloat16 search), on digits" in text


def test_method_summary_shows_most_attacks_first(store, tmp_path):
    """Every number of images has a column for clean accuracy."""
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    command = ["compare", "-q", *TINY, "--out", str(copy), "--defenses", "standard,at", "--protocol", "white-box"]
    fewer = ["--examples", "16", "--attacks", "pgd,fgsm,jitter", "--eps", "0.1"]  # the later --examples counts
    assert main([*command, *fewer]) == 0
    table = method_summary(copy).splitlines()
    head = [name.strip() for name in table[0].strip("|").split("|")]
    assert [name for name in head if name.startswith("clean") or name.endswith("white-box")] == [
        "clean (n = 16)", "3 attacks Linf 0.1 (n = 16): white-box",
        "clean (n = 24)", "2 attacks Linf 0.1 (n = 24): white-box",
    ]  # fmt: skip
    legend = "\n".join(line for line in table if line.startswith("* "))
    assert "(n = 16): worst case per image over fgsm (fixed); jitter (" in legend
    assert "(n = 24): worst case per image over fgsm (fixed); pgd (steps=20" in legend


def test_new_snapshot_is_reproduced_image_by_image(board, capsys):
    assert main(["reproduce", str(board), "--sample", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and lines[-1] == "12 of 12 cells reproduced"  # 3 models, 2 attacks, 2 protocols
    assert all("24 of 24 images as recorded" in line for line in lines[:-1])


def test_only_wrong_result_is_not_reproduced(board, capsys):
    rewrite(cell(board, **AT), "record.json", robust_bits="0" * 24, clean_bits="1" * 24)
    rows = make_frame(read_records(board))
    (board / "rows.csv").write_text(rows.to_csv(index=False))
    assert main(["reproduce", str(board), "--sample", "0"]) == 1
    text = capsys.readouterr().out
    assert text.count("NOT REPRODUCED") == 2 and "NOT REPRODUCED: matrix.csv differs" in text
    assert "NOT REPRODUCED: at (seed 0), pgd Linf 0.1, white-box, 24 of 24 images" in text
    assert "11 of 12 cells reproduced" in text


def test_changed_tables_weights_and_images_are_detected(board, capsys):
    rows = (board / "rows.csv").read_text()
    (board / "rows.csv").write_text(rows.replace("at,1,", "at,2,", 1))
    assert main(["reproduce", str(board), "--sample", "1"]) == 1
    assert "rows.csv differs from the tables of the records" in capsys.readouterr().out
    (board / "rows.csv").write_text(rows)
    (weights,) = board.glob("at-*/model.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    assert main(["reproduce", str(board), "--sample", "0"]) == 2
    assert "checksum mismatch in" in capsys.readouterr().err
    weights.write_bytes(good)
    for artifact in board.glob("artifacts/evaluations/*"):
        rewrite(artifact, "record.json", data_digest="0123456789abcdef")
    assert main(["reproduce", str(board), "--sample", "1"]) == 2
    assert (
        "those of the record 0123456789abcdef; name the folder of the same files with --data-dir"
        in capsys.readouterr().err
    )


def test_large_weights_are_left_out_and_retrained(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board_folder, "MAX_WEIGHT_BYTES", 10)
    assert len(write_snapshot(store, tmp_path / "board")) == 3
    assert main(["reproduce", str(tmp_path / "board")]) == 2
    assert "train them again with --retrain" in capsys.readouterr().err
    reproducer = Reproducer(tmp_path / "board", sample=0, retrain=tmp_path / "again")
    standard = [r for r in reproducer.cells if r["defense"] == "standard" and r["protocol"] == "white-box"]
    reproducer.cells = standard[:1]
    (found,) = reproducer
    assert found.reproduced and found.robust[0] == found.robust[1]


def test_snapshot_includes_weights_of_named_defenses_only(store, tmp_path):
    left_out = write_snapshot(store, tmp_path / "board", weights_of=["standard"])
    kept = {file.parent.name.split("-")[0] for file in (tmp_path / "board").rglob("*.safetensors")}
    assert kept == {"standard"} and left_out
    assert len(read_rows(tmp_path / "board")) == len(read_rows(store))


def test_slow_cell_uses_first_images_only(board):
    reproducer = Reproducer(board, sample=1, minutes=5)
    (record,) = reproducer.cells
    reproducer.seconds[record["key"]] = 3.9 * 5 * 60.0  # almost four times its share
    (found,) = reproducer
    assert len(found.robust[0].values) == 6 and found.robust[0] == found.robust[1]


def test_failed_training_does_not_prevent_snapshot(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (tmp_path / "shy.py").write_text(
        "from robobench.api import DEFENSES, Defense\n\n\n"
        '@DEFENSES.register("shy")\nclass Shy(Defense):\n'
        '    def stages(self, setup):\n        raise RuntimeError("not today")\n'
    )
    failing = ["compare", "-q", "--defenses", "standard,shy", "--plugin", str(tmp_path / "shy.py")]
    assert main([*failing, *TINY, *ATTACKS, "--out", str(copy)]) == 1
    assert write_snapshot(copy, tmp_path / "board") == []
    text = (tmp_path / "board" / "README.md").read_text()
    assert "--defense at " in text and "shy" not in text


def test_each_stage_has_separate_peak_memory(tmp_path):
    (tmp_path / "twice.py").write_text(
        "import torch\nfrom robobench.api import DEFENSES, Defense, Precompute, train_stage\n"
        "from robobench.defenses.standard import CrossEntropy\n\n\n"
        "def large(batch):\n"
        "    taken = [torch.ones(5_000_000) for _ in range(20)]  # 380 MiB, each as small as glibc keeps\n"
        "    return taken[0][: len(batch.index), None].clone()\n\n\n"
        '@DEFENSES.register("twice")\nclass Twice(Defense):\n'
        "    def stages(self, setup):\n"
        '        return [Precompute(name="large", function=large),\n'
        '                train_stage(self.config, "small", CrossEntropy(setup.model))]\n'
    )
    plugin = ("--defense", "twice", "--plugin", str(tmp_path / "twice.py"), "--out", str(tmp_path / "runs"))
    assert main(["run", "-q", *TINY, *ATTACKS, *plugin]) == 0
    rows = read_rows(tmp_path / "runs")
    (text,) = rows.loc[rows["defense"] == "twice", "stage_memory"].unique()
    large, small = (int(part.removesuffix(" MiB").split()[1]) for part in text.split("; "))
    assert text == f"large {large} MiB; small {small} MiB"
    assert large - small > 200 or not keep_freed_memory()  # elsewhere nothing can be given back
    assert rows.loc[rows["defense"] == "twice", "peak_memory_bytes"].max() / 2**20 == pytest.approx(large, abs=1)


def test_snapshot_without_optional_columns_is_valid(board):
    rows = read_rows(board).drop(columns=OPTIONAL_COLUMNS)
    (board / "rows.csv").write_text(make_frame(read_records(board))[rows.columns].to_csv(index=False))
    assert stale_tables(board) == []
    shutil.rmtree(board / "artifacts")
    assert list(read_rows(board).columns) == list(rows.columns)


def test_control_requested_later_is_no_control(store, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)

    def controls():
        return {(r["defense"], r["seed"]) for r in read_records(copy) if r["is_control"]}

    assert controls() == {("standard", 1)}
    command = ["run", "-q", *TINY, *ATTACKS, "--out", str(copy), "--defense", "standard"]
    assert main([*command, "--seeds", "0,1"]) == 0 and not controls()
    clean = read_rows(copy).query("defense == 'standard'").drop_duplicates("seed")["clean_accuracy"]
    over_seeds = capsys.readouterr().out.split("accuracy over seeds")[1]
    assert f"{100 * clean.mean():.1f} ± {100 * clean.std():.1f}" in over_seeds
    assert main(command) == 0 and not controls()


def test_search_precisions_have_separate_rows(store, tmp_path, capsys):
    weights = next(store.glob("at-*-s0-*/model.safetensors"))
    shared = (
        "-q",
        *TINY[:6],
        "--examples",
        "24",
        *ATTACKS[:4],
        "--set",
        "run.eval_batch_size=16",
        "--out",
        str(tmp_path),
    )
    for precision in ("fp32", "bf16"):
        assert main(["evaluate", str(weights), *shared, "--precision", precision]) == 0
    rows = read_rows(tmp_path)
    searches = {(r["attack"], r["precision"], r["search_precision"]) for r in rows.to_dict("records")}
    assert searches == {
        ("pgd", "fp32", "fp32"), ("pgd", "bf16", "bf16"), ("fgsm", "fp32", "fp32"), ("fgsm", "bf16", "fp32")
    }  # fmt: skip
    capsys.readouterr()
    assert main(["reproduce", str(tmp_path), "--sample", "0"]) == 0


def test_user_model_gets_same_images_trained_or_external(tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))\n"
    )
    shared = ["-q", "--model", f"{net}:small", *TINY[:2], *TINY[4:6], *ATTACKS[:4], "--examples", "360"]
    assert main(["run", "--defense", "standard", *shared, "--out", str(tmp_path / "a")]) == 0
    weights = next((tmp_path / "a").glob("standard-*-s0-*/model.safetensors"))
    assert main(["evaluate", str(weights), *shared, "--out", str(tmp_path / "b")]) == 0
    trained, external = (read_rows(tmp_path / name) for name in "ab")
    same = trained[trained["weights_digest"].isin(set(external["weights_digest"]))]
    assert set(external["clean_accuracy"]) == set(same["clean_accuracy"]) != set()
    planner = Planner(ExperimentConfig(external=True, model=f"{net}:small", weights=weights, out=tmp_path / "c"))
    assert planner.models.spec(0).mean == (0, 0, 0)
    assert planner.models.spec(0, "cnn").mean == dataset_info("digits").mean  # of a transfer source or teacher


def test_changes_are_listed(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    write_snapshot(copy, tmp_path / "board")
    assert "12 cells of 3 models: first results" in (tmp_path / "board" / "CHANGES.md").read_text()
    was = json.loads((cell(copy, **AT) / "record.json").read_text())["robust_bits"].count("1")
    rewrite(cell(copy, **AT), "record.json", robust_bits="1" * 24, clean_bits="1" * 24)
    write_snapshot(copy, tmp_path / "board", keep=lambda r: r["attack"] == "pgd")
    text = (tmp_path / "board" / "CHANGES.md").read_text()
    assert f"pgd steps=20, relative_step=0.25, restarts=1 Linf 0.1 white-box 24: {100 * was / 24:.1f} -> 100.0" in text
    assert "0 cells added, 6 removed" in text and text.index("6 removed") < text.index("first results")


def test_tables_of_markdown_file_are_updated(board, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- board: board -->\nstale\n<!-- end -->\nb\n<!-- board: none -->\n<!-- end -->\n")
    assert main(["report", "--update-tables", str(page)]) == 0
    text = page.read_text()
    assert method_summary(board) in text and "stale" not in text and "No results in `none` yet." in text
    assert text.startswith("a\n") and "\nb\n" in text and update_tables(text, tmp_path) == text
    page.write_text("no comments")
    with pytest.raises(RequestError, match="has no table to update"):
        update_file(page)


def test_leaderboard_without_store_shows_bundled_results(board, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results_rows, "bundled_boards", lambda: [board])
    assert main(["leaderboard", "--format", "md"]) == 0
    captured = capsys.readouterr()
    assert "| at | cnn |" in captured.out and "showing the results that come with robobench (board)" in captured.err
    assert main(["leaderboard", "--out", "nowhere"]) == 2


def test_repository_tables_match_their_rows():
    """Every snapshot of the repository has a table in its README, and README.md or docs/results.md shows it too."""
    boards = {records.parent for records in ROOT.glob("leaderboards/*/artifacts")}
    pages = [ROOT / "README.md", ROOT / "docs" / "results.md"]
    assert {(page.parent / m[3]).resolve() for page in pages for m in TABLE.finditer(page.read_text())} == boards
    for page in [ROOT / "README.md", ROOT / "docs" / "results.md", *ROOT.glob("leaderboards/*/README.md")]:
        text = page.read_text()
        assert update_tables(text, page.parent) == text, f"robobench report --update-tables {page.relative_to(ROOT)}"
