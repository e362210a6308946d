import csv
import io

import torch

import robobench
from robobench.cli import main
from robobench.data import load_dataset
from robobench.models.build import build_model
from robobench.models.spec import ModelSpec


def test_command_prints_the_curve_of_python(tmp_path, factory, capsys):
    torch.manual_seed(1)
    model = build_model(ModelSpec(name=f"{factory}:make", num_classes=10)).eval()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    words = [str(tmp_path / "net.pt"), "--model", f"{factory}:make", "--examples", "20", "--threads", "1"]
    more = ["--set", "fmn.steps=5", "--radii", "0.1,1", "--format", "csv"]
    assert main(["distances", *words, *more]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    test = load_dataset("digits", need_train=False).test
    images, labels = test.images(torch.arange(20)), test.labels[:20]
    curve = robobench.distances(model, images, labels, sets=("fmn.steps=5",)).curve([0.1, 1.0])
    assert [float(row["robust_accuracy"]) for row in rows] == curve["robust_accuracy"].tolist()
    assert main(["distances", *words, "--attack", "pgd"]) == 2
    assert "finds no distances; use fmn" in capsys.readouterr().err
