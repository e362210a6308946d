"""Extension of griffe, which reads the Python files for the API reference: show the comments beside fields."""

from __future__ import annotations

import re
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """List the fields of a class that have a comment, `name: type = value  # comment`, under its docstring."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Add an Attributes section to the docstring."""
        found = re.findall(r"^ {4}([a-z]\w*):[^#\n]*#\s*(.+)$", "\n".join(cls.lines), re.MULTILINE)
        if cls.docstring and found:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(f"    {name}: {text}" for name, text in found)
