"""The house rules of STYLE.md and DESIGN.md §6 that a linter cannot tell. (Public docstrings: ruff, D1.)"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What the engine may import: computing, coordinating, and the libraries DESIGN.md §4 names for that. Files, sockets,
# processes, clocks and the operating system come in through ports.
ENGINE_STDLIB = words(
    "__future__ abc bisect collections contextlib contextvars dataclasses datetime enum functools hashlib heapq hmac"
    " itertools json math operator random re secrets struct threading types typing unicodedata weakref"
)
ENGINE_LIBRARIES = words(
    "anyio blake3 cryptography lz4 mnemonic msgspec numpy structlog xxhash zstandard zxcvbn engine"
)
# Modules that exist on one system only: imported inside functions or under a platform test, in these files alone.
ONE_SYSTEM = words("fcntl grp msvcrt posix pty pwd resource termios tty winreg _winapi ctypes")
ONE_SYSTEM_FILES = (
    "adapters/allocator.py",
    "adapters/config/places.py",
    "adapters/state/files.py",
    "adapters/state/locks.py",
    "adapters/directio.py",
    "adapters/priority.py",
    "adapters/volumes/",
)
# Who may import other families of adapters: the composition root and the commands, which compose.
COMPOSERS = ("adapters/main.py", "adapters/compose.py", "adapters/openstore.py", "adapters/cli/")
SHARED = frozenset({"version", "clock", "logs", "directio", "lifetime", "smallfiles"})

Module = tuple[str, str, ast.Module]


@cache
def modules_in(folder: str) -> tuple[Module, ...]:
    """Return (path from the root, text, syntax tree) of every module below `folder`."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append((path.relative_to(ROOT).as_posix(), text, ast.parse(text)))
    return tuple(found)


def modules(*folders: str) -> list[Module]:
    return [module for folder in folders for module in modules_in(folder)]


def product() -> list[Module]:
    return modules("engine", "adapters")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, full module name) of every import below `tree`; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def test_functions_fit_on_a_screen() -> None:
    offences = [
        f"{name}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for name, _, tree in product()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert offences == []


def test_files_are_short_enough_to_be_read_at_once() -> None:
    offences = [
        f"{name} has {len(text.splitlines())} lines"
        for name, text, _ in product()
        if len(text.splitlines()) > FILE_LINES_MAX
    ]
    assert offences == []


def is_broad(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(is_broad(each) for each in kind.elts)
    return kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))


def test_what_is_caught_broadly_is_raised_again() -> None:
    offences = [
        f"{name}:{node.lineno}"
        for name, _, tree in product()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and is_broad(node.type)
        and not any(isinstance(inner, ast.Raise) for statement in node.body for inner in ast.walk(statement))
    ]
    assert offences == []


def test_the_engine_imports_only_what_computes_and_coordinates() -> None:
    offences = [
        f"{name}:{line} imports {module}"
        for name, _, tree in modules("engine")
        for line, module in imports(tree)
        if module.partition(".")[0] not in ENGINE_STDLIB | ENGINE_LIBRARIES
    ]
    assert offences == []


def test_adapters_do_not_know_their_siblings() -> None:
    offences = []
    for name, _, tree in modules("adapters"):
        if name.startswith(COMPOSERS):
            continue
        family = name.split("/")[1].removesuffix(".py")
        for line, module in imports(tree):
            parts = module.split(".")
            if parts[0] == "adapters" and parts[1] not in {family, *SHARED}:
                offences.append(f"{name}:{line} imports {module}")
    assert offences == []


def test_modules_of_one_system_stay_behind_a_platform_test_in_named_files() -> None:
    offences = []
    for name, _, tree in product():
        at_top = {node.lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        for line, module in imports(tree):
            if module.partition(".")[0] in ONE_SYSTEM and (line in at_top or not name.startswith(ONE_SYSTEM_FILES)):
                offences.append(f"{name}:{line} imports {module}")
    assert offences == []


def test_nothing_is_left_to_be_done() -> None:
    words = re.compile(
        rf"\b({'|'.join(['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X', 'HA' + 'CK'])})\b|{'NotImpl' + 'emented'}"
    )
    offences = [
        f"{name}:{number} {line.strip()}"
        for name, text, _ in modules("engine", "adapters", "tests", "deploy")
        for number, line in enumerate(text.splitlines(), 1)
        if words.search(line)
    ]
    assert offences == []


def called(node: ast.AST) -> str:
    """Return the dotted name a call or attribute stands for, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{called(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def test_tests_neither_sleep_nor_skip() -> None:
    banned = re.compile(r"time\.sleep|pytest\.(mark\.)?(skip|skipif|xfail|importorskip)|unittest\.skip\w*")
    offences = [
        f"{name}:{node.lineno} {called(node)}"
        for name, _, tree in modules("tests")
        if name != "tests/conftest.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and banned.fullmatch(called(node))
    ]
    assert offences == []


def test_test_files_have_names_of_their_own() -> None:
    names = [Path(name).name for name, _, _ in modules("tests") if Path(name).name.startswith("test_")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


@pytest.mark.parametrize("folder", ["engine", "adapters"])
def test_every_folder_of_the_product_is_a_package(folder: str) -> None:
    offences = {Path(name).parent.as_posix() for name, _, _ in modules(folder)} - {
        Path(name).parent.as_posix() for name, _, _ in modules(folder) if name.endswith("/__init__.py")
    }
    assert offences == set()


def test_the_lists_above_name_what_exists() -> None:
    known = sys.stdlib_module_names
    assert set(known) >= ENGINE_STDLIB
    assert known >= ONE_SYSTEM
