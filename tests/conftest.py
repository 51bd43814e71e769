"""What holds for all tests: those that need root are named when they cannot run, and in CI nothing is skipped.

Tests that call the bench scripts (marker `bench_scripts`) are left out, and counted, where those are not beside the
checkout: they are no part of it.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def is_root() -> bool:
    """Tell whether loop devices and mounts may be used."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def bench_scripts() -> Path:
    """Return the folder of peers.py and its like."""
    return Path(os.environ.get("SHARED", Path(__file__).parents[2] / "shared/bench"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that need root, by name, where there is none."""
    if not bench_scripts().is_dir():
        absent = [item for item in items if item.get_closest_marker("bench_scripts") is not None]
        items[:] = [item for item in items if item not in absent]
        config.hook.pytest_deselected(items=absent)
    if is_root():
        return
    for item in items:
        if item.get_closest_marker("root") is not None:
            item.add_marker(pytest.mark.skip(reason="needs root: loop devices, mounts"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their length: keys made at random would give each worker other names for the same test."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) and len(val) > 8 else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure in CI: what is not run there is run nowhere."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, but CI skips nothing: {report.longrepr}"
    return report
