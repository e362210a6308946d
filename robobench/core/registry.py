"""Registries of classes by name, and the error for an unknown name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from robobench.errors import RequestError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> RequestError:
    """Return the error for an unknown name, with a suggestion and the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return RequestError(f"unknown {kind} '{name}'{hint} known: {', '.join(names)}")


def match_name(name: str, known: Iterable[str]) -> str:
    """Return the known name that differs from `name` in case, dashes and underscores only; else `name` itself."""
    names = list(known)
    if name in names:
        return name

    def fold(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    same = [other for other in names if fold(other) == fold(name)]
    return same[0] if len(same) == 1 else name


def library_name(package: str, cls: str) -> str:
    """Return the name under which a class of another library is registered: torchattacks-difgsm."""
    return f"{package}-{cls.lower()}"


class Registry(Generic[T]):
    """Classes by name. Registering a second class under a name raises RequestError."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}
        self._of_library: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Return a decorator that registers a class under `name` and sets its `name` attribute."""

        def decorate(cls: type[T]) -> type[T]:
            other = self._classes.get(name)
            if other is not None and other.__qualname__ + other.__module__ != (cls.__qualname__ + cls.__module__):
                raise RequestError(
                    f"{self.kind} '{name}' is already registered by {other.__module__}; "
                    f"rename the one in {cls.__module__}"
                )
            cls.name = name  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return decorate

    def register_library(self, package: str) -> Callable[[Callable[[Any], type[T]]], Callable[[Any], type[T]]]:
        """Return a decorator of a function that adapts a class of another library.

        It is called for every class in the package's `__all__`; the results are registered as PACKAGE-CLASS in lower
        case. A class that is registered under such a name by itself takes precedence.
        """

        def decorate(adapt: Callable[[Any], type[T]]) -> Callable[[Any], type[T]]:
            module = importlib.import_module(package)
            for each in module.__all__:
                name = library_name(package, each)
                self._of_library[name] = cls = adapt(getattr(module, each))
                cls.name = name  # type: ignore[attr-defined]
            return adapt

        return decorate

    def get(self, name: str) -> type[T]:
        """Return the class registered under `name`; raises RequestError with a suggestion."""
        if name not in self:
            raise unknown_name(self.kind, name, self)
        return self._classes.get(name) or self._of_library[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._of_library

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({**self._of_library, **self._classes}))


DEFENSES: Registry[Any] = Registry("defense")
ATTACKS: Registry[Any] = Registry("attack")
TRACKERS: Registry[Any] = Registry("tracker")
