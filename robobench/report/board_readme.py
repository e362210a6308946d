"""A board as a folder to keep beside code: a store without what is large, its tables, and what changed.

`leaderboard`, `report`, `load` and `verify` take such a folder as they take a store.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.errors import RequestError
from robobench.report.board_folder import Record
from robobench.report.formatting import point
from robobench.report.leaderboard_formats import markdown, markdown_escape
from robobench.report.method_summary import front
from robobench.results.rows import make_frame, read_records
from robobench.store.artifacts import write_atomic

BLOCK = re.compile(r"(<!-- (board|details): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, base: Path) -> str:
    """Rewrite what stands between the comments `board: FOLDER` or `details: FOLDER` and `end` in a Markdown text.

    Args:
        base: folder that the FOLDERs are relative to.
    """

    def made(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        place = base / name
        if not (place / "rows.csv").is_file():
            return f"{begin}\nNo board is in `{name}` yet.\n\n{end}"
        return f"{begin}\n{front(place) if kind == 'board' else details(place)}\n\n{end}"

    return BLOCK.sub(made, text)


def fill_file(file: Path) -> None:
    """Rewrite the tables of a Markdown file.

    Raises:
        RequestError: no such file, or no such comments in it.
    """
    if not file.is_file() or not BLOCK.search(file.read_text()):
        raise RequestError(
            f"'{file}' has no table to fill; it needs a line '<!-- board: FOLDER -->' and below it '<!-- end -->'"
        )
    write_atomic(file, fill(file.read_text(), file.parent))


def _readme(folder: Path, work: Path, intro: str) -> str:
    """Fill the folder's README, or a new one, from the new board."""
    old = folder / "README.md"
    blocks = "\n".join(f"<!-- {kind}: . -->\n<!-- end -->\n" for kind in ("board", "details"))
    text = old.read_text() if old.is_file() else f"# {folder.name}\n\n{intro.strip()}\n\n{blocks}"
    return fill(text.replace("\n\n\n\n", "\n\n"), work)


def details(place: Path) -> str:
    """Write where the figures come from: setting, machine, versions, stages, what is not as published, commands."""
    from robobench.planning.repro_command import ReproCommands

    redo, records = ReproCommands(place), read_records(place)
    rows = make_frame(records)
    parts = ["## Setting", _setting(rows, records, redo), "## Stages", _stages(records)]
    parts += ["## Values that are not the published ones", _unpublished(redo), "## Commands"]
    commands = [
        redo.command(name, examples=examples)
        for name, examples in sorted({(r["training"], r["examples"]) for r in records})
        if name in redo.configs  # a training that failed left none
    ]
    text = "\n".join(commands)
    parts.append(
        "`robobench verify` attacks a sample of these cells again. Each network from the start (with `--data-dir DIR` "
        "where the files it was measured on are not inside robobench):\n\n"
        f"```\n{text}\n```"
    )
    return "\n\n".join(parts)


def _setting(rows: pd.DataFrame, records: list[Record], redo: Any) -> str:
    def of(name: str) -> str:
        return ", ".join(sorted({str(v) for v in rows[name].dropna()}))

    configs = [c for c in redo.configs.values() if c["train_images"]]
    threats = rows[["train_norm", "train_eps"]].dropna().drop_duplicates().itertuples(index=False, name=None)
    lines = {
        "data": f"{of('dataset')}, test images {of('data_digest')}",
        "network": f"{of('model')}, images of {of('image_size')} px, preset {of('preset')}",
        "training images": ", ".join(sorted({f"{c['train_images']} ({c['held_out']} held out)" for c in configs})),
        "trained against": ", ".join(sorted(point(*threat) for threat in threats)),
        "hardware": of("hardware"),
        "precision, threads a process, compiled": f"{of('precision')}, {of('threads')}, {of('compiled')}",
        "torch": of("torch_version"),
        "robobench commits, training": ", ".join(sorted({str(r["timing"].get("commit")) for r in records})),
        "robobench commits, attacks": of("commit"),
    }
    return "\n".join(f"* {name}: {markdown_escape(value)}" for name, value in lines.items() if value)


def _stages(records: list[Record]) -> str:
    lines = {}
    for record in records:
        for number, stage in enumerate(record["timing"].get("stages", [])):
            lines[record["training"], number] = {
                "network": markdown_escape(f"{record['defense']}, seed {record['seed']}"),
                "stage": stage["name"],
                "epochs": str(stage["epochs"]),
                "s": f"{stage['seconds']:.1f}",
                "CPU s": f"{stage['cpu_seconds']:.1f}",
                "warm-up s": f"{stage['warmup_seconds']:.1f}",
                "images/s": f"{stage['images_per_second']:.0f}",
                "peak GiB": f"{stage['peak_memory_bytes'] / 2**30:.2f}",
            }
    return markdown(pd.DataFrame(lines.values()))


def _unpublished(redo: Any) -> str:
    """List, defense by defense, the config's values that are not its Config's defaults."""
    from dataclasses import asdict

    from robobench.planning.repro_command import format_value, json_roundtrip
    from robobench.plugins.discovery import load_defense

    lines = {}
    for config in redo.configs.values():
        try:
            published = json_roundtrip(asdict(load_defense(config["defense"]).Config()))
        except (RequestError, TypeError, ValueError):
            continue  # from elsewhere, or a plug-in that is not here
        ours = [k for k, v in config["config"].items() if published[k] != v]
        values = ", ".join(f"{k}={format_value(config['config'][k])} ({format_value(published[k])})" for k in ours)
        lines[config["defense"]] = f"* {config['defense']}: {markdown_escape(values) or 'none'}"
    return "\n".join(["In brackets what the papers or their code have.", "", *(lines[name] for name in sorted(lines))])
