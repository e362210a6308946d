"""Tables in Markdown files that are made from a store or snapshot: the method summary and where results come from."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from robobench.errors import RequestError
from robobench.planning.repro_command import ReproCommands, format_value, json_roundtrip
from robobench.plugins.discovery import load_defense
from robobench.report.formatting import format_threat
from robobench.report.gains import gains
from robobench.report.leaderboard_formats import markdown, markdown_escape
from robobench.report.method_summary import method_summary, short_summary
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame, read_records
from robobench.store.artifacts import write_atomic

TABLE = re.compile(r"(<!-- (board|summary|details|gains over \S+): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def update_tables(text: str, base: Path) -> str:
    """Rewrite the text between `<!-- KIND: FOLDER -->` and `<!-- end -->`.

    KIND is board (every attack and radius), summary (at most 8 columns), gains over DEFENSE (p-values, relative costs)
    or details (setting, stages, commands).

    Args:
        text: Markdown.
        base: folder that the FOLDERs are relative to.
    """

    def rewrite(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        place = base / name
        if not (place / "rows.csv").is_file():
            return f"{begin}\nNo results in `{name}` yet.\n\n{end}"
        what, _, baseline = kind.partition(" over ")
        table = gains(read_records(place), baseline, "md").strip() if what == "gains" else TABLES[kind](place)
        return f"{begin}\n{table}\n\n{end}"

    return TABLE.sub(rewrite, text)


def update_file(file: Path) -> None:
    """Rewrite the tables of a Markdown file.

    Raises:
        RequestError: there is no such file, or it contains no such comments.
    """
    if not file.is_file() or not TABLE.search(file.read_text()):
        raise RequestError(
            f"'{file}' has no table to update; it needs a line '<!-- board: FOLDER -->' and below it '<!-- end -->'"
        )
    write_atomic(file, update_tables(file.read_text(), file.parent))


def make_readme(folder: Path, work: Path, intro: str) -> str:
    """Return the README of snapshot `folder`, or a new one, with the tables of the new snapshot in `work`."""
    old = folder / "README.md"
    tables = "\n".join(f"<!-- {kind}: . -->\n<!-- end -->\n" for kind in ("board", "details"))
    text = old.read_text() if old.is_file() else f"# {folder.name}\n\n{intro.strip()}\n\n{tables}"
    return update_tables(text.replace("\n\n\n\n", "\n\n"), work)


def make_details(place: Path) -> str:
    """Write setting, hardware, versions, stages, changed settings and commands of a store or snapshot in Markdown."""
    repro, records = ReproCommands(place), read_records(place)
    commands = [
        repro.command(name, examples=examples)
        for name, examples in sorted({(r["training"], r["examples"]) for r in records})
        if name in repro.configs  # not for a training that failed
    ]
    return "\n\n".join(
        [
            "## Setting",
            _setting(make_frame(records), records, repro),
            "## Stages",
            _stages(records),
            "## Settings that differ from the published ones",
            _changed_settings(repro),
            "## Commands",
            "`robobench reproduce` attacks a sample of these cells again. These commands train every model from the "
            "start. Add `--data-dir DIR` if the data set is not bundled with robobench.",
            "```\n" + "\n".join(commands) + "\n```",
        ]
    )


def _setting(rows: pd.DataFrame, records: list[EvaluationRecord], repro: ReproCommands) -> str:
    def values(name: str) -> str:
        return ", ".join(sorted({str(v) for v in rows[name].dropna()}))

    configs = [c for c in repro.configs.values() if c["train_images"]]
    trained = (
        rows[["train_norm", "train_eps"]]
        .dropna(subset="train_norm")
        .drop_duplicates()
        .itertuples(index=False, name=None)
    )
    lines = {
        "data": f"{values('dataset')}, test images {values('data_digest')}",
        "model": f"{values('model')}, images of {values('image_size')} px, preset {values('preset')}",
        "training images": ", ".join(sorted({f"{c['train_images']} ({c['held_out']} held out)" for c in configs})),
        "training threat": ", ".join(sorted(format_threat(*threat) for threat in trained)),
        "hardware": values("hardware"),
        "precision, threads per process, compiled": f"{values('precision')}, {values('threads')}, {values('compiled')}",
        "torch": values("torch_version"),
        "robobench commits, training": ", ".join(sorted({str(r["timing"].get("commit")) for r in records})),
        "robobench commits, attacks": values("commit"),
    }
    return "\n".join(f"* {name}: {markdown_escape(value)}" for name, value in lines.items() if value)


def _stages(records: list[EvaluationRecord]) -> str:
    lines = {}
    for record in records:
        for number, stage in enumerate(record["timing"].get("stages", [])):
            lines[record["training"], number] = {
                "model": markdown_escape(f"{record['defense']}, seed {record['seed']}"),
                "stage": stage["name"],
                "epochs": str(stage["epochs"]),
                "time (s)": f"{stage['seconds']:.1f}",
                "CPU time (s)": f"{stage['cpu_seconds']:.1f}",
                "warm-up (s)": f"{stage['warmup_seconds']:.1f}",
                "images/s": f"{stage['images_per_second']:.0f}",
                "peak memory (GiB)": f"{stage['peak_memory_bytes'] / 2**30:.2f}",
            }
    return markdown(pd.DataFrame(lines.values()))


def _changed_settings(repro: ReproCommands) -> str:
    """List for every defense the config values that differ from the defaults of its Config."""
    lines = {}
    for config in repro.configs.values():
        try:
            published = json_roundtrip(asdict(load_defense(config["defense"]).Config()))
        except (RequestError, TypeError, ValueError):
            continue  # an external model, or a plug-in that is not installed here
        names = [k for k, v in config["config"].items() if published[k] != v]
        values = ", ".join(f"{k}={format_value(config['config'][k])} ({format_value(published[k])})" for k in names)
        lines[config["defense"]] = f"* {config['defense']}: {markdown_escape(values) or 'none'}"
    return "\n".join(["In brackets: the value of the paper or its code.", "", *(lines[name] for name in sorted(lines))])


TABLES = {"board": method_summary, "summary": short_summary, "details": make_details}
