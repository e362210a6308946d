"""The short form of every fault script, for the suite: one preloaded process, a few faults of each kind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import damage
import disk
import four
import harness
import kill
import lines


def main() -> int:
    harness.preload()
    wrong = lines.generated(20)
    forms = (
        lambda place: kill.kill_often("standard", 3, place),
        lambda place: disk.fill(1, place, defense="standard", tmpfs=False),
        lambda place: four.at_once(place, ("standard", "standard,at")),
        lambda place: damage.damaged(2, place, command=harness.command("standard")),
    )
    for form in forms:
        with tempfile.TemporaryDirectory() as place:
            wrong += form(Path(place))
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
