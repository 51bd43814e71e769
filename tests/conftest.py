"""What holds for all tests: those that need root are named when they cannot run, and in CI nothing is skipped.

Tests that call the bench scripts (marker `bench_scripts`), or start servers with the scripts beside those (`services`),
are left out, and counted, where the scripts are not beside the checkout: they are no part of it.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine import events

if TYPE_CHECKING:
    from tests.samba import Samba
    from tests.servers import S3Server

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def is_root() -> bool:
    """Tell whether loop devices and mounts may be used."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def bench_scripts() -> Path:
    """Return the folder of peers.py and its like."""
    return Path(os.environ.get("SHARED", Path(__file__).parents[2] / "shared/bench"))


def services() -> Path:
    """Return the folder of the scripts that start servers."""
    return Path(os.environ.get("SERVICES", Path(__file__).parents[2] / "shared/services"))


@pytest.fixture(autouse=True)
def _every_event_is_told() -> Iterator[None]:
    """Forget after each test how loud a command it ran was."""
    yield
    events.tell_from("debug", lambda: None)


@pytest.fixture(scope="session")
def samba(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Samba]:
    """Return a Samba server that all workers share: keep to a folder of your own, and leave the server alone."""
    from tests.samba import borrow, give_back

    base = tmp_path_factory.getbasetemp()
    common = base if worker_id == "master" else base.parent
    try:
        yield borrow(common, worker_id)
    finally:
        give_back(common, worker_id)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that need root, by name, where there is none; begin with those that take minutes."""
    items.sort(key=lambda item: "simulation" not in item.path.parts)  # at the end one worker would wait for the other
    folders = {"bench_scripts": bench_scripts(), "services": services()}
    if missing := [marker for marker, folder in folders.items() if not folder.is_dir()]:
        absent = [item for item in items if any(item.get_closest_marker(marker) is not None for marker in missing)]
        items[:] = [item for item in items if item not in absent]
        config.hook.pytest_deselected(items=absent)
    if is_root():
        return
    for item in items:
        if item.get_closest_marker("root") is not None:
            item.add_marker(pytest.mark.skip(reason="needs root: loop devices, mounts, servers"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[S3Server]:
    """Give the S3 server that all tests of a run share; each uses a prefix of its own."""
    from tests.servers import shared_s3

    base = tmp_path_factory.getbasetemp()
    with shared_s3(base if worker_id == "master" else base.parent, worker_id) as server:
        yield server


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
