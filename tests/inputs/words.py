"""Numbers, names and paths as people write them; files of adversarial examples; teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robobench.core.numbers import canonical_norm, parse_eps, parse_radii
from robobench.core.paths import expand_user
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.models.checkpoint import check_file
from robobench.planning.parsing import parse_value
from robobench.planning.precheck import check_request
from robobench.planning.request import ExperimentConfig
from robobench.plugins.discovery import parse_attack_spec
from tests.inputs.case import Case


def number(text, value, norm="Linf"):
    def run(folder):
        assert parse_eps(text, norm) == pytest.approx(value, abs=1e-12)
        return []

    return Case("Radii and constants", f"--eps {text}", run)


def radii(given, expected, *texts):
    def run(folder):
        assert parse_radii(texts, "Linf") == expected
        return []

    return Case("Radii and constants", given, run)


def refused(section, given, says, call):
    def run(folder):
        call(folder)
        return []

    return Case(section, given, run, says, True)


def same(section, given, call, expected):
    def run(folder):
        assert call(folder) == (expected(folder) if callable(expected) else expected)
        return []

    return Case(section, given, run)


EPS = 8 / 255
NUMBERS = [
    *(number(text, EPS) for text in ("8/255", "8.0/255", "8./255.", "8 / 255")),
    number(".031", 0.031), number("125.3/255", 125.3 / 255), number("0.5", 0.5, "L2"), number("3e-2", 0.03),
    radii("--eps 8/255,16/255", {"Linf": ("8/255", "16/255")}, "8/255,16/255"),
    radii("--eps '8/255 16/255'", {"Linf": ("8/255", "16/255")}, "8/255 16/255"),
    radii("--eps '8 / 255, 16 / 255'", {"Linf": ("8/255", "16/255")}, "8 / 255, 16 / 255"),
    radii("--eps '[8/255, 16/255]'", {"Linf": ("8/255", "16/255")}, "[8/255, 16/255]"),
    radii("--eps 8/255 --eps L2:0.5", {"Linf": ("8/255",), "L2": ("0.5",)}, "8/255", "L2:0.5"),
    refused("Radii and constants", "--eps 8", "did you mean 8/255?", lambda _: parse_eps("8", "Linf")),
    refused("Radii and constants", "--eps 8/0", "is not a number", lambda _: parse_eps("8/0", "Linf")),
    refused("Radii and constants", "--eps eight", "write a fraction", lambda _: parse_eps("eight", "Linf")),
    refused("Radii and constants", "--eps -0.1", "must be a finite number >= 0", lambda _: parse_eps("-0.1", "Linf")),
    refused("Radii and constants", "--eps inf", "is not a number", lambda _: parse_eps("inf", "L2")),
    refused("Radii and constants", "evaluate 16/255, a second radius after a space", "--eps 8/255,16/255",
            lambda folder: check_request(ExperimentConfig(weights=Path("16/255")))),
    same("Radii and constants", "--set trades.beta=6.", lambda _: parse_value("6.", float, "beta"), 6.0),
    same("Radii and constants", "--set at.step_size=2./255", lambda _: parse_value("2./255", float, "x"), 2 / 255),
]  # fmt: skip


# --- names and paths ----------------------------------------------------------------------------


def checked(**fields):
    return check_request(ExperimentConfig(**fields))


NORMS = ("Linf", "linf", "L-inf", "L_inf", "inf", "LINF")
NAMES = [
    same("Names and paths", f"--norm {', '.join(NORMS)}", lambda _: {canonical_norm(n) for n in NORMS}, {"Linf"}),
    same("Names and paths", "--norm l2, 2", lambda _: {canonical_norm(n) for n in ("l2", "2", "L-2")}, {"L2"}),
    same("Names and paths", "--dataset CIFAR10", lambda _: checked(dataset="CIFAR10").dataset, "cifar10"),
    same("Names and paths", "--dataset CIFAR-10", lambda _: checked(dataset="CIFAR-10").dataset, "cifar10"),
    same("Names and paths", "--model ResNet18", lambda _: checked(model="ResNet18").model, "resnet18"),
    same("Names and paths", "--model ResNet-18", lambda _: checked(model="ResNet-18").model, "resnet18"),
    same("Names and paths", "--model WRN-28-10", lambda _: checked(model="WRN-28-10").model, "wrn-28-10"),
    same("Names and paths", "--defense TRADES", lambda _: checked(defenses=("TRADES",)).defenses, ("trades",)),
    same("Names and paths", "--attacks PGD,AutoAttack", lambda _: checked(attacks=("PGD", "AutoAttack")).attacks,
         ("pgd", "autoattack")),
    same("Names and paths", "--preset Quick", lambda _: checked(preset="Quick").preset, "quick"),
    refused("Names and paths", "--defense trade", "did you mean 'trades'?", lambda _: checked(defenses=("trade",))),
    refused("Names and paths", "--attacks pdg", "did you mean 'pgd'?", lambda _: checked(attacks=("pdg",))),
    refused("Names and paths", "--model resnet81", "did you mean", lambda _: checked(model="resnet81")),
    refused("Names and paths", "--dataset cifer10", "did you mean 'cifar10'?", lambda _: checked(dataset="cifer10")),
    refused("Names and paths", "--norm L3", "unknown norm 'L3'", lambda _: checked(norm="L3")),
    refused("Names and paths", "a weights file that is not there", "no weights file 'w.pt'",
            lambda folder: check_file(Path("w.pt"))),
    refused("Names and paths", "a data file that is not there", "no file or folder 'd.npz'",
            lambda _: checked(dataset="npz:d.npz")),
    *(same("Names and paths", f"~ in {text}", lambda folder, text=text: expand_user(text),
           lambda folder, text=text: text.replace("~", str(folder.home())))
      for text in ("~/runs", "npz:~/mine.npz", "robust=~/at.pt", "resnet18=~/w.pt", "transfer:~/adv.pt")),
    same("Names and paths", "a ~ inside a name", lambda _: expand_user("a~b/c~"), "a~b/c~"),
]  # fmt: skip


# --- teachers -----------------------------------------------------------------------------------


def teacher(text):
    def call(folder):
        (folder / "net.py").write_text("def trained(num_classes): ...\n")
        (folder / "w.pt").write_bytes(b"")
        return checked(teachers=(text,)).teachers

    return call


TEACHERS = [
    *(same("Teachers", f"--teacher {text}", teacher(text), (text,))
      for text in ("robust=w.pt", "robust=net.py:trained", "robust=net.py:trained=w.pt", "robust=resnet18=w.pt",
                   "robust=robustbench:Wong2020Fast")),
    refused("Teachers", "--teacher robust=missing.pt", "no weights file 'missing.pt'", teacher("robust=missing.pt")),
    refused("Teachers", "--teacher robust", "names no file", teacher("robust")),
    refused("Teachers", "--teacher robust=resnet81=w.pt", "did you mean", teacher("robust=resnet81=w.pt")),
]  # fmt: skip


# --- adversarial examples -----------------------------------------------------------------------

ADV = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def transfer(given, name, save, says="", *, refused=False, count=4, shape=(3, 8, 8)):
    def run(folder):
        save(folder / name)
        cls, values = parse_attack_spec(f"transfer:{folder / name}")
        try:
            attack: Any = cls(cls.Config(**values), ThreatModel("Linf", 0.1))
        except ValueError as err:  # of a config; becomes a RequestError where it is built
            raise RequestError(str(err)) from None
        notes = attack.warnings()
        attack.check_images(count, shape)
        torch.testing.assert_close(attack._read(), ADV, rtol=0, atol=1e-6)
        return notes

    return Case("Adversarial examples from a file", given, run, says, refused)


def saved(content):
    return lambda path: torch.save(content, path)


BYTES = (ADV * 255).round().byte()
TRANSFER = [
    transfer(".pt of a tensor", "a.pt", saved(ADV)),
    transfer(".pth of a tensor", "a.pth", saved(ADV)),
    transfer(".npy", "a.npy", lambda path: np.save(path, ADV.numpy())),
    transfer(".npz with adv", "a.npz", lambda path: np.savez(path, adv=ADV.numpy(), labels=np.zeros(4))),
    transfer(".npz with one array", "a.npz", lambda path: np.savez(path, ADV.numpy()), "the images are 'arr_0'"),
    transfer(".safetensors with x_adv", "a.safetensors", lambda path: save_file({"x_adv": ADV}, path)),
    transfer("AutoAttack's script: adv_complete", "a.pth", saved({"adv_complete": ADV}), "'adv_complete'"),
    transfer("torchattacks: adv_inputs, labels", "a.pt",
             saved({"adv_inputs": ADV, "labels": torch.zeros(4), "clean_inputs": ADV * 0, "save_type": "float"}),
             "'adv_inputs'"),
    transfer("torchattacks, save_type int", "a.pt",
             saved({"adv_inputs": BYTES, "labels": torch.zeros(4), "save_type": "int"}), "'adv_inputs'"),
    transfer("a tuple of images and labels", "a.pt", saved((ADV, torch.zeros(4))), "the images are '0'"),
    transfer("uint8 images", "a.pt", saved(BYTES)),
    transfer("float images in 0 to 255", "a.pt", saved(ADV * 255), "divided by 255"),
    transfer("N x H x W x 3", "a.npy", lambda path: np.save(path, ADV.permute(0, 2, 3, 1).numpy()),
             "N x height x width x channels"),
    transfer("N x H x W x 3 in uint8", "a.npy", lambda path: np.save(path, BYTES.permute(0, 2, 3, 1).numpy()),
             "N x height x width x channels"),
    transfer("normalized images", "a.pt", saved(ADV * 2 - 1), "[0, 1]", refused=True),
    transfer("two arrays of images without a name", "a.npz", lambda path: np.savez(path, a=ADV, b=ADV),
             "name the adversarial ones 'adv'", refused=True),
    transfer("no images", "a.pt", saved({"labels": torch.zeros(4)}), "must hold images", refused=True),
    transfer("fewer images than test images", "a.pt", saved(ADV), "--examples 4", refused=True, count=9),
    transfer("images of another size", "a.pt", saved(ADV), "the test images are (3, 32, 32)", refused=True,
             shape=(3, 32, 32)),
    transfer("another suffix", "a.txt", lambda path: path.write_text("x"), "give an .npz", refused=True),
    transfer("pickled objects", "a.pt", saved({"adv": ThreatModel("Linf", 0.1)}), "cannot read", refused=True),
]  # fmt: skip

CASES = [*NUMBERS, *NAMES, *TEACHERS, *TRANSFER]
