"""`compare study.toml`, from the file to the tables, and `report --study`, which writes such a file."""

from robobench.cli import main
from robobench.planning import request

STUDY = """
defenses = ["standard", "at"]
epochs = 1
examples = 24
threads = 1
attacks = "fgsm"
eps = "0.1"

[set]
at.inner_steps = [1, 2]
run.train_images = 64
run.held_out = 32
run.eval_batch_size = 16
"""


def test_grid_runs_once_and_is_written_again(tmp_path, capsys, monkeypatch):
    """`standard` does not depend on the axis: 2 + 2 trainings for 2 requests. The written file plans the same keys."""
    monkeypatch.setattr(request, "MIN_HELD_OUT", 32)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    assert main(["compare", "study.toml", "--dry-run"]) == 0
    assert "2 requests: 4 trainings and 8 cells, 0 of them in the store" in capsys.readouterr().out
    assert main(["compare", "study.toml", "--seeds", "0"]) == 0
    said = capsys.readouterr()
    assert said.err.count("training cnn on digits") == 4
    assert "at.inner_steps=2" in said.out and said.out.count("(best)") == 1
    text = " ".join(said.out.split())  # without the line breaks of a narrow terminal
    assert "chosen on these, never on test images" in text and "Holm-corrected over the grid" in text
    assert main(["report", "runs", "--study", "redo.toml"]) == 0
    assert main(["compare", "redo.toml", "--out", "runs", "--dry-run"]) == 0
    assert "4 trainings and 8 cells, 12 of them in the store" in capsys.readouterr().out


def test_flags_override_and_wrong_files_create_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY.replace("epochs", "epoch"))
    assert main(["run", "study.toml"]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err
    assert main(["compare", "study.toml", "other.toml"]) == 2
    assert "give one experiment file" in capsys.readouterr().err
    (tmp_path / "study.toml").write_text(STUDY.replace("run.held_out = 32\n", ""))
    assert main(["compare", "study.toml", "--set", "at.inner_steps=x"]) == 2
    assert "at.inner_steps takes a value of type int, got 'x'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]
