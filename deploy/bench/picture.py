"""The picture of a bench as SVG: per work a panel of bars, ours beside the peers' and the machine's limit. Pure.

It brings its own background and its colours for light and dark, so it can be read wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from deploy.bench.limit import limits_of
from deploy.bench.lines import PEERS, WORKS, Line, Rule, lines_of, size_text
from deploy.bench.results import Results
from deploy.bench.table import amount

NAMES = {
    "restic": "restic",
    "borg": "borg",
    "borg-fixed4m": "borg 4 MiB",
    "borg-fixed64k": "borg 64 KiB",
    "borg-zstd1": "borg zstd",
}
# Class → light, dark. Text keeps a contrast of 7 to the ground, marks of 3 (tests/house/test_bench_picture.py).
COLOURS = {
    "ground": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "faint": ("#424a53", "#b4bdc8"),
    "ours": ("#0b62c4", "#4c9aff"),
    "peer": ("#858e98", "#768390"),
    "limit": ("#1a7f4b", "#56b87a"),
}
WIDTH, MARGIN, GAP = 960, 24, 32
PANEL_WIDTH = (WIDTH - 2 * MARGIN - GAP) // 2
LABEL_WIDTH, VALUE_WIDTH = 118, 72
BAR_WIDTH = PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH
HEAD, PITCH, BAR, FOOT = 46, 20, 13, 22
TOP, BOTTOM = 92, 50


@dataclass(frozen=True)
class Bar:
    """A bar: what it stands for, its figure, and which class of COLOURS it has."""

    label: str
    value: float
    kind: str


@dataclass(frozen=True)
class Panel:
    """The bars of one work; they share a scale of their own, and their `unit`."""

    name: str
    title: str
    verdict: str
    unit: str
    bars: tuple[Bar, ...]

    @property
    def height(self) -> int:
        """Return how tall it is drawn."""
        return HEAD + PITCH * len(self.bars) + FOOT


def picture(results: Results) -> str:
    """Return the SVG document."""
    panels = panels_of(results)
    rows = [panels[at : at + 2] for at in range(0, len(panels), 2)]
    height = TOP + sum(max(panel.height for panel in row) for row in rows) + BOTTOM
    parts = [*header(results, height, panels)]
    y = TOP
    for row in rows:
        for column, panel in enumerate(row):
            parts += drawn(panel, MARGIN + column * (PANEL_WIDTH + GAP), y)
        y += max(panel.height for panel in row)
    what = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.programs.items())
    small = 'class="faint" font-size="12"'
    parts.append(text(MARGIN, height - 34, f"{results.date}; {what['cpu']}, {what['cores']} cores; {versions}", small))
    how = f"Medians of {results.runs}, wall time with the sync afterwards; encrypted, into a folder."
    limit = "Limit: two processes that do the unavoidable, overlapped."
    parts.append(text(MARGIN, height - 16, f"{how} {limit}", small))
    return "\n".join([*parts, "</svg>"]) + "\n"


def header(results: Results, height: int, panels: Sequence[Panel]) -> Iterator[str]:
    """Yield what stands above the panels, and what is read out instead of the picture."""
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif" '
        'font-size="13" role="img" aria-labelledby="title description">'
    )
    title = f"Forebay beside restic and borg on a volume of {size_text(results.size)}"
    yield f'<title id="title">{escape(title)}</title>'
    yield f'<desc id="description">{escape(" ".join(map(spoken, panels)))}</desc>'
    yield f"<style>\n{style()}\n</style>"
    yield f'<rect class="ground" width="{WIDTH}" height="{height}" rx="8"/>'
    yield text(MARGIN, 38, title, 'class="text" font-size="20" font-weight="600"')
    x = MARGIN
    for kind, label in (("ours", "Forebay"), ("peer", "others"), ("limit", "what this machine could do at most")):
        yield f'<rect class="{kind}" x="{x}" y="56" width="18" height="{BAR}"/>'
        yield text(x + 24, 67, label, 'class="text"')
        x += 24 + round(len(label) * 7) + 24
    yield text(x, 67, "shorter is better", 'class="faint"')


def style() -> str:
    """Return the colours, for light and for dark surroundings."""

    def rules(theme: int) -> str:
        fills = [f".{name}{{fill:{colour[theme]}}}" for name, colour in COLOURS.items() if name != "limit"]
        limit = f".limit{{fill:none;stroke:{COLOURS['limit'][theme]};stroke-width:1.5;stroke-dasharray:4 2}}"
        return "".join([*fills, limit])

    return f"{rules(0)}\n@media (prefers-color-scheme:dark){{{rules(1)}}}"


def drawn(panel: Panel, x: int, y: int) -> Iterator[str]:
    """Yield a panel whose upper left corner is at (x, y)."""
    yield f'<g id="{panel.name}">'
    yield text(x, y + 14, panel.title, 'class="text" font-size="15" font-weight="600"')
    yield text(x, y + 32, panel.verdict, 'class="faint" font-size="12"')
    scale = BAR_WIDTH / max(bar.value for bar in panel.bars)
    for number, bar in enumerate(panel.bars):
        top = y + HEAD + number * PITCH
        length = max(2.0, bar.value * scale)
        weight = ' font-weight="600"' if bar.kind == "ours" else ""
        yield text(x + LABEL_WIDTH - 8, top + 11, bar.label, f'class="text" text-anchor="end"{weight}')
        yield (
            f'<rect class="{bar.kind}" x="{x + LABEL_WIDTH}" y="{top}" width="{length:.1f}" height="{BAR}" rx="1.5"/>'
        )
        shown = amount(bar.value, panel.unit)
        yield text(round(x + LABEL_WIDTH + length + 6), top + 11, shown, f'class="text"{weight}')
    yield "</g>"


def text(x: int, y: int, content: str, attributes: str) -> str:
    """Return a line of text whose baseline begins, or ends, at (x, y)."""
    return f'<text x="{x}" y="{y}" {attributes}>{escape(content)}</text>'


def panels_of(results: Results) -> list[Panel]:
    """Return the panels of what was measured; two and two stand beside each other."""
    lines = {line.name: line for line in lines_of(results)}
    limits = limits_of(results.limits, results.data)
    found = []
    for name, title in (
        ("first-lz4", "First backup, lz4"),
        ("first-zstd", "First backup, zstd"),
        ("nochange", "Nothing changed, everything compared"),
        ("random", "1 % of random 4 KiB pages rewritten"),
        ("random-bytes", "Bytes added by 1 % of random pages"),
        ("restore", "Restore, newest point and one of ten days of deltas"),
    ):
        if name in lines:
            limit = limits.get(name) if name != "random-bytes" else lines[name].limit
            found.append(beside_peers(results, lines, name, title, limit))
    for name, title, ours, other in (
        ("hints", "1 % of random pages, told where to look", "with hints", "without"),
        ("cache", "First backup, to vault and cache", "with the cache", "without"),
    ):
        line = lines.get(name)
        if line is not None and line.against is not None:
            bars = (Bar(ours, line.ours, "ours"), Bar(other, line.against, "ours"))
            found.append(Panel(name, title, verdict(line), line.unit, (*bars, *limit_bar(line.limit, line.unit))))
    return found


def beside_peers(results: Results, lines: dict[str, Line], name: str, title: str, limit: float | None) -> Panel:
    """Return the panel of work that the peers did too."""
    line = lines[name]
    work = next(work for work in WORKS if work.name == name)
    bars = [Bar("Forebay", line.ours, "ours")]
    if name == "restore" and "restore-days" in lines:
        bars.append(Bar("after ten days", lines["restore-days"].ours, "ours"))
    for peer in PEERS:
        value = results.figure(work.figure, peer=peer, step=work.step)
        if value is not None:
            bars.append(Bar(NAMES[peer], value, "peer"))
    told = lines["first-zstd-all"] if name == "first-zstd" and "first-zstd-all" in lines else line
    return Panel(name, title, verdict(told), line.unit, (*bars, *limit_bar(limit, line.unit)))


def limit_bar(limit: float | None, unit: str) -> tuple[Bar, ...]:
    """Return the bar of a limit, if there is one."""
    return () if limit is None else (Bar("changed bytes" if unit == "B" else "limit", limit, "limit"),)


def verdict(line: Line) -> str:
    """Return in a few words how ours stands to the others and to the limit."""
    parts = []
    if line.against is not None:
        which = NAMES.get(line.which, "")
        if line.floor is not None and line.floor.rule is Rule.TIMES:
            parts.append(f"{line.against / line.ours:.2f} × as fast as {which}, the best other")
        elif line.unit == "B":
            parts.append(f"1/{line.against / line.ours:.0f} of {which}, the best other")
        else:
            parts.append(f"{line.ours / line.against:.2f} × the time without")
    if line.reached is not None and line.unit == "s":
        parts.append(f"{line.reached * 100:.0f} % of the limit")
    return "; ".join(parts)


def spoken(panel: Panel) -> str:
    """Return a panel as a sentence."""
    bars = ", ".join(f"{bar.label} {amount(bar.value, panel.unit)}" for bar in panel.bars)
    return f"{panel.title}: {bars}."
