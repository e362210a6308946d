"""Scores of submitted images, counted by hand, and the files they come from."""

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import robobench
from robobench.cli import main
from robobench.core.threat import ThreatModel
from robobench.data.image_file import read_image_file, write_image_file
from robobench.errors import RequestError
from tests.helpers.attacks import Threshold, pixels

IMAGES, LABELS = pixels(0.45, 0.45, 0.45, 0.45, 0.9, 0.02), torch.tensor([0, 0, 0, 0, 0, 0])


def test_score_counts_every_reason():
    """Class 1 begins at 0.5. One image succeeds, one fails, three are invalid, one is wrong when clean."""
    adv = pixels(0.55, 0.46, 0.7, math.nan, 0.9, -0.05)
    found = robobench.score(adv, model=Threshold(), images=IMAGES, labels=LABELS, eps=0.1)
    assert found.clean.tolist() == [True, True, True, True, False, True]
    assert found.success.tolist() == [True, False, False, False, True, False]
    assert found.robust.tolist() == [False, True, True, True, False, True]
    assert found.reasons == ("", "", "outside Linf 0.1", "not finite", "", "outside [0, 1]")
    assert found.robust_accuracy == 4 / 6 and found.as_dict()["successes"] == 1
    assert torch.allclose(found.distances[:3], torch.tensor([0.1, 0.01, 0.25]).double(), atol=1e-7)
    assert found.notes == ()
    short = robobench.score(adv[:2], model=Threshold(), images=IMAGES, labels=LABELS, eps=0.1)
    assert short.notes == ("2 images were submitted for 6 test images; the score is of the first 2",)


def test_score_tells_what_it_converted(tmp_path):
    """uint8 images with the channels last, in a file whose array has another name."""
    images = (255 * pixels(0.5).permute(0, 2, 3, 1)).to(torch.uint8)
    torch.save({"mine": images}, tmp_path / "adv.pt")
    found = robobench.score(tmp_path / "adv.pt", model=Threshold(), images=IMAGES[:1], labels=LABELS[:1], eps=0.1)
    assert any("the images are 'mine'" in note for note in found.notes)


def test_no_image_is_projected():
    """An image just outside the ball does not count, although its projection is misclassified."""
    for far, counts in ((0.0999, True), (0.1, True), (0.1001, False)):
        found = robobench.score(pixels(0.45 + far), model=Threshold(), images=IMAGES[:1], labels=LABELS[:1], eps=0.1)
        assert found.success.item() is counts


@pytest.mark.parametrize("name", ["adv.safetensors", "adv.pt"])
def test_saved_images_score_as_evaluated(tmp_path, digits_net, digits, name):
    images, labels = digits[0][1000:1030], digits[1][1000:1030]
    flags: Any = {"model": digits_net, "images": images, "labels": labels, "eps": 0.2}
    sets = ("pgd.steps=5",)
    result = robobench.evaluate(attacks="fgsm,pgd", save_adversarial=tmp_path / name, sets=sets, **flags)
    found = robobench.score(tmp_path / name, **flags)
    assert not any(found.reasons)
    assert found.robust_accuracy == result.rows["worst_case_accuracy"].iloc[0] < result.clean.double().mean()
    adv = read_image_file(tmp_path / name)[0]
    first = result.clean & ~result.outcomes["fgsm", 0.2, "white-box"]
    assert torch.equal(adv[first], result.adversarial["fgsm", 0.2, "white-box"][first])
    assert torch.equal(adv[~result.clean], images[~result.clean])


def test_file_with_other_labels_is_refused(tmp_path):
    write_image_file(tmp_path / "new" / "adv.safetensors", IMAGES, LABELS + 1, "Linf 0.1")
    with pytest.raises(RequestError, match="label 0 and 5 others"):
        robobench.score(tmp_path / "new" / "adv.safetensors", model=Threshold(), images=IMAGES, labels=LABELS, eps=0.1)


def test_command_line_saves_resumes_and_scores(tmp_path, factory, capsys):
    """A finished cell without kept images is attacked again; then both commands report the same accuracy."""
    from robobench.models.build import build_model
    from robobench.models.spec import ModelSpec

    torch.manual_seed(1)
    weights, adv = tmp_path / "net.pt", tmp_path / "adv.safetensors"
    torch.save(build_model(ModelSpec(name=f"{factory}:make", num_classes=10)).state_dict(), weights)
    words = [str(weights), "--model", f"{factory}:make", "--threads", "1"]
    more = ["--out", str(tmp_path / "runs"), "--attacks", "fgsm", "--eps", "0.3", "--examples", "40"]
    assert main(["evaluate", *words, *more]) == 0
    assert main(["evaluate", *words, *more, "--save-adversarial", str(adv), "--json", str(tmp_path / "e.json")]) == 0
    assert set(load_file(adv)) == {"adv", "labels"}
    flags = ["--eps", "0.3", "--json", str(tmp_path / "s.json")]
    assert main(["score", str(adv), *words, *flags]) == 0
    score = json.loads((tmp_path / "s.json").read_text())
    assert (
        score["robust_accuracy"]
        == json.loads((tmp_path / "e.json").read_text())["models"][0]["worst_case"][0]["accuracy"]
    )
    capsys.readouterr()
    assert main(["score", str(adv), *words, "--eps", "0.1"]) == 1
    assert "are outside Linf 0.1: counted as failed" in capsys.readouterr().out
    assert main(["evaluate", *words, *more, "--eps", "0.3,0.1", "--save-adversarial", str(adv)]) == 2
    assert "images of one ball" in capsys.readouterr().err


def test_wrong_submissions_are_refused(tmp_path):
    flags: Any = {"model": Threshold(), "images": IMAGES, "labels": LABELS}
    for adv, eps, message in (
        (pixels(*[0.1] * 7), 0.1, "one image for each test image"),
        (torch.zeros(6, 1, 2, 2), 0.1, "have shape"),
        (tmp_path / "no.pt", 0.1, "no adversarial examples at"),
        (IMAGES, (0.1, 0.2), "one radius"),
        (IMAGES, None, "one radius"),
    ):
        with pytest.raises(RequestError, match=message):
            robobench.score(adv, eps=eps, **flags)
    with pytest.raises(RequestError, match="safetensors"):
        robobench.evaluate(save_adversarial=tmp_path / "a.npz", attacks="fgsm", eps=0.1, **flags)


def test_tolerance_is_that_of_the_check():
    threat, images = ThreatModel("L2", 0.5), torch.zeros(1, 3, 4, 4)
    for factor, inside in ((0.9, True), (1.1, False)):
        adv = images.clone()
        adv[0, 0, 0, 0] = 0.5 + factor * threat.tolerance(images)
        found = robobench.score(
            adv, model=lambda x: x.flatten(1)[:, :2], images=images, labels=torch.zeros(1).long(), norm="L2", eps=0.5
        )
        assert (found.reasons == ("",)) is inside
