"""deploy/forebay.toml against the list of settings: nothing undocumented, nothing documented that is not there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from adapters.config import parse_config
from adapters.config.load import TABLES, allowed, settings
from adapters.config.units import show_duration, show_size

FILE = Path(__file__).parents[2] / "deploy/forebay.toml"
TEXT = FILE.read_text(encoding="utf-8")
COMMENTED = re.compile(r"^# ([a-z_]+ = .*)$", re.MULTILINE)
SETTINGS = [(table, key) for table, struct in TABLES.items() for key in settings(struct)]
# Some settings are for folders, others for shares: which of them go together is not asked here.
WHOLE_TEXT = COMMENTED.sub(r"\1", TEXT)
WHOLE = parse_config(WHOLE_TEXT, FILE, places=False)


def table_text(table: str) -> str:
    """Return what the file says in a table, up to the next one."""
    heading = f"[[{table}]]" if table == "volume" else f"[{table}]"
    after = TEXT.split(f"\n{heading}\n", 1)[1]
    return re.split(r"^\[", after, maxsplit=1, flags=re.MULTILINE)[0]


def setting_text(table: str, key: str) -> tuple[str, str]:
    """Return a setting's comment and its line."""
    for paragraph in table_text(table).split("\n\n"):
        *comment, line = paragraph.strip().splitlines()
        if line.removeprefix("# ").startswith(f"{key} = "):
            return " ".join(part.removeprefix("#").strip() for part in comment), line
    raise AssertionError(f"[{table}] {key} does not stand in {FILE.name}")


def test_the_file_is_a_configuration_as_it_stands() -> None:
    assert parse_config(TEXT, FILE).system.name == "web-01"


def test_the_file_is_a_configuration_with_every_setting_switched_on() -> None:
    raw = tomllib.loads(WHOLE_TEXT)
    assert WHOLE.cache is not None
    for table, key in SETTINGS:
        content = raw["volume"][0] if table == "volume" else raw[table]
        assert key in content, f"[{table}] {key} is not documented"


@pytest.mark.parametrize(("table", "key"), SETTINGS, ids="-".join)
def test_every_setting_says_what_is_allowed_and_what_holds_without_it(table: str, key: str) -> None:
    field = settings(TABLES[table])[key]
    comment, line = setting_text(table, key)
    assert f"Allowed: {allowed(field)}" in comment
    required = field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    assert ("Required" in comment) == required
    assert line.startswith("# ") != required
    if required or isinstance(field.default, Path) or field.default_factory is not msgspec.NODEFAULT:
        return
    if field.default is None:
        assert "No default" in comment
        return
    written = line.removeprefix("# ").partition(" = ")[2]
    value = tomllib.loads(f"x = {written}")["x"]
    if isinstance(field.default, msgspec.Struct):
        inner = settings(type(field.default))
        assert value.keys() == {name for name, each in inner.items() if each.default is not None}
        assert getattr(getattr(WHOLE, table), key) == field.default
    elif key.endswith("size"):
        assert value == show_size(field.default)
    elif isinstance(field.default, float):
        assert value == show_duration(field.default)
    else:
        assert value == field.default
    assert f"Default {written}" in comment
