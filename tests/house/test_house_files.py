"""What stands beside the code: lock files, README, licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from adapters import main
from adapters.config import parse_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = {
    "requirements.lock": PROJECT["project"]["dependencies"],
    "requirements-dev.lock": PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"],
}
PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+)( ; .*?)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_is_nothing_but_pinned_and_hashed_packages(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert PIN.sub("", text).strip() == ""
    pinned = {match[1] for match in PIN.finditer(text)}
    wanted = {re.split(r"[<>=~ ]", dependency)[0].lower() for dependency in LOCKS[name]}
    assert wanted <= pinned


def test_both_lock_files_pin_the_same_versions() -> None:
    pins = {
        name: {(match[1], match[2]) for match in PIN.finditer((ROOT / name).read_text(encoding="utf-8"))}
        for name in LOCKS
    }
    assert pins["requirements.lock"] <= pins["requirements-dev.lock"]


@pytest.mark.parametrize("document", ["README.md", "docs/ARCHITECTURE.md", "CHANGELOG.md"])
def test_links_lead_to_files_that_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((ROOT / document).parent / link).exists(), link


def test_the_code_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:engine|adapters|tests)/[a-z_/]+(?:\.py)?)`", text):
        assert (ROOT / path).exists(), path


def test_the_readme_shows_a_configuration_that_is_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    config = parse_config("\n".join(line.removeprefix("   ") for line in block.splitlines()), Path("/etc/forebay.toml"))
    assert config.active_cache is not None


def test_the_readme_names_only_commands_and_targets_that_are_there() -> None:
    for command in re.findall(r"^ +forebay ([a-z-]+)", README, re.MULTILINE):
        assert command in main.COMMANDS
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
