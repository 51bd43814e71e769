"""The bench's picture: well-formed, complete, nothing over anything else, readable in light and dark."""

from __future__ import annotations

import re
import xml.etree.ElementTree as tree
from dataclasses import dataclass

import pytest

from deploy.bench.picture import COLOURS, WIDTH, panels_of, picture
from deploy.bench.results import Results
from tests.house.bench_example import example

SPACE = "{http://www.w3.org/2000/svg}"
# Wider than any common sans-serif face sets a line on average.
EM_PER_LETTER = 0.56


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float
    what: str

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def text_box(node: tree.Element) -> Box:
    content = node.text or ""
    size = float(node.get("font-size", "13"))
    x, y, width = float(node.get("x", "0")), float(node.get("y", "0")), len(content) * size * EM_PER_LETTER
    left = x - width if node.get("text-anchor") == "end" else x
    return Box(left, y - 0.75 * size, left + width, y + 0.22 * size, content)


def bar_box(node: tree.Element) -> Box:
    x, y = float(node.get("x", "0")), float(node.get("y", "0"))
    return Box(x, y, x + float(node.get("width", "0")), y + float(node.get("height", "0")), node.get("class", ""))


def small() -> Results:
    """A bench in which most peers were left out, and the limits too."""
    results = example(1)
    results.limits = {}
    results.rows = [row for row in results.rows if row.get("peer", "forebay") in ("forebay-lz4", "restic", "forebay")]
    return results


def lopsided() -> Results:
    """A bench with bars next to nothing and bars of hours."""
    results = example(1)
    for row in results.rows:
        if row.get("peer") == "borg":
            row["wall"] = 86400.0
            row["added"] = 10**15
    return results


@pytest.mark.parametrize("results", [example(), small(), lopsided()], ids=["full", "few peers", "lopsided"])
def test_nothing_lies_over_anything_else_or_outside(results: Results) -> None:
    root = tree.fromstring(picture(results))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    ground = root.find(f"{SPACE}rect")
    texts = [text_box(node) for node in root.iter(f"{SPACE}text")]
    boxes = texts + [bar_box(node) for node in root.iter(f"{SPACE}rect") if node is not ground]
    assert len(boxes) > 20
    for number, box in enumerate(boxes):
        assert box.left >= 0, box
        assert box.top >= 0, box
        assert box.right <= width, box
        assert box.bottom <= height, box
        for other in boxes[number + 1 :]:
            assert not box.meets(other), (box, other)
    assert width == WIDTH


def test_every_panel_shows_every_program_with_its_figure() -> None:
    root = tree.fromstring(picture(example()))
    panels = {node.get("id"): ["".join(each.itertext()) for each in node] for node in root.iter(f"{SPACE}g")}
    assert list(panels) == [
        *("first-lz4", "first-zstd", "nochange", "random", "random-bytes", "restore", "hints", "cache"),
    ]
    for label, figure in (
        ("Forebay", "10.0 s"),
        ("restic", "33.0 s"),
        ("borg", "25.0 s"),
        ("borg 4 MiB", "20.0 s"),
        ("borg 64 KiB", "19.0 s"),
        ("borg zstd", "21.0 s"),
        ("limit", "7.50 s"),
    ):
        at = panels["first-lz4"].index(label)
        assert panels["first-lz4"][at + 2] == figure
    assert "1.90 × as fast as borg 64 KiB, the best other; 75 % of the limit" in panels["first-lz4"]
    assert "1/13 of borg 64 KiB, the best other" in panels["random-bytes"]
    assert {"90.0 MB", "5,488 MB", "80.0 MB"} <= set(panels["random-bytes"])
    assert {"after ten days", "9.00 s"} <= set(panels["restore"])
    assert {"0.60 s", "3.00 s", "0.20 × the time without"} <= {text.partition(";")[0] for text in panels["hints"]}
    assert {"with the cache", "without", "12.5 s", "10.0 s"} <= set(panels["cache"])


def test_bars_of_a_panel_are_in_proportion() -> None:
    root = tree.fromstring(picture(example()))
    (panel,) = [node for node in root.iter(f"{SPACE}g") if node.get("id") == "first-lz4"]
    widths = [float(bar.get("width", "0")) for bar in panel.iter(f"{SPACE}rect")]
    values = [bar.value for bar in panels_of(example())[0].bars]
    assert [width / widths[0] for width in widths] == pytest.approx([value / values[0] for value in values], rel=0.01)


def test_date_machine_and_programs_are_told_also_to_those_who_do_not_see_it() -> None:
    text = picture(example())
    root = tree.fromstring(text)
    said = " ".join("".join(node.itertext()) for node in root.iter())
    for wanted in ("2026-05-01", "Example 9000, 2 cores", "restic 0.14.0", "borg 1.4.5", "8 GiB", "Medians of 3"):
        assert wanted in said
    description = root.findtext(f"{SPACE}desc") or ""
    for panel in panels_of(example()):
        for bar in panel.bars:
            assert bar.label in description
    assert root.get("aria-labelledby") == "title description"


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", [name for name in COLOURS if name != "ground"])
def test_colours_stand_out_from_the_ground(name: str, theme: int) -> None:
    one, other = sorted((luminance(COLOURS[name][theme]), luminance(COLOURS["ground"][theme])))
    assert (other + 0.05) / (one + 0.05) >= (7 if name in ("text", "faint") else 3)


def test_both_themes_colour_the_same_classes_and_all_that_are_used() -> None:
    text = picture(example())
    light, _, dark = re.findall(r"<style>\n(.*)\n</style>", text, re.DOTALL)[0].partition("@media")
    classes = [set(re.findall(r"\.([a-z]+)\{", half)) for half in (light, dark)]
    assert classes[0] == classes[1] == set(COLOURS)
    assert set(re.findall(r'class="([a-z]+)"', text)) <= classes[0]
