"""A case of `docs/what_goes_in.md`: what a user gives, what happens, and what robobench says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from robobench.errors import RequestError


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        section: heading in the table.
        given: the input, in words.
        run: reads the input in an empty folder, asserts what it became, and returns the notes; raises RequestError.
        says: part of a note or of the error; "" if nothing is said.
        refused: whether the input is an error.
    """

    section: str
    given: str
    run: Callable[[Path], list[str]]
    says: str = ""
    refused: bool = False

    @property
    def name(self) -> str:
        """Name of the test."""
        return re.sub(r"\W+", "-", f"{self.section}-{self.given}").strip("-")[:90]

    def row(self) -> str:
        """Return the line of the table."""
        happens = "refused" if self.refused else "read and said" if self.says else "read"
        says = f"`{self.says}`" if self.says else ""
        return "| " + " | ".join(text.replace("|", "\\|") for text in (self.given, happens, says)) + " |"

    def check(self, folder: Path) -> None:
        """Read the input; assert what happens and what is said, in one line."""
        if self.refused:
            with pytest.raises(RequestError) as caught:
                self.run(folder)
            assert self.says in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
            return
        notes = self.run(folder)
        assert any(self.says in note for note in notes) if self.says else notes == [], notes
