"""Teachers given by --teacher: their role, model and weights file."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from robobench.core.registry import match_name, unknown_name
from robobench.errors import ArtifactError, RequestError
from robobench.models.checkpoint import check_file
from robobench.models.spec import MODELS, ModelSpec, check_model_name
from robobench.planning.stored_models import local_model, local_weights
from robobench.store.artifacts import Store
from robobench.store.hub import is_hub_name

TEACHER_FORMAT = (
    "--teacher takes ROLE=FILE, ROLE=MODEL=FILE, ROLE=FOLDER of a trained model, ROLE=FILE.py:FUNCTION or "
    "ROLE=robustbench:ID or ROLE=hf:OWNER/REPO"
)


@dataclass(frozen=True)
class Teacher:
    """One --teacher: weights for the run's model or for `model`, or a trained model with its own `spec`."""

    text: str
    weights: Path | None
    model: str | None = None
    spec: ModelSpec | None = None
    resolution: int | None = None  # side of the images a trained model was made for, px

    @classmethod
    def read(cls, text: str) -> Teacher:
        """Parse the text after ROLE=; raises RequestError for a folder that holds no trained model."""
        model, equals, file = text.partition("=")
        if equals and not Path(text).exists():  # a path may hold "=" itself, as in outputs/lr=0.1/at.pt
            check_model_name(match_name(model, MODELS))
            return cls(text, local_weights(file), match_name(model, MODELS))
        if is_hub_name(text):
            return replace(cls.read(str(local_model(text))), text=text)
        if text.startswith(("robustbench:", "timm:")) or (":" in text and not Path(text).exists()):
            check_model_name(text)
            return cls(text, None, text)  # the function or the zoo brings the weights
        if not Path(text).is_dir():
            return cls(text, Path(text))
        folder = Path(text)
        try:
            Store.verify(folder)
            config = json.loads((folder / "config.json").read_text())
            spec = ModelSpec.from_config(config["spec"])
        except (ArtifactError, OSError, ValueError, KeyError, TypeError) as err:
            raise RequestError(f"'{folder}' is not the folder of a trained model ({err}); {TEACHER_FORMAT}") from None
        return cls(text, folder / "model.safetensors", spec=spec, resolution=config["resolution"])

    def refuse_other_images(self, classes: int, resolution: int) -> None:
        """Raise RequestError if a trained model was made for other images or classes than the run's."""
        for what, own, theirs in (
            ("classes", classes, self.spec.num_classes if self.spec else None),
            ("px images", resolution, self.resolution),
        ):
            if own != theirs:
                raise RequestError(
                    f"teacher '{self.text}' was trained for {theirs} {what}, this run has {own}; give a teacher of "
                    "the same data, or leave the flag out to train one"
                )


class Teachers:
    """The --teacher flags of a run, by role."""

    def __init__(self, texts: Collection[str]) -> None:
        self._given: dict[str, Teacher] = {}
        for text in texts:
            role, equals, rest = text.partition("=")
            if not (equals and role and rest):
                raise RequestError(f"--teacher '{text}' names no file; {TEACHER_FORMAT}")
            if role in self._given:
                raise RequestError(f"--teacher {role} is given twice; give each role once")
            same = [r for r, other in self._given.items() if other.text == rest]
            if same:
                raise RequestError(f"--teacher {same[0]} and {role} are the same model '{rest}'; give two models")
            self._given[role] = Teacher.read(rest)

    def __contains__(self, role: str) -> bool:
        return role in self._given

    def check_files(self) -> None:
        """Raise RequestError for a weights file that is missing or of another format."""
        for teacher in self._given.values():
            if teacher.weights is not None:
                check_file(teacher.weights)

    def use(self, role: str) -> Teacher:
        """Return the model given for a role."""
        return self._given[role]

    def check_used(self, roles: Collection[str]) -> None:
        """Raise RequestError for a role that no defense of the run has."""
        for role in self._given:
            if role not in roles and not roles:
                raise RequestError(f"--teacher {role}: no defense of this run takes a teacher; leave the flag out")
            if role not in roles:
                raise unknown_name("teacher role", role, roles)
