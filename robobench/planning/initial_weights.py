"""Weights that trainings start from: the values of --init."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import ModelSpec
from robobench.models.weights import load_weights
from robobench.planning.request import ExperimentConfig
from robobench.planning.teacher_files import Teacher
from robobench.store.artifacts import file_digest

HUB_PREFIX = "hf:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
ALLOWED = "give a weights file, the folder of a trained model (STORE/NAME), timm, robustbench:ID or hf:OWNER/NAME"


@dataclass(frozen=True)
class InitialWeights:
    """A weights file that every training of a run starts from. A head for other classes is not taken from it."""

    text: str
    file: Path
    spec: ModelSpec | None = None  # of a model trained here; its preprocessing is kept

    def adapt(self, spec: ModelSpec) -> ModelSpec:
        """Return a spec with the stem, image size and normalization that the weights were trained with."""
        names = ("stem", "image_size", "interpolation", "mean", "std")
        return replace(spec, **{name: getattr(self.spec, name) for name in names if self.spec})

    def recipe(self) -> str:
        """Return the digest that enters the keys of trainings."""
        return file_digest(self.file)

    def check(self, spec: ModelSpec) -> None:
        """Raise RequestError unless the file can be loaded into the model of a spec."""
        _load(self.file, self.recipe(), replace(spec, pretrained=False))


@cache
def _load(file: Path, digest: str, spec: ModelSpec) -> None:
    load_weights(build_model(spec), file, new_head=True)


def use_published_weights(request: ExperimentConfig) -> ExperimentConfig:
    """Return a request in which --init timm and --init robustbench:ID are the settings that they stand for.

    Raises:
        RequestError: --model is another model than that of --init.
    """
    init = request.init
    if init is None or not (init == "timm" or init.startswith(ZOO_PREFIX)):
        return request
    if init != "timm" and request.model not in (init, ExperimentConfig.model):
        raise RequestError(f"--init {init} is a model of its own; leave out --model {request.model}")
    model = request.model if init == "timm" else init
    return replace(request, init=None, model=model, sets=("run.pretrained=true", *request.sets))


def find_initial_weights(request: ExperimentConfig) -> InitialWeights | None:
    """Return the file that --init names; None without --init.

    Raises:
        RequestError: there is no such file, or it belongs to another model.
    """
    if request.init is None:
        return None
    if request.init.startswith(HUB_PREFIX):
        return InitialWeights(request.init, _download(request.init.removeprefix(HUB_PREFIX)))
    path = Path(request.init)
    if not path.is_dir():
        if not path.is_file():
            raise RequestError(f"--init: no file '{path}'; {ALLOWED}")
        return InitialWeights(path.name, path)
    trained = Teacher.read(request.init)
    assert trained.spec is not None and trained.weights is not None
    if trained.spec.name != request.model:
        raise RequestError(f"--init '{path}' is a {trained.spec.name}, this run trains {request.model}; set --model")
    return InitialWeights(path.name, trained.weights, trained.spec)


def _download(repository: str) -> Path:
    """Return the weights file of a Hugging Face repository, from the cache or downloaded; raises RequestError."""
    from huggingface_hub import hf_hub_download

    reasons = []
    for name in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as err:  # no network, no such repository, no such file
            reasons.append(f"{name}: {type(err).__name__}")
    raise RequestError(f"--init hf:{repository}: no weights ({', '.join(reasons)}); {ALLOWED}")
