"""Kill -9 at changes of a disk while the backlog is uploaded: repeated, the vault ends up the same.

`FOREBAY_CRASH_STRIDE=1` kills at every single change, which takes minutes; by default it is every 23rd.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.scenario.crash_backlog import Backlog
from tests.scenario.crash_machine import KILLED, check_whole, objects

STRIDE = int(os.environ.get("FOREBAY_CRASH_STRIDE", "29"))


class Whole:
    """What the vault holds once a template's backlog is uploaded without any interruption."""

    def __init__(self, template: Backlog, path: Path) -> None:
        self.before = objects(template.spool)
        backlog = template.copy_to(path)
        backlog.upload_all()
        self.changes = backlog.machine.changes
        self.vault = kept(objects(backlog.machine.vault))
        shutil.rmtree(path)

    def check_left(self, backlog: Backlog) -> None:
        """Check that what left the spool is in the vault: packs with their points, no point before its packs."""
        spool, vault = objects(backlog.spool), objects(backlog.machine.vault)
        check_whole(backlog.machine.vault, vault)
        gone = {name: digest for name, digest in kept(self.before).items() if name not in spool}
        assert gone.items() <= vault.items()
        needed: set[str] = set()
        for root in sorted(name for name in self.before if name.startswith("root/")):
            # The packs of older points are among those of a newer one, or lie in the vault before it does.
            needed |= backlog.packs[root.rpartition("/")[2]]
            if root in vault:
                assert needed <= vault.keys()
            else:
                assert needed <= spool.keys()


def kept(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return what must be the same whichever way it got there: not the index, whose fragments are cut otherwise."""
    return {name: digest for name, digest in found.items() if name.split("/")[0] in ("data", "page", "root", "note")}


def test_an_upload_killed_at_any_change_and_repeated_ends_up_the_same(two: Backlog, fast_path: Path) -> None:
    whole = Whole(two, fast_path / "whole")
    instants = range(1, whole.changes + 1, STRIDE)
    killed = 0
    for kill_at in instants:
        backlog = two.copy_to(fast_path / "work")
        killed += backlog.machine.attempt("upload", kill_at=kill_at, torn=kill_at % 2 == 0).code == KILLED
        whole.check_left(backlog)
        assert backlog.listed() == backlog.contents.keys()
        backlog.restore_some(killed)
        if kill_at % 3 == 0:  # a second time, at another instant
            backlog.machine.attempt("upload", kill_at=1 + kill_at * 7 % whole.changes, torn=True)
            whole.check_left(backlog)
        backlog.upload_all()
        assert kept(objects(backlog.machine.vault)) == whole.vault
        assert backlog.listed() == backlog.contents.keys()
        with backlog.without_cache():
            backlog.restore_some(killed)
        backlog.goes_on()
    assert killed >= len(instants) - 1


def test_an_upload_at_the_end_of_a_backup_killed_at_any_change_goes_on_at_the_end_of_the_next(
    two: Backlog, fast_path: Path
) -> None:
    whole = Whole(two, fast_path / "whole")
    backlog = two.copy_to(fast_path / "work")
    backlog.machine.backup()
    changes = backlog.machine.changes
    instants = range(changes - whole.changes, changes + 1, 2 * STRIDE)
    killed = 0
    for kill_at in instants:
        backlog = two.copy_to(fast_path / "work")
        killed += backlog.machine.attempt("backup", kill_at=kill_at, torn=kill_at % 2 == 0).code == KILLED
        whole.check_left(backlog)
        for point in backlog.listed() - backlog.contents.keys():
            backlog.keep(point)
        assert backlog.listed() == backlog.contents.keys()
        report = backlog.machine.backup()
        assert report["problems"] == []
        assert report["backlog"] == 0
        assert backlog.in_spool() == []
        backlog.keep(report["point"])
        assert whole.vault.items() <= objects(backlog.machine.vault).items()
        assert backlog.listed() == backlog.contents.keys()
        with backlog.without_cache():
            backlog.restore(report["point"])
            backlog.restore_some(killed)
        backlog.goes_on()
    assert killed >= len(instants) - 1
