"""What a bench found: raw rows, and the machine they come from, as one JSON file without names or paths."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

Row = dict[str, Any]


@dataclass
class Results:
    """All of one run.

    `size`: bytes of the volume, 0: it was not needed; `machine`: processor, cores, kernel …; `programs`: name →
    version; `data`: what gen.py says of its volume; `limits`: the document of limits.py. `rows`: those of peers.py
    (peer, step, run, figures), and those of the work that only Forebay does (work, step, figures).
    """

    date: str
    size: int
    runs: int
    machine: dict[str, Any]
    programs: dict[str, str]
    data: dict[str, Any]
    limits: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file; a row takes a line."""
        head = asdict(self) | {"rows": None}
        lines = ",\n".join("  " + json.dumps(row) for row in self.rows)
        text = json.dumps(head, indent=1).replace('"rows": null', f'"rows": [\n{lines}\n ]')
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def select(self, **keys: Any) -> list[Row]:
        """Return the rows that have these values, less those of steps that failed."""
        return [
            row for row in self.rows if all(row.get(key) == value for key, value in keys.items()) and "rc" not in row
        ]

    def figure(self, name: str, **keys: Any) -> float | None:
        """Return the median of a figure over the rows that have these values; None without any.

        `seconds` is wall time with the sync afterwards: what a program leaves unwritten is part of its work.
        """
        values = [seconds(row) if name == "seconds" else float(row[name]) for row in self.select(**keys)]
        return statistics.median(values) if values else None


def seconds(row: Row) -> float:
    """Return how long a step took until all of it was on the disk."""
    return float(row["wall"]) + float(row.get("sync_s", 0))
