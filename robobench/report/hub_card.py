"""A store, a board or one trained model as a repository of the Hugging Face Hub, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.formatting import format_duration
from robobench.report.board_folder import write_snapshot
from robobench.report.formatting import format_interval, format_percent, format_threat, iter_groups
from robobench.results.rows import make_frame, read_records
from robobench.store.artifacts import MANIFEST, Store, wrap_write_errors

if TYPE_CHECKING:
    import pandas as pd

TAGS = ["robobench", "adversarial-robustness"]


def write_repository(place: Path, folder: Path, *, name: str, license_name: str | None = None) -> list[str]:
    """Write the files of a repository: records, tables, weights in safetensors, and README.md as its model card.

    Args:
        place: a store, a board, or STORE/NAME for one trained model.
        folder: a new folder, called as the repository.
        name: OWNER/REPO.
        license_name: the Hub's identifier of a license, such as mit.

    Returns:
        What was left out, one line each.

    Raises:
        RequestError: there are no records.
        ArtifactError: a file of the store is damaged.
    """
    model = place.name if (place / "config.json").is_file() and (place / MANIFEST).is_file() else None
    root = place.parent if model else place
    rows = make_frame([r for r in read_records(root) if model in (None, r["training"])])
    intro = [*(_model_lines(root, model, rows) if model else []), *_usage(name, model)]
    intro.append(f"License: {license_name or 'not stated'}.")
    if model is None and (place / "README.md").is_file():  # its text outside the tables is kept
        with wrap_write_errors(folder):
            folder.mkdir()
            shutil.copyfile(place / "README.md", folder / "README.md")
    left_out = write_snapshot(
        root,
        folder,
        keep=lambda record: model in (None, record["training"]),
        intro="\n\n".join(intro),
        all_weights=True,
    )
    readme = folder / "README.md"
    head = _front_matter(rows, name, license_name, with_results=model is not None)
    readme.write_text(f"---\n{head}\n---\n\n{_without_front_matter(readme.read_text())}")
    return left_out


def _without_front_matter(text: str) -> str:
    """Return a README without the metadata of an earlier card."""
    return text.split("\n---\n", 1)[1].lstrip() if text.startswith("---\n") and "\n---\n" in text[4:] else text


def _model_lines(root: Path, model: str, rows: pd.DataFrame) -> list[str]:
    """Say what one model is, what it cost to train, and what it reaches under which attacks."""
    config = json.loads((root / model / "config.json").read_text())
    digest = Store(root).digest("model", model, "model.safetensors")
    threat = config["threat"]
    against = f" against {format_threat(threat['norm'], threat['eps'])}" if threat else ""
    seconds = float(rows["total_train_seconds"].astype(float).max())
    cost = f", {format_duration(seconds)} of training with the models it requires" if seconds > 0 else ""
    lines = [
        f"{config['spec']['name']} trained with {config['defense']}{against} on {config['dataset']} "
        f"(seed {config['seed']}, preset {config['preset']}{cost}). Weights: SHA-256 {digest}.",
        "Robust accuracy is an upper bound found by the attacks below; a stronger attack may lower it.",
    ]
    figures = []
    for part in iter_groups(rows[rows["status"] == "ok"], ["selection", "protocol", "threat_norm", "threat_eps"]):
        first = part.iloc[0]
        if first["worst_case_accuracy"] == first["worst_case_accuracy"]:
            interval = format_interval(first["worst_case_ci_low"], first["worst_case_ci_high"])
            figures.append(
                f"* {first['protocol']}, {format_threat(first['threat_norm'], first['threat_eps'])}: "
                f"{format_percent(first['worst_case_accuracy'])} % {interval} of {first['examples']} images, clean "
                f"{format_percent(first['clean_accuracy'])} % ({first['worst_case_attacks']})"
            )
    return [*lines, "\n".join(figures)]


def _usage(name: str, model: str | None) -> list[str]:
    """Return how to load and attack the model, or how to read the board."""
    if model is None:
        return [f"```sh\nrobobench leaderboard hf:{name}\nrobobench reproduce hf:{name}\n```"]
    return [
        "```python\nimport robobench\n\n"
        f'model = robobench.load("hf:{name}", "{model}")  # images (B, 3, H, W) in [0, 1] -> logits\n```',
        f"```sh\nrobobench evaluate hf:{name}\n```",
        "Files are verified by their digests, and no code of this repository is run. `hf:OWNER/REPO@COMMIT` fixes the "
        "content.",
    ]


def _front_matter(rows: pd.DataFrame, name: str, license_name: str | None, *, with_results: bool) -> str:
    """Return the card's metadata in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    done = rows[(rows["status"] == "ok") & (rows["protocol"] == "white-box") & rows["worst_case_accuracy"].notna()]
    results: dict[str, Any] = {}
    for part in iter_groups(done, ["threat_norm", "threat_eps"]) if with_results else ():
        first = part.iloc[0]
        robust = f"robust accuracy, {format_threat(first['threat_norm'], first['threat_eps'])}"
        for metric, value in (("clean accuracy", first["clean_accuracy"]), (robust, first["worst_case_accuracy"])):
            results[metric] = EvalResult(
                task_type="image-classification",
                dataset_type=str(first["dataset"]),
                dataset_name=str(first["dataset"]),
                metric_type="accuracy",
                metric_name=metric,
                metric_value=round(float(value), 6),
            )
    data = ModelCardData(
        license=license_name,
        library_name="robobench",
        pipeline_tag="image-classification",
        tags=TAGS if with_results else [*TAGS, "leaderboard"],
        model_name=name.partition("/")[2] if results else None,
        eval_results=[*results.values()] or None,
    )
    return str(data.to_yaml())
