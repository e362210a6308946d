"""A board made from a small store: what is in it, whether it can be checked, and what shows a false figure."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import robobench
from robobench.attacks.transfer import Transfer, TransferConfig
from robobench.cli import main
from robobench.core.memory import keep_freed_memory
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.execution.reproduce import ReproducedCell, Reproducer, sample_cells
from robobench.planning.planner import NORMALIZATION, Planner
from robobench.planning.repro_command import group_by_command, non_default_settings
from robobench.planning.request import ExperimentConfig
from robobench.report.board_folder import publish, stale_tables
from robobench.report.board_readme import BLOCK, fill, fill_file
from robobench.report.method_summary import _flags, front
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
    assert publish(store, tmp_path / "board", intro="Made by hand.") == []
    return tmp_path / "board"


def rewrite(artifact: Path, file: str, **changes: object) -> None:
    """Change a stored file so that every digest still fits."""
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


def test_a_board_holds_the_store_s_figures_and_only_what_they_need(store, board):
    rows = read_rows(board)
    pd.testing.assert_frame_equal(rows, read_rows(store))
    assert rows["train_cpu_seconds"].gt(0).all() and rows["total_train_cpu_seconds"].ge(rows["train_cpu_seconds"]).all()
    assert not list(board.rglob("examples.safetensors")) and len(list(board.rglob("model.safetensors"))) == 3
    lines = list(csv.DictReader(io.StringIO((board / "matrix.csv").read_text())))
    assert {line["protocol"] for line in lines} == {"white-box", "transfer"}
    (line,) = [line for line in lines if line["defense"] == "at" and line["protocol"] == "white-box"]
    (row,) = [r for r in rows.to_dict("records") if all(r[k] == v for k, v in AT.items())]
    assert line["pgd Linf 0.1"] == f"{100 * row['robust_accuracy']:.1f}" and float(line["CPU s"]) > 0
    model, image = robobench.load(board, "at"), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(image), robobench.load(store, "at")(image))


def test_the_readme_says_where_figures_come_from_and_keeps_what_people_wrote(store, board):
    text = (board / "README.md").read_text()
    for said in ("Made by hand.", "| at | 1 |", "worst case over fgsm (fixed); pgd (steps=20, relative_step=0.25, ",
                 "restarts=1) at Linf 0.1, 24 images of digits", "CPU s", "epochs=2 (200)",
                 "robobench run --defense at --model cnn"):  # fmt: skip
        assert said in text, said
    (board / "README.md").write_text(text.replace("Made by hand.", "Mine."))
    publish(store, board)
    assert (board / "README.md").read_text() == text.replace("Made by hand.", "Mine.")


def test_the_front_table_leaves_the_source_s_own_transfer_out(board):
    lines = [line.split(" | ") for line in front(board).splitlines() if line.startswith("|")]
    head = [name.strip("| ") for name in lines[0]]
    by_name = {line[0].strip("| "): dict(zip(head, line, strict=True)) for line in lines[2:]}
    assert set(by_name) == {"at", "standard"} and by_name["standard"]["seeds"] == "2"
    rows = read_rows(board)
    control = rows[(rows["seed"] == 1) & (rows["protocol"] == "transfer")].iloc[0]["worst_case_accuracy"]
    shown = by_name["standard"]["A transfer"]
    assert shown.startswith(f"{100 * control:.1f} [") and shown.endswith("], control")  # of another seed alone
    assert "control" not in by_name["at"]["A transfer"]
    seeds = rows[(rows["defense"] == "standard") & (rows["protocol"] == "white-box")].drop_duplicates("seed")
    assert by_name["standard"]["A clean"].startswith(f"{100 * seeds['clean_accuracy'].mean():.1f} ± ")
    assert "a" in {by_name["at"]["A ties"], by_name["standard"]["A ties"]}


def test_transfer_stands_beside_a_white_box_search_in_bfloat16(tmp_path):
    command = ["compare", "-q", "--defenses", "standard,at", "--out", str(tmp_path)]
    assert main([*command, *TINY[:-1], "bf16", *ATTACKS]) == 0
    head, _, *lines = [line.strip("|").split("|") for line in front(tmp_path).splitlines() if line.startswith("|")]
    (at,) = [dict(zip(map(str.strip, head), line, strict=True)) for line in lines if line[0].strip() == "at"]
    assert "[" in at["A white-box"] and "[" in at["A transfer"]
    assert "bfloat16 search) at Linf 0.1" in front(tmp_path)


def test_the_column_with_the_most_attacks_comes_first_and_each_set_of_images_has_its_clean_accuracy(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    command = ["compare", "-q", *TINY, "--out", str(copy), "--defenses", "standard,at", "--protocol", "white-box"]
    fewer = ["--examples", "16", "--attacks", "pgd,fgsm,jitter", "--eps", "0.1"]  # the later --examples counts
    assert main([*command, *fewer]) == 0
    table = front(copy).splitlines()
    head = [name.strip() for name in table[0].strip("|").split("|")]
    assert [name for name in head if name.endswith(("clean", "white-box"))] == [
        "A clean", "A white-box", "B clean", "B white-box"
    ]  # fmt: skip
    legend = "\n".join(line for line in table if line.startswith("* "))
    assert "* A: worst case over fgsm (fixed); jitter (" in legend and ", 16 images" in legend
    assert "* B: worst case over fgsm (fixed); pgd (steps=20" in legend and ", 24 images" in legend


def test_a_flag_is_shown_with_the_columns_it_was_raised_at():
    rows = pd.DataFrame(
        [
            {"examples": n, "threat_norm": "Linf", "threat_eps": e, "flags": f, "weights_digest": w}
            for n, e, f, w in (
                (200, 0.1, "slow,transfer-only", "one"),
                (1000, 0.1, "slow", "one"),
                (1000, 0.2, "slow,odd", "two"),
            )
        ]
    )
    points = [(200, "Linf", 0.1, "pgd"), (1000, "Linf", 0.1, "pgd")]
    assert _flags(rows, points) == "odd (Linf 0.2, 1 of 2 networks), slow, transfer-only (A, 1 of 2 networks)"
    assert _flags(rows.assign(flags=None), points) == "-"


def test_cells_are_drawn_from_different_attacks_and_the_quickest_comes_first():
    cells = [{"key": str(n), "attack": "pgd" if n < 9 else "autoattack", "seconds": 20 - n} for n in range(10)]
    for seed in range(5):
        assert [c["attack"] for c in sample_cells(cells, 2, seed)] == ["autoattack", "pgd"]
        assert [c["seconds"] for c in sample_cells(cells, 0, seed)] == sorted(c["seconds"] for c in cells)
    assert len({sample_cells(cells, 1, seed)[0]["key"] for seed in range(5)}) > 1


def test_every_figure_of_a_fresh_board_holds_image_by_image(board, capsys):
    assert main(["verify", str(board), "--sample", "0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 13 and said[-1] == "12 of 12 figures hold"  # 3 networks, 2 attacks, 2 protocols
    assert all("24 of 24 images as recorded" in line for line in said[:-1])


def test_a_false_figure_fails_and_the_rest_does_not(board, capsys):
    rewrite(cell(board, **AT), "record.json", robust_bits="0" * 24, clean_bits="1" * 24)
    rows = make_frame(read_records(board))
    (board / "rows.csv").write_text(rows.to_csv(index=False))
    assert main(["verify", str(board), "--sample", "0"]) == 1
    said = capsys.readouterr().out
    assert said.count("FAILS") == 2 and "FAILS: matrix.csv is not what the records give" in said
    assert "FAILS: at (seed 0), pgd Linf 0.1, white-box, 24 of 24 images" in said and "11 of 12 figures hold" in said


def test_edited_tables_weights_and_other_images_are_noticed(board, capsys):
    rows = (board / "rows.csv").read_text()
    (board / "rows.csv").write_text(rows.replace("at,1,", "at,2,", 1))
    assert main(["verify", str(board), "--sample", "1"]) == 1
    assert "rows.csv is not what the records give" in capsys.readouterr().out
    (board / "rows.csv").write_text(rows)
    (weights,) = board.glob("at-*/model.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-4] + b"\0\0\0\1")
    assert main(["verify", str(board), "--sample", "0"]) == 2
    assert "has changed since it was written" in capsys.readouterr().err
    weights.write_bytes(good)
    for artifact in board.glob("artifacts/evaluations/*"):
        rewrite(artifact, "record.json", data_digest="0123456789abcdef")
    assert main(["verify", str(board), "--sample", "1"]) == 2
    assert "not the images of the record: 'digits' has digest" in capsys.readouterr().err


def test_large_weights_stay_behind_and_are_trained_again(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folder, "MOST_BYTES", 10)
    assert len(publish(store, tmp_path / "board")) == 3
    assert main(["verify", str(tmp_path / "board")]) == 2
    assert "train them again with --retrain" in capsys.readouterr().err
    chosen = Reproducer(tmp_path / "board", sample=0, retrain=tmp_path / "again")
    chosen.cells = [r for r in chosen.cells if r["defense"] == "standard" and r["protocol"] == "white-box"][:1]
    (found,) = chosen
    assert found.reproduced and found.robust[0] == found.robust[1]


def test_a_cell_that_took_long_is_attacked_on_its_first_images(board):
    chosen = Reproducer(board, sample=1, minutes=5)
    (record,) = chosen.cells
    chosen.seconds[record["key"]] = 3.9 * 5 * 60.0  # almost four times its share
    (found,) = chosen
    assert len(found.robust[0].values) == 6 and found.robust[0] == found.robust[1]


def test_a_network_that_was_never_trained_does_not_stop_the_board(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (tmp_path / "shy.py").write_text(
        "from robobench.api import DEFENSES, Defense\n\n\n"
        '@DEFENSES.register("shy")\nclass Shy(Defense):\n'
        '    def stages(self, setup):\n        raise RuntimeError("not today")\n'
    )
    failing = ["compare", "-q", "--defenses", "standard,shy", "--plugin", str(tmp_path / "shy.py")]
    assert main([*failing, *TINY, *ATTACKS, "--out", str(copy)]) == 1
    assert publish(copy, tmp_path / "board") == []
    text = (tmp_path / "board" / "README.md").read_text()
    assert "--defense at " in text and "shy" not in text


def test_a_small_stage_after_a_large_one_has_a_peak_of_its_own(tmp_path):
    (tmp_path / "twice.py").write_text(
        "import torch\nfrom robobench.api import DEFENSES, Defense, Produce\n"
        "from robobench.defenses.standard import CrossEntropy\n\n\n"
        "def large(batch):\n"
        "    taken = [torch.ones(5_000_000) for _ in range(20)]  # 380 MiB, each as small as glibc keeps\n"
        "    return taken[0][: len(batch.index), None].clone()\n\n\n"
        '@DEFENSES.register("twice")\nclass Twice(Defense):\n'
        "    def stages(self, setup):\n"
        '        return [Produce(name="large", function=large), setup.train("small", CrossEntropy(setup.model))]\n'
    )
    plugin = ("--defense", "twice", "--plugin", str(tmp_path / "twice.py"), "--out", str(tmp_path / "runs"))
    assert main(["run", "-q", *TINY, *ATTACKS, *plugin]) == 0
    rows = read_rows(tmp_path / "runs")
    (said,) = rows.loc[rows["defense"] == "twice", "stage_memory"].unique()
    large, small = (int(part.removesuffix(" MiB").split()[1]) for part in said.split("; "))
    assert said == f"large {large} MiB; small {small} MiB"
    assert large - small > 200 or not keep_freed_memory()  # elsewhere nothing can be given back
    assert rows.loc[rows["defense"] == "twice", "peak_memory_bytes"].max() / 2**20 == pytest.approx(large, abs=1)


def test_a_board_made_before_a_column_came_still_holds(board):
    rows = read_rows(board).drop(columns=OPTIONAL_COLUMNS)
    (board / "rows.csv").write_text(make_frame(read_records(board))[rows.columns].to_csv(index=False))
    assert stale_tables(board) == []
    shutil.rmtree(board / "artifacts")
    assert list(read_rows(board).columns) == list(rows.columns)


def test_a_control_that_is_asked_for_later_is_a_network_like_others(store, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)

    def controls():
        return {(r["defense"], r["seed"]) for r in read_records(copy) if r["control"]}

    assert controls() == {("standard", 1)}
    command = ["run", "-q", *TINY, *ATTACKS, "--out", str(copy), "--defense", "standard"]
    assert main([*command, "--seeds", "0,1"]) == 0 and not controls()
    clean = read_rows(copy).query("defense == 'standard'").drop_duplicates("seed")["clean_accuracy"]
    over_seeds = capsys.readouterr().out.split("accuracy over seeds")[1]
    assert f"{100 * clean.mean():.1f} ± {100 * clean.std():.1f}" in over_seeds
    assert main(command) == 0 and not controls()


def test_a_bfloat16_search_says_so_and_stands_beside_the_exact_one(store, tmp_path, capsys):
    weights = next(store.glob("at-*-s0-*/model.safetensors"))
    shared = [
        "-q",
        *TINY[:6],
        "--examples",
        "24",
        *ATTACKS[:4],
        "--set",
        "run.eval_batch_size=16",
        "--out",
        str(tmp_path),
    ]
    for precision in ("fp32", "bf16"):
        assert main(["evaluate", str(weights), *shared, "--precision", precision]) == 0
    rows = read_rows(tmp_path)
    said = {
        (row["attack"], row["precision"], row["budget"].endswith("bfloat16 search")) for row in rows.to_dict("records")
    }
    assert said == {("pgd", "fp32", False), ("pgd", "bf16", True), ("fgsm", "fp32", False), ("fgsm", "bf16", False)}
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--sample", "0"]) == 0


def test_a_network_of_a_user_s_own_sees_the_same_images_when_trained_and_when_evaluated(tmp_path):
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
    trained, brought = (read_rows(tmp_path / name) for name in "ab")
    same = trained[trained["weights_digest"].isin(set(brought["weights_digest"]))]
    assert set(brought["clean_accuracy"]) == set(same["clean_accuracy"]) != set()
    planner = Planner(ExperimentConfig(external=True, model=f"{net}:small", weights=weights, out=tmp_path / "c"))
    assert planner.spec(0).mean == (0, 0, 0)
    assert planner.spec(0, "cnn").mean == NORMALIZATION["digits"][0]  # a source beside it, or a teacher


def test_what_moved_is_written_down(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    publish(copy, tmp_path / "board")
    assert "12 cells of 3 networks: the first figures" in (tmp_path / "board" / "CHANGES.md").read_text()
    was = json.loads((cell(copy, **AT) / "record.json").read_text())["robust_bits"].count("1")
    rewrite(cell(copy, **AT), "record.json", robust_bits="1" * 24, clean_bits="1" * 24)
    publish(copy, tmp_path / "board", keep=lambda r: r["attack"] == "pgd")
    said = (tmp_path / "board" / "CHANGES.md").read_text()
    assert f"pgd steps=20, relative_step=0.25, restarts=1 Linf 0.1 white-box 24: {100 * was / 24:.1f} -> 100.0" in said
    assert "0 cells came, 6 went" in said and said.index("6 went") < said.index("the first figures")


def test_a_figure_holds_exactly_inside_the_recorded_interval():
    from robobench.results.statistics import PerImageOutcomes, wilson

    def bits(count):
        return PerImageOutcomes(tuple(i < count for i in range(100)))

    low, high = wilson(30, 100)  # 21.9 and 39.6 %
    assert (
        [ReproducedCell({}, (bits(60), bits(60)), (bits(30), bits(n))).reproduced for n in (21, 22, 39, 40)]
        == [low <= n / 100 <= high for n in (21, 22, 39, 40)]
        == [False, True, True, False]
    )


def test_a_markdown_file_s_tables_are_filled_and_others_refused(board, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- board: board -->\nstale\n<!-- end -->\nb\n<!-- board: none -->\n<!-- end -->\n")
    assert main(["report", "--fill", str(page)]) == 0
    text = page.read_text()
    assert front(board) in text and "stale" not in text and "No board is in `none` yet." in text
    assert text.startswith("a\n") and "\nb\n" in text and fill(text, tmp_path) == text
    page.write_text("no comments")
    with pytest.raises(RequestError, match="has no table to fill"):
        fill_file(page)


def test_cells_that_no_single_command_makes_get_several():
    def cell(attack, norm, steps=20):
        recipe = {"eval_batch_size": 256, "transfer_source": None, "attack": {"config": {"steps": steps}}}
        return {"attack": attack, "threat_norm": norm, "precision": "fp32", "threads": 1, "recipe": recipe}

    linf, l2, own, hard = cell("pgd", "Linf"), cell("pgd", "L2"), cell("autoattack-l2", "L2"), cell("pgd", "Linf", 100)
    assert group_by_command([linf, own, l2, hard]) == [[linf, own], [l2], [hard]]
    assert group_by_command([]) == [[]]


def test_examples_made_elsewhere_are_verified_and_redone_by_their_name_alone(tmp_path):
    np.savez(tmp_path / "made.npz", adv=np.zeros((2, 3, 8, 8), np.float32))
    attack = Transfer(TransferConfig(file=str(tmp_path / "made.npz")), ThreatModel("Linf", 0.1))
    config = asdict(attack.config)
    again = Reproducer._attack({"attack": attack.name, "config": config, "norm": "Linf", "eps": 0.1})
    assert again.name == attack.name and again.config == attack.config
    assert non_default_settings("attack", attack.name, config, "quick", "cnn") == []  # `--set` could not say more


def test_a_leaderboard_without_a_store_shows_the_boards_that_come_along(board, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "measured", lambda: [board])
    assert main(["leaderboard", "--format", "md"]) == 0
    said = capsys.readouterr()
    assert "| at | cnn |" in said.out and "this is what robobench itself measured (board)" in said.err
    assert main(["leaderboard", "--out", "nowhere"]) == 2


def test_the_repository_s_tables_are_what_the_rows_give_and_every_board_stands_in_the_readme():
    boards = {str(records.parent.relative_to(ROOT)) for records in ROOT.glob("leaderboards/*/artifacts")}
    shown = {m[3] for m in BLOCK.finditer((ROOT / "README.md").read_text()) if m[2] == "board"}
    assert shown == boards
    for page in [ROOT / "README.md", *ROOT.glob("leaderboards/*/README.md")]:
        text = page.read_text()
        assert fill(text, page.parent) == text, f"run 'robobench report --fill {page.relative_to(ROOT)}'"
