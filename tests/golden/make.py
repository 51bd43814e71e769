"""Makes a golden vault: `python tests/golden/make.py v1` wrote tests/golden/v1.tar.xz and v1.json.

It is kept to show what lies in the archive. A golden vault is made once, with the version whose format it keeps, and
never again: later versions open it as it is (test_golden.py), and so does a reader of its own (reader.py). Two systems
share a vault and a cache; volumes grow and shrink; there are holes, repeated and short blocks, all codecs, a merged
run, a delta with its source, and a superseded point.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from blake3 import blake3

from engine.block import PLACE, Bytes, ref_of
from engine.names import PackName
from engine.pack import PackBuilder, check_pack
from engine.packtable import PackRows, pack_name, rows_of
from engine.pipeline import newrun
from engine.runmerge import plan_merge
from engine.runs import write_run
from engine.seal import Sealer
from tests.engine.fakes_delta import SourceBlock, encode_delta, map_of
from tests.scenario.cheap import enrol
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine, overwrite
from tests.scenario.mallory import hooked_backup, identity_of, packs_in

FOLDER = Path(__file__).parent
NAMES = ("web-01", "db-02")
DELTA_BLOCK = 7

Expected = dict[str, dict[str, dict[str, str]]]  # system → point → volume → SHA-256 of its content


def block(number: int) -> bytes:
    """Return a block that compresses well and is like no other; each of its parts, too."""
    chooser = random.Random(number)
    return b"".join(chooser.randbytes(16) * 256 for _ in range(16))


class Making:
    """The world of the golden vault while it is made."""

    def __init__(self, root: Path) -> None:
        self.vault, self.cache = root / "vault", root / "cache"
        self.machines = {
            name: Machine(root / name, self.vault, self.cache, name, self._volumes(root, name)) for name in NAMES
        }
        self.expected: Expected = {name: {} for name in NAMES}
        for machine in self.machines.values():
            enrol(machine)

    def _volumes(self, root: Path, system: str) -> dict[str, Path]:
        volumes = {
            name: root / f"{system}-{name}.img" for name in (("data", "logs") if system == "web-01" else ("disk",))
        }
        for path in volumes.values():
            path.touch()
        return volumes

    def session(self, system: str, codec: str = "zstd", *, cache: bool = True) -> None:
        machine = self.machines[system]
        machine.extra["vault"] = f'compression = "{codec}"'
        machine.cache = self.cache if cache else None
        report = backup(machine)
        assert report.exit_code == 0, report
        self.note(system, str(report.point))

    def note(self, system: str, point: str) -> None:
        self.expected[system][point] = {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in self.machines[system].volumes.items()
        }

    def superseded(self) -> None:
        """Make a root whose packs vanish as it is put, and its successor; put the packs back."""
        machine = self.machines["web-01"]
        machine.extra["vault"] = 'compression = "zstd"'
        lent = {
            path: path.read_bytes() for path in packs_in(self.vault, writer=identity_of(self.machines["db-02"]).system)
        }
        roots: list[str] = []

        async def vanish(name: str) -> None:
            if name.startswith("root/"):
                roots.append(name.rsplit("/", 1)[1])
                for path in lent:
                    path.unlink(missing_ok=True)

        report = hooked_backup(machine, after=vanish)
        assert report.exit_code == 0
        assert roots[1:] == [report.point], roots
        for path, data in lent.items():
            path.write_bytes(data)
        for point in roots:
            self.note("web-01", point)

    def delta(self) -> None:
        """Change two parts of a block and let a delta travel instead of it; only the vault gets it."""
        machine = self.machines["web-01"]
        identity = identity_of(machine)
        old = machine.volumes["data"].read_bytes()[DELTA_BLOCK * BLOCK : (DELTA_BLOCK + 1) * BLOCK]
        new = bytearray(old)
        for part in (3, 12):
            new[part * 4096 : part * 4096 + 64] = random.Random(part).randbytes(64)
        # The first of a batch is opened again before it travels, and the program opens no deltas there.
        overwrite(machine.volumes["data"], 1, block(90))
        overwrite(machine.volumes["data"], DELTA_BLOCK, bytes(new))
        source, pack = self._find(ref_of(identity.keys.blocks, old))
        travelling = {part: 0 for part in range(16) if part not in (3, 12)}
        record = encode_delta(identity.keys.blocks, bytes(new), [source], map_of(bytes(new), travelling))
        with linking(ref_of(identity.keys.blocks, bytes(new)), record, pack):
            self.session("web-01", cache=False)

    def _find(self, ref: bytes) -> tuple[SourceBlock, PackName]:
        for path in packs_in(self.vault):
            name = PackName.parse(path.relative_to(self.vault).as_posix())
            assert name is not None
            entries = check_pack(name, path.read_bytes(), None, None)
            for ident, offset, length in zip(entries.ids, entries.offsets, entries.lengths, strict=True):
                if ident.tobytes() == ref[:16]:
                    row = (name.key, int(offset), int(length))
                    return SourceBlock(ref, np.array([row], dtype=PLACE)[0]), name
        raise AssertionError("the source of the delta is in no pack")


@contextmanager
def linking(ref: bytes, record: bytes, source: PackName) -> Iterator[None]:
    """Put a delta in the place of a block's record wherever it goes, its source's pack in all lists."""
    seal_batch, add = Sealer.seal_batch, PackBuilder.add

    def sealed(self: Sealer, refs: list[bytes], contents: Any) -> list[Bytes]:
        records = seal_batch(self, refs, contents)
        return [record if known == ref else whole for known, whole in zip(refs, records, strict=True)]

    def added(self: PackBuilder, data: Bytes, sources: Sequence[PackName] = (), day: int = 0) -> int:
        return add(self, data, [source] if data[16] == 1 else sources, day)

    async def written(writer: Any, chunks: Any, *, packs: Any, **more: Any) -> Any:
        def closed() -> PackRows:
            return rows_of({*map(pack_name, packs()), source})

        return await write_run(writer, chunks, packs=closed, **more)

    with (
        mock.patch.object(Sealer, "seal_batch", sealed),
        mock.patch.object(PackBuilder, "add", added),
        mock.patch.object(newrun, "write_run", written),
    ):
        yield


def make(root: Path) -> Making:
    """Make the vault, the cache and what is expected of them."""
    making = Making(root)
    data, logs = making.machines["web-01"].volumes.values()
    (disk,) = making.machines["db-02"].volumes.values()

    disk.write_bytes(b"".join(map(block, range(20, 26))) + b"the end")
    making.session("db-02")
    data.write_bytes(b"".join(map(block, [0, 1, 2, 0, 4, 5, 6, 7, 0, 9])) + random.Random(1).randbytes(777))
    logs.write_bytes(b"".join(map(block, range(30, 35))))
    making.session("web-01")

    with data.open("r+b") as out:  # grows, with a hole
        out.truncate(40 * BLOCK)
        out.seek(39 * BLOCK)
        out.write(block(41) + b"a short block that is new")
    with logs.open("r+b") as out:  # shrinks
        out.truncate(2 * BLOCK + 5)
    making.session("web-01", "lz4")

    with data.open("r+b") as out:  # shrinks into the hole, loses a block to zeros
        out.truncate(12 * BLOCK + 1000)
    overwrite(data, 2, bytes(BLOCK))
    overwrite(data, 3, b"not compressed " + block(43)[15:])
    making.session("web-01", "none")

    with logs.open("ab") as out:  # grows by what the neighbour has
        out.write(bytes(BLOCK - 5) + block(21) + block(22) + block(24))
    making.superseded()

    with mock.patch.object(newrun, "plan_merge", partial(plan_merge, runs_max=3)):
        overwrite(data, 9, block(50))
        making.session("web-01")

    overwrite(disk, 2, block(5))
    making.session("db-02", "lz4")
    making.delta()
    overwrite(logs, 0, block(60))
    making.session("web-01")
    return making


def archive(making: Making) -> bytes:
    """Return vault and cache as a tar archive, compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9, format=tarfile.USTAR_FORMAT) as out:
        for store in (making.vault, making.cache):
            for path in sorted(store.rglob("*")):
                name = path.relative_to(store).as_posix()
                if path.is_file() and not name.startswith("tmp/"):
                    row = tarfile.TarInfo(f"{store.name}/{name}")
                    row.size, row.mode = path.stat().st_size, 0o644
                    with path.open("rb") as data:
                        out.addfile(row, data)
    return packed.getvalue()


def main(name: str) -> None:
    """Write the archive and the digests of a golden vault called `name`."""
    target = FOLDER / f"{name}.tar.xz"
    if target.exists():
        raise SystemExit(f"{target} exists: a golden vault is never made again")
    with tempfile.TemporaryDirectory() as folder:
        making = make(Path(folder))
        packed = archive(making)
    target.write_bytes(packed)
    about = {"archive_blake3": blake3(packed).hexdigest(), "systems": making.expected}
    (FOLDER / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(packed)} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
