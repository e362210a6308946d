"""Parsing of `--set` texts and construction of configs. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from robobench.core.numbers import parse_number, split_numbers
from robobench.core.registry import unknown_name
from robobench.errors import RequestError

ALL_DEFENSES = "*"  # in place of a name in --set: every defense of the run that has the field


def parse_value(text: str, kind: Any, what: str) -> Any:
    """Parse a text as a field's type; raises RequestError, which names `what`."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in options and text.lower() == "none":
        return None
    kind, *others = [option for option in options if option is not types.NoneType]
    if others:  # int | float: the first that fits
        for option in (kind, *others):
            with contextlib.suppress(RequestError):
                return parse_value(text, option, what)
        names = " or ".join(option.__name__ for option in (kind, *others))
        raise RequestError(f"{what} takes a value of type {names}, got '{text}'")
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return parse_number(text)
        if typing.get_origin(kind) is tuple:
            of = typing.get_args(kind)[0]
            parts = text.split(",") if of is str else split_numbers(text)
            return tuple(parse_value(part.strip(), of, what) for part in parts if part.strip())
        return text
    except (KeyError, ValueError, ZeroDivisionError):
        name = getattr(kind, "__name__", str(kind))
        raise RequestError(f"{what} takes a value of type {name}, got '{text}'") from None


def parse_fields(cls: type, values: Mapping[str, str], who: str) -> dict[str, Any]:
    """Parse texts as the fields of a config class; raises RequestError for an unknown field or a wrong value."""
    out: dict[str, Any] = {}
    if not values:
        return out
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for name, text in values.items():
        if name not in names:
            raise unknown_name(f"field of {who}", name, names)
        out[name] = parse_value(text, hints[name], f"{who}.{name}")
    return out


def build_config(cls: type, values: Mapping[str, Any], who: str) -> Any:
    """Build a config; its own ValueError or TypeError becomes a RequestError."""
    try:
        return cls(**values)
    except (ValueError, TypeError) as err:
        raise RequestError(f"{who}: {err}") from None


def parse_sets(sets: Iterable[str]) -> dict[str, dict[str, str]]:
    """Parse NAME.FIELD=VALUE settings into {name: {field: text}}; raises RequestError."""
    out: dict[str, dict[str, str]] = {}
    for text in sets:
        left, equals, value = text.partition("=")
        name, dot, field_name = left.rpartition(".")
        if not (equals and dot and name and field_name):
            raise RequestError(f"--set '{text}' is not NAME.FIELD=VALUE, such as trades.beta=3")
        out.setdefault(name.strip(), {})[field_name.strip()] = value.strip()
    return out
