"""The bench's table as text for a terminal, and as Markdown for the documents. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.bench.lines import Line, Rule

HEAD = ("work", "ours", "against", "", "ratio", "floor", "", "limit", "reached")
SIGN = {Rule.TIMES: "≥", Rule.SHARE: "≤", Rule.MOST: "≤"}
VERDICT = {None: "", True: "met", False: "MISSED"}


def text_table(lines: Sequence[Line]) -> str:
    """Return the lines in columns."""
    rows = [HEAD, *(cells(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    # Words to the left, figures to the right.
    aligned = [
        "  ".join(cell.ljust(width) if column in (0, 3, 6) else cell.rjust(width) for column, (cell, width) in pairs)
        for row in rows
        for pairs in [list(enumerate(zip(row, widths, strict=True)))]
    ]
    return "\n".join(line.rstrip() for line in [aligned[0], "-" * len(aligned[0]), *aligned[1:]])


def markdown_table(lines: Sequence[Line]) -> str:
    """Return the lines as a table of Markdown."""
    head = ("work", "ours", "best other", "ratio", "floor", "limit", "reached")
    rows = [
        (row[0].replace("  ", "… ", 1), row[1], f"{row[2]} {row[3]}", row[4], f"{row[5]} {row[6]}", *row[7:])
        for row in map(cells, lines)
    ]
    marked = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in [head, *rows]]
    return "\n".join([marked[0], "|---|" + "---:|" * (len(head) - 1), *marked[1:]])


def cells(line: Line) -> tuple[str, ...]:
    """Return the cells of one line."""
    floor = f"{SIGN[line.floor.rule]} {line.floor.value:.3g}" if line.floor else ""
    return (
        line.title,
        amount(line.ours, line.unit),
        "" if line.against is None else amount(line.against, line.unit),
        line.which,
        "" if line.ratio is None else f"{line.ratio:.2f}",
        floor,
        VERDICT[line.met],
        "" if line.limit is None else amount(line.limit, line.unit),
        "" if line.reached is None else f"{line.reached * 100:.0f} %",
    )


def amount(value: float, unit: str) -> str:
    """Return a figure for people: three digits, bytes in MB."""
    if unit == "B":
        return f"{value / 1e6:,.0f} MB" if value >= 1e8 else f"{value / 1e6:.1f} MB"
    if unit == "MiB":
        return f"{value:.0f} MiB"
    if unit == "×":
        return f"{value:.2f}"
    if value < 0.05:
        return f"{value * 1000:.3g} ms"
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"
