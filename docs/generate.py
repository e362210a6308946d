"""The generated pages of the site: method cards, command line, Python. Also mkdocs' hook that adds them.

`python docs/generate.py DIR` writes them as Markdown files, without mkdocs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import sys
from pathlib import Path
from typing import Any

from robobench.core.registry import Registry
from robobench.planning.presets import LARGE_MODELS, PRESETS, preset_layers
from robobench.plugins.discovery import discover, load_plugin
from robobench.training.base import TrainConfig

MODULES = {
    "robobench": "What the command line does, as functions.",
    "robobench.request": "What `run` and `compare` take as keywords (the flags; several: `seeds`, `sets`, `teachers`, "
    "`plugins`), and what `--set run.FIELD=VALUE` sets.",
    "robobench.api": "What a plug-in subclasses.",
    "robobench.inner": "Inner maximization.",
    "robobench.threat": "What an adversary may do.",
    "robobench.losses": "Losses that several methods share.",
    "robobench.processes": "What a loss may need on several devices.",
    "robobench.report": "Rows as tables, pages and figures.",
    "robobench.testing": "The contract of a plug-in.",
    "robobench.errors": "What a caller may want to catch.",
}


def comments(cls: type) -> dict[str, str]:
    """Read the comment beside each field of a class and of those of ours that it extends."""
    out: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if base.__module__.startswith("robobench.")):
        for name, comment in re.findall(r"^ {4}(\w+):[^#\n]*#\s*(.+)$", inspect.getsource(base), re.MULTILINE):
            out[name] = comment
    return out


def cell(value: Any) -> str:
    """Escape a value for a Markdown table."""
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def preset_values(cls: Any, name: str) -> dict[str, Any]:
    """Say what a preset gives a defense that the one below it does not: the recipe's values, then the defense's own."""
    preset, _, large = name.partition(":")
    order = preset_layers(preset, LARGE_MODELS[0] if large else "cnn")

    def laid(names: list[str]) -> dict[str, Any]:
        parts = [*(PRESETS[n].get("recipe", {}) for n in names), *(cls.presets.get(n, {}) for n in names)]
        return {field: value for part in parts for field, value in part.items()}

    below = laid(order[:-1])
    return {field: value for field, value in laid(order).items() if below.get(field, ...) != value}


def config_table(cls: Any) -> str:
    """Write a Config as a table: field, default, what the presets give instead, meaning."""
    said, given = comments(cls.Config), dict(cls.presets)
    if issubclass(cls.Config, TrainConfig):
        given = {name: preset_values(cls, name) for name in PRESETS}
    lines = ["| field | default | presets | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(cls.Config):
        other = ", ".join(f"{name}: `{values[field.name]}`" for name, values in given.items() if field.name in values)
        lines.append(f"| `{field.name}` | `{cell(field.default)}` | {cell(other)} | {cell(said.get(field.name, ''))} |")
    return "\n".join(lines) if len(lines) > 2 else "No fields to set."


def card(kind: str, name: str) -> str:
    """Write a method's card from its file: the summary, the citation, the fields."""
    cls = load_plugin(kind, name)
    about = inspect.getdoc(sys.modules[cls.__module__]) or ""
    facts = [f"version {cls.version}"]
    if kind == "attack":
        facts.append(f"norms: {cls.own_norm or ', '.join(cls.norms)}")
    elif isinstance(cls.requires, dict) and cls.requires:
        facts.append("requires " + ", ".join(f"`{other}` as {role}" for role, other in cls.requires.items()))
    return (
        f"### {name}\n\n{inspect.getdoc(cls)}\n\n{'; '.join(facts)}\n\n```text\n{about}\n```\n\n{config_table(cls)}\n"
    )


def methods() -> str:
    """Write every defense's and attack's card."""
    parts = [
        "# Methods\n\nEvery field is set with `--set NAME.FIELD=VALUE`. Defaults are the published values; a preset "
        "may give others. The recipe's fields (epochs, learning rate, ...) are the same for every defense.\n"
    ]
    for kind, title in (("defense", "Defenses"), ("attack", "Attacks")):
        own = [name for name, plugin in sorted(discover(kind).items()) if plugin.origin == "robobench"]
        parts += [f"## {title}\n", *(card(kind, name) for name in own)]
    return "\n".join(parts)


def commands() -> list[str]:
    """List every command, those of a group behind it."""
    from robobench.cli import app

    names = [str(command.name) for command in app.registered_commands]
    for group in app.registered_groups:
        names.append(str(group.name))
        names += [f"{group.name} {command.name}" for command in group.typer_instance.registered_commands]
    return names


def cli() -> str:
    """Write the help of every command."""
    from robobench.cli import main

    status = (
        "Exit status: 0 done; 1 a cell failed (its reason stands in the row), what was checked does not hold, or the "
        "store, a process or the cluster could not go on; 2 the request is wrong, or a file is damaged or missing; 130 "
        "or 143 stopped by a signal."
    )
    parts = [f"# Command line\n\n{status}\n"]
    for command in ("", *commands()):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main([*command.split(), "--help"])
        usage = f"Usage: robobench {command}".strip()  # whatever this process is called
        text = re.sub(r"^Usage: .*?(?= \[)", usage, said.getvalue().strip(), flags=re.MULTILINE)
        parts.append(f"## robobench {command}".rstrip() + f"\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def documented(module: Any) -> list[tuple[str, Any]]:
    """List a module's public classes and functions."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    values = [(name, getattr(module, name)) for name in names]
    return [(name, value) for name, value in values if inspect.isclass(value) or inspect.isfunction(value)]


def entry(name: str, value: Any) -> str:
    """Write a function or class: its signature and docstring, and a class's public methods."""
    try:
        signature = str(inspect.signature(value))
    except ValueError:
        signature = ""
    out = f"### {name}\n\n```text\n{name}{signature}\n\n{inspect.getdoc(value) or ''}\n"
    if inspect.isclass(value):
        out += "".join(f"\n{field}: {comment}" for field, comment in comments(value).items())
        out += "\n" * bool(comments(value))
    if inspect.isclass(value) and not issubclass(value, (Registry, Exception)):
        for method, function in vars(value).items():
            if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                out += f"\n{method}{inspect.signature(function)}\n    {inspect.getdoc(function).splitlines()[0]}\n"
    return out + "```\n"


def api() -> str:
    """Write the Python reference."""
    parts = ["# Python\n"]
    for name, words in MODULES.items():
        module = importlib.import_module(name)
        parts += [f"## {name}\n\n{words}\n", *(entry(n, value) for n, value in documented(module))]
    return "\n".join(parts)


PAGES = {"methods.md": methods, "reference/cli.md": cli, "reference/api.md": api}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to mkdocs' files."""
    from mkdocs.structure.files import File

    for place, page in PAGES.items():
        files.append(File.generated(config, place, content=page()))
    return files


if __name__ == "__main__":
    for place, page in PAGES.items():
        path = Path(sys.argv[1]) / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page())
