"""A disk that gives less and less: a session ends while it is still worth reading what it gives."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from adapters.volumes.descriptor import DescriptorVolume
from engine.block import PART_BYTES
from engine.pipeline.volume import UNREADABLE_RANGES_MAX
from tests.scenario.cheap import enrolled
from tests.scenario.inprocess import backup


def test_a_disk_with_bad_sectors_all_over_is_given_up_long_before_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, volume = enrolled(tmp_path, blocks=1)
    machine.volume_extra["data"] = 'on_read_error = "skip"'
    size_bytes = 20 * UNREADABLE_RANGES_MAX * PART_BYTES
    volume.write_bytes(b"x" * size_bytes)
    real = DescriptorVolume._read_some
    failed: list[int] = []

    def every_second_part_is_bad(reader: DescriptorVolume, offset: int, buffer: memoryview) -> int:
        if len(buffer) > PART_BYTES or offset // PART_BYTES % 2:
            failed.append(offset)
            raise OSError(errno.EIO, "Input/output error")
        return real(reader, offset, buffer)

    monkeypatch.setattr(DescriptorVolume, "_read_some", every_second_part_is_bad)
    report = backup(machine)
    assert (report.exit_code, report.point) == (1, None)
    assert report.error is not None
    assert f"more than {UNREADABLE_RANGES_MAX} unreadable ranges" in report.error
    assert max(failed) < size_bytes // 2
