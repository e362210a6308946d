from robobench.cli import main


def test_unknown_baseline_is_refused_early(tmp_path, capsys):
    """The error comes before anything is trained or stored."""
    arguments = ["compare", "--defenses", "standard,at", "--baseline", "att", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "unknown baseline 'att'; did you mean 'at'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
