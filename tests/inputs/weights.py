"""Weights files: containers, prefixes, objects beside the tensors, several models, other formats."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from robobench.models.weights import load_weights
from robobench.models.wrapper import UserModel
from tests.inputs.case import Case


def network():
    parts = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return nn.Sequential(collections.OrderedDict(parts, fc=nn.Linear(4, 3)))


def filled(value):
    net = network()
    for tensor in net.state_dict().values():
        tensor.fill_(value)
    return dict(net.state_dict())


GOOD, OTHER = filled(0.25), filled(0.75)


def prefixed(prefix, state=GOOD):
    return {prefix + name: value for name, value in state.items()}


class Recorder:
    """An object of a project's own class, beside the weights."""

    def __init__(self):
        self.history = [1.0, 2.0]


class AttributeDict(dict[str, float]):
    """As Lightning's: a dictionary with attributes."""


class Phase(enum.Enum):
    TRAIN = 1


class Payload:
    """A pickle that runs code when it is loaded by plain pickle."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


class Rewriter:
    """A pickle that sets an attribute of torch's storage class."""

    def __reduce_ex__(self, protocol):
        return torch.UntypedStorage, (), (None, {"size": 1})


def weights(given, content, says="", *, refused=False, key=None, value=0.25, name="w.pt", save=torch.save):
    """A file with `content`; afterwards the model must hold `value`, and no code of the file has run."""

    def run(folder):
        save(content() if callable(content) else content, folder / name)
        model = UserModel(network())
        try:
            notes = load_weights(model, folder / name, key)
        finally:
            assert not (folder / "executed").exists()
        for parameter in model.parameters():
            assert (parameter == value).all()
        return notes

    return Case("Weights files", given, run, says, refused)


def write_bytes(content, path):
    path.write_bytes(content)


def without(*names):
    return {name: value for name, value in GOOD.items() if name not in names}


