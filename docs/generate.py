"""Generated pages of the site: method cards and command-line reference. Also the mkdocs hook that adds them.

`python docs/generate.py DIR` writes them as Markdown files, without mkdocs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from robobench.planning.presets import LARGE_MODELS, PRESETS, preset_layers
from robobench.planning.recipes import RECIPES
from robobench.plugins.discovery import KINDS, discover, load_plugin
from robobench.training.config import TrainConfig

EXIT_STATUS = (
    "Exit status: 0: done. 1: a cell failed (the row has the reason), a check failed, a gate (`--fail-under`) was "
    "missed, or the store, a process or the cluster failed. 2: the request is wrong, or a file is damaged or missing. "
    "130 or 143: stopped by a signal."
)


def field_comments(cls: type) -> dict[str, str]:
    """Return the comment beside each field of a class and of its robobench base classes."""
    out: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if base.__module__.startswith("robobench.")):
        for name, comment in re.findall(r"^ {4}(\w+):[^#\n]*#\s*(.+)$", inspect.getsource(base), re.MULTILINE):
            out[name] = comment
    return out


def escape(value: Any) -> str:
    """Escape a value for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def preset_values(cls: Any, name: str) -> dict[str, Any]:
    """Return the config values that a preset changes for a defense, compared with the preset it extends."""
    preset, _, large = name.partition(":")
    layers = preset_layers(preset, LARGE_MODELS[0] if large else "cnn")

    def merge(names: list[str]) -> dict[str, Any]:
        parts = [*(PRESETS[n].get("training", {}) for n in names), *(cls.presets.get(n, {}) for n in names)]
        return {field: value for part in parts for field, value in part.items()}

    below = merge(layers[:-1])
    return {field: value for field, value in merge(layers).items() if below.get(field, ...) != value}


def config_table(cls: Any) -> str:
    """Return a Markdown table of a Config: field, default, values of the presets, meaning."""
    comments, presets = field_comments(cls.Config), dict(cls.presets)
    if issubclass(cls.Config, TrainConfig):
        presets = {name: preset_values(cls, name) for name in PRESETS if name not in RECIPES}
    lines = ["| field | default | presets | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls.Config):
        name = field.name
        other = ", ".join(f"{preset}: `{values[name]}`" for preset, values in presets.items() if name in values)
        default = "required" if field.default is dataclasses.MISSING else f"`{escape(field.default)}`"
        cells = (f"`{name}`", default, escape(other), escape(comments.get(name, "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "No fields."


def method_page(kind: str, name: str) -> str:
    """Return the page of a method: summary, version, citation and config fields, all from its file."""
    cls = load_plugin(kind, name)
    citation = inspect.getdoc(sys.modules[cls.__module__]) or ""
    facts = [f"version {cls.version}"]
    if kind == "attack":
        facts.append(f"norms: {cls.fixed_norm or ', '.join(cls.norms)}")
    elif isinstance(cls.requires, dict) and cls.requires:
        facts.append("requires " + ", ".join(f"`{other}` as {role}" for role, other in cls.requires.items()))
    command = f"robobench run {name}" if kind == "defense" else f"robobench compare at trades --attacks {name}"
    parts = (
        inspect.getdoc(cls),
        f"{kind.capitalize()}, " + "; ".join(facts) + ".",
        citation_list(citation),
        f"```sh\n{command}\n```",
        f"## Fields\n\nSet a field with `--set {name}.FIELD=VALUE`. Defaults are the published values; a preset may "
        "change them. Defenses also have the training fields that all share, such as epochs and learning rate.",
        config_table(cls),
    )
    return f"# {name}\n\n" + "\n\n".join(map(str, parts)) + "\n"


def citation_list(citation: str) -> str:
    """Return the docstring of a method's file as Markdown: its fields 'Paper:' and so on become a list."""
    text = re.sub(r"\n +", " ", citation)  # continuation lines are indented
    text = re.sub(r"^(Paper|Code|Differs): +", r"* **\1:** ", escape_marks(text), flags=re.MULTILINE)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def escape_marks(text: str) -> str:
    """Escape what Markdown reads as a tag or emphasis."""
    return re.sub(r"([*_<`])", r"\\\1", text)


def builtin(kind: str) -> list[str]:
    """Return the names of robobench's own methods of a kind, sorted."""
    return [name for name, plugin in sorted(discover(kind).items()) if plugin.origin == "robobench"]


def place(kind: str, name: str) -> str:
    """Return the file of a method's page."""
    return f"methods/{kind}-{name}.md"


def methods() -> str:
    """Return the page that lists all defenses and attacks, with a link to the page of each."""
    parts = ["# Methods\n\nEvery page is made from the file of its method: what it does, its paper, its fields.\n"]
    for kind, title in (("defense", "Defenses"), ("attack", "Attacks")):
        found = discover(kind)
        parts += [f"## {title}\n", "| name | what it does | paper |", "| --- | --- | --- |"]
        for name in builtin(kind):
            link = f"[`{name}`]({place(kind, name).removeprefix('methods/')})"
            parts.append(f"| {link} | {escape(found[name].summary)} | {paper_link(kind, name)} |")
        parts.append("")
    return "\n".join(parts)


def paper_link(kind: str, name: str) -> str:
    """Return a link to the paper that a method's file names, '' if it names none on arXiv."""
    citation = inspect.getdoc(sys.modules[load_plugin(kind, name).__module__]) or ""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", citation)
    return f"[arXiv:{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def commands() -> list[str]:
    """Return the names of all commands; those of a group follow it."""
    from robobench.cli import app

    names = [str(command.name) for command in app.registered_commands]
    for group in app.registered_groups:
        names.append(str(group.name))
        names += [f"{group.name} {command.name}" for command in group.typer_instance.registered_commands]
    return names


def cli() -> str:
    """Return the page with the help of every command."""
    from robobench.cli import main

    parts = [f"# Command line\n\n{EXIT_STATUS}\n"]
    for command in ("", *commands()):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            main([*command.split(), "--help"])
        usage = f"Usage: robobench {command}".strip()  # the same whatever program runs this file
        text = re.sub(r"^Usage: .*?(?= \[)", usage, output.getvalue().strip(), flags=re.MULTILINE)
        parts.append(f"## robobench {command}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def pages() -> dict[str, Callable[[], str]]:
    """Return every generated page: file -> function that makes it."""
    own = {place(kind, name): partial(method_page, kind, name) for kind in KINDS for name in builtin(kind)}
    return {"methods/index.md": methods, "reference/cli.md": cli, **own}


def on_config(config: Any) -> Any:
    """List the methods in the navigation (a mkdocs hook)."""
    for entry in config["nav"]:
        if "Methods" in entry:
            entry["Methods"] = ["methods/index.md"] + [
                {title: [{name: place(kind, name)} for name in builtin(kind)]}
                for kind, title in (("defense", "Defenses"), ("attack", "Attacks"))
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the files of the site (a mkdocs hook)."""
    from mkdocs.structure.files import File

    for name, page in pages().items():
        files.append(File.generated(config, name, content=page()))
    return files


if __name__ == "__main__":
    for name, page in pages().items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page())
