"""Whatever is logged about the cache is found by component=cache."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = frozenset(("debug", "info", "warning", "error", "exception", "critical"))
# All that these log is about the cache; elsewhere an event's name tells.
CACHE_FILES = ("engine/cache/", "engine/pipeline/pagecopies.py", "adapters/cli/verify.py", "adapters/cli/trim.py")
CACHE_EVENTS = ("cache_", "verification_", "trim", "stamp", "heal")


def events() -> list[tuple[str, str, str | None]]:
    """Return file:line, name and component of every event that is logged."""
    found = []
    for folder in ("engine", "adapters"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
                    continue
                keys = {word.arg: word.value for word in node.keywords}
                component = keys.get("component")
                direct = isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
                if direct or component is not None:
                    name = component.value if isinstance(component, ast.Constant) else None
                    where = f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"
                    found.append((where, str(node.args[0].value), None if name is None else str(name)))
    return found


def test_there_are_events_to_look_at() -> None:
    assert {"cache_failed", "pages_not_copied", "vault_lost"} <= {name for _, name, _ in events()}


def test_every_event_about_the_cache_says_so() -> None:
    silent = [
        f"{where} {name}"
        for where, name, component in events()
        if (where.startswith(CACHE_FILES) or name.startswith(CACHE_EVENTS)) and component != "cache"
    ]
    assert silent == []