def zipped(content, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.txt", content)


def tarred(content, path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO(b""))


def scripted(content, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates torch.jit
        torch.jit.save(torch.jit.trace(network().eval(), torch.rand(1, 3, 8, 8)), path)


def arrays(content, path):
    with path.open("wb") as file:
        np.savez(file, **content)


CONTAINERS = ("state_dict", "model", "model_state_dict", "net", "network", "rmodel", "student", "params", "weights",
              "ema", "best", "last", "generator", "any key at all")  # fmt: skip
PREFIXES = ("module.", "model.", "net.", "backbone.", "_orig_mod.", "module.basic_net.", "module._orig_mod.", "1.",
            "encoder.features.deep.")  # fmt: skip
BESIDE: dict[str, dict[str, object]] = {
    "numpy scalars": {"acc": np.float64(93.1), "epoch": np.int64(3)},
    "numpy arrays": {"curve": np.arange(3.0)},
    "argparse.Namespace": {"args": argparse.Namespace(lr=0.1)},
    "an object of a project's own class": {"recorder": Recorder()},
    "a dict with attributes, as of Lightning": {"hyper_parameters": AttributeDict(lr=0.1)},
    "an enum": {"phase": Phase.TRAIN},
    "a set, a range, a path": {"seen": {1, 2}, "range": range(3), "path": os.path.join},
    "optimizer and scheduler state": {
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
    },
    "random states": {"rng": torch.get_rng_state(), "numpy_rng": np.random.default_rng(0).bit_generator.state},
    "code that runs when unpickled": {"payload": Payload()},
}
EXTRA = {
    "n_averaged": torch.tensor(3),
    "criterion.weight": torch.ones(3),
    "train_acc.correct": torch.tensor(3.0),
    "attacker.model.weight": torch.ones(2, 2),
    "sub_block1.layer.0.weight": torch.ones(2, 2),
}

CASES = [
    weights("a state dict", GOOD),
    weights("safetensors", GOOD, name="w.safetensors", save=save_file),
    weights("safetensors under another suffix", GOOD, name="w.bin", save=save_file),
    weights("the old format of torch.save", GOOD,
            save=lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False)),
    weights("half precision", {name: value.half() if value.is_floating_point() else value
                               for name, value in GOOD.items()}),
    weights("bfloat16", {name: value.bfloat16() if value.is_floating_point() else value
                         for name, value in GOOD.items()}),
    weights("nn.Parameter instead of tensors", lambda: {
        name: nn.Parameter(value.clone()) if value.is_floating_point() else value for name, value in GOOD.items()}),
    *(weights(f"under the key '{key}'", {key: GOOD, "epoch": 3}) for key in CONTAINERS),
    weights("nested: checkpoint / model / state_dict", {"checkpoint": {"model": {"state_dict": GOOD}}}),
    *(weights(f"names with the prefix '{prefix}'", prefixed(prefix)) for prefix in PREFIXES),
    weights("backbone.* and fc.*", {**{f"backbone.{k}": v for k, v in GOOD.items() if not k.startswith("fc.")},
                                    "fc.weight": GOOD["fc.weight"], "fc.bias": GOOD["fc.bias"]}),
    weights("a key and a prefix", {"state_dict": prefixed("module.model."), "acc": 1}),
    weights("a prefix and one stray key", {**prefixed("module."), "n_averaged": torch.tensor(1)}, "ignored in"),
    *(weights(f"{what} beside the weights", {"state_dict": GOOD, **beside}) for what, beside in BESIDE.items()),
    *(weights(f"'{key}' beside the weights", {**GOOD, key: value}, "not part of the model")
      for key, value in EXTRA.items()),
    weights("means, sds of another project", {**GOOD, "means": torch.zeros(3), "sds": torch.ones(3)}),
    weights("normalizer.mean, normalizer.std",
            {**prefixed("model."), "normalizer.mean": torch.zeros(3, 1, 1), "normalizer.std": torch.ones(3, 1, 1)}),
    weights("no counters of BatchNorm", without("bn.num_batches_tracked")),
    weights("model and model_ema", {"model": GOOD, "model_ema": OTHER}, "'model' is used, not 'model_ema'"),
    weights("model_ema first", {"model_ema": OTHER, "model": GOOD}, "'model' is used, not 'model_ema'"),
    weights("model and model_ema, --weights-key model_ema", {"model": GOOD, "model_ema": OTHER}, key="model_ema",
            value=0.75),
    weights("state_dict and state_dict_ema", {"state_dict": GOOD, "state_dict_ema": OTHER},
            "'state_dict' is used, not 'state_dict_ema'"),
    weights("last and best", {"last": GOOD, "best": OTHER}, "'last' is used, not 'best'"),
    weights("net and ema", {"net": GOOD, "ema": OTHER}, "choose with --weights-key"),
    weights("two models under prefixes", {**prefixed("student."), **prefixed("teacher.", OTHER)},
            "'student' is used, not 'teacher'"),
    weights("two models under prefixes, --weights-key teacher",
            {**prefixed("student."), **prefixed("teacher.", OTHER)}, "ignored in", key="teacher", value=0.75),
    weights("a model and parts of another", {**GOOD, **prefixed("ema.", dict(list(OTHER.items())[:5]))},
            "not part of the model"),
    weights("the same model twice", {"model": GOOD, "model_ema": dict(GOOD)}),
    weights("--weights-key of nothing in the file", {"model": GOOD}, "--weights-key takes one of 'model'",
            refused=True, key="emma"),
    weights("another number of classes", {**GOOD, "fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7)},
            "have 7 classes, the data set has 3", refused=True),
    weights("a missing entry", without("fc.bias"), "is missing", refused=True),
    weights("another architecture", nn.Linear(5, 2).state_dict(), "do not fit the model", refused=True),
    weights("a wider layer", {**GOOD, "conv.weight": torch.ones(4, 3, 5, 5)}, "has shape (4, 3, 5, 5)", refused=True),
    weights("a further layer inside a part of the model", {**GOOD, "fc.extra": torch.ones(3)}, "is unexpected",
            refused=True),
    weights("a whole pickled module", network, "save the weights alone", refused=True),
    weights("a whole pickled module under a key", lambda: {"model": network()}, "save the weights alone", refused=True),
    weights("a tuple of a state dict and an accuracy", (GOOD, 93.1)),
    weights("a list with one state dict under a key", {"states": [GOOD], "epoch": 3}),
    weights("a pickle that changes a class of torch", Rewriter(), "not a state dict", refused=True),
    weights("a list of state dicts", [GOOD, OTHER], "a list of 2 state dicts", refused=True),
    weights("a number", 3, "not a state dict", refused=True),
    weights("a dict without tensors", {"epoch": 3}, "a dict with epoch", refused=True),
    weights("an empty dict", {}, "an empty dict", refused=True),
    weights("only an optimizer", {"optimizer": {"state": {}, "param_groups": []}}, "a dict with optimizer",
            refused=True),
    weights("TorchScript", GOOD, "a TorchScript program", refused=True, save=scripted),
    weights("ONNX", b"\x08\x07", "an ONNX model", refused=True, name="w.onnx", save=write_bytes),
    weights("HDF5 of Keras", b"\x89HDF\r\n", "an HDF5 file of Keras", refused=True, save=write_bytes),
    weights("a web page", b"<!DOCTYPE html>", "a web page, not weights", refused=True, save=write_bytes),
    weights("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1", "git lfs pull", refused=True,
            save=write_bytes),
    weights("gzip", b"\x1f\x8b\x08", "compressed", refused=True, save=write_bytes),
    weights("a zip archive", "text", "a zip archive; unpack it", refused=True, save=zipped),
    weights("a tar archive", "text", "a tar archive; unpack it", refused=True, name="w.tar", save=tarred),
    weights("arrays of numpy", {"a": np.ones(3)}, "an archive of numpy arrays", refused=True,
            save=arrays),
    weights("a plain pickle that runs code", Payload(), "cannot read weights", refused=True,
            save=lambda content, path: path.write_bytes(pickle.dumps(content))),
    weights("an empty file", b"", "cannot read weights", refused=True, save=write_bytes),
    weights("a truncated file", b"PK\x03\x04", "cannot read weights", refused=True, save=write_bytes),
]  # fmt: skip
