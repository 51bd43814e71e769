"""A machine whose commands run in forked children of one warm interpreter: cheap enough to kill hundreds of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
from blake3 import blake3

from adapters.state.files import Disk
from adapters.state.fragments import AckFile
from engine.acks import decode_log
from engine.names import CheckedName, FragmentName, PackName, ReportId, StampName
from engine.pack import check_pack
from tests.scenario.crash_driver import CRASHED, Answer, Fault, Request
from tests.scenario.machine import BLOCK, Done, Machine, overwrite, random_volume

KILLED = -9
IN_THE_SPOOL = "the session went on into the spool"


class Forge:
    """The warm interpreter; one for a test module."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scenario.crash_driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A child must not inherit the lock of a thread that numpy's library started in its parent.
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, request: Request) -> Answer:
        """Run one command line to its end, however it ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(30)


@dataclass
class CrashMachine(Machine):
    """A `Machine` on a forge: the same commands, also killed or disturbed at an exact instant."""

    forge: Forge = field(kw_only=True)

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, expect: int | None = 0) -> Done:
        """Run a command with --json; `expect` None: any exit code will do."""
        assert env is None, "a forked child has the forge's environment"
        return self.attempt(*arguments, expect=expect)

    def attempt(
        self,
        *arguments: str,
        expect: int | None = None,
        kill_at: int | None = None,
        torn: bool = False,
        kill_after_s: float | None = None,
        fault: Fault | None = None,
        faults: Sequence[Fault] = (),
    ) -> Done:
        """Run a command that may be killed or disturbed; whatever it says on stderr must be sentences."""
        self.write_config()
        out, err = self.root / "stdout", self.root / "stderr"
        elsewhere = ("--vault" in arguments and arguments[0] != "verify") or (
            arguments[0] == "restore" and "--spool" in arguments
        )
        command = [] if elsewhere else ["--config", str(self.config)]
        answer = self.forge.run(
            Request(
                arguments=[*command, *arguments, "--json"],
                out=str(out),
                err=str(err),
                kill_at=kill_at,
                torn=torn,
                kill_after_s=kill_after_s,
                faults=[*([fault] if fault is not None else []), *faults],
            )
        )
        stdout, stderr = out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
        assert answer.code != CRASHED, stderr
        assert "Traceback" not in stderr, stderr
        if expect is not None:
            assert answer.code == expect, f"exit {answer.code}\n{stdout}\n{stderr}"
        self.changes = answer.changes
        document = json.loads(stdout) if answer.code != KILLED and stdout else None
        return Done(answer.code, document, stderr, stdout)

    def copy_to(self, root: Path) -> CrashMachine:
        """Copy volumes, stores and local state below `root`: what happens there changes nothing here."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        copy = CrashMachine(
            root / "machine",
            root / "vault",
            root / "cache" if self.cache is not None else None,
            name=self.name,
            volumes={name: root / path.name for name, path in self.volumes.items()},
            extra=self.extra,
            volume_extra=self.volume_extra,
            spool=root / "spool" if self.spool is not None else None,
            forge=self.forge,
        )
        for name, path in self.volumes.items():
            shutil.copyfile(path, copy.volumes[name])
        pairs = [(self.state, copy.state), (self.vault, copy.vault), (self.aside, copy.aside)]
        for here, there in (*pairs, (self.cache, copy.cache), (self.spool, copy.spool)):
            if here is not None and there is not None and here.exists():
                shutil.copytree(here, there)
        return copy

    @property
    def aside(self) -> Path:
        """Where the vault's folder is while it is away."""
        return self.vault.with_name("aside")

    def away(self) -> None:
        """Take the vault away, if it is there."""
        if self.vault.exists():
            self.vault.rename(self.aside)

    def back(self) -> None:
        """Bring the vault back, if it is away."""
        if self.aside.exists():
            self.aside.rename(self.vault)

    def acknowledged(self, store: Path) -> set[str]:
        """Return the names of a store's packs that local state knows to be there and no fragment lists yet."""
        found: set[str] = set()
        for path in sorted((self.state / "index").glob("*.acks")):
            if path.stem == store_id(store):
                log = AckFile(path, Disk(), writable=False)
                durable, volatile = decode_log(log.read())
                log.close()
                found |= {str(ack.name) for ack in durable + volatile}
        return found

    @property
    def vault_id(self) -> str:
        """The vault's store id as state folders are named."""
        return store_id(self.vault)

    @property
    def owner(self) -> str:
        """The system id, as in the names of its objects."""
        (writer,) = (path.name for path in (self.vault / "root").iterdir())
        return writer


def store_id(store: Path) -> str:
    """Return the id of a folder store as state folders are named."""
    return (store / "format").read_bytes()[12:28].hex()


def objects(store: Path) -> dict[str, bytes]:
    """Return the BLAKE3 of every object of a folder store by name; temporary files are none."""
    found: dict[str, bytes] = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and not name.startswith("tmp/"):
            found[name] = blake3(path.read_bytes()).digest()
    return found


def lasting(store: Path) -> dict[str, bytes]:
    """Return what `objects` does without the reports, of which commands add some and remove the oldest."""
    return {name: digest for name, digest in objects(store).items() if not name.startswith("report/")}


def leftovers(store: Path) -> list[str]:
    """Return the temporary files of a folder store."""
    folder = store / "tmp"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def check_whole(store: Path, found: Mapping[str, bytes]) -> None:
    """Check that everything named like a pack is one, byte for byte, and everything else has a name that is known."""
    for name, digest in found.items():
        pack = PackName.parse(name)
        if pack is not None:
            assert (store / name).stat().st_size == pack.size, name
            assert digest == pack.hash, name
        elif name.startswith("index/"):
            assert FragmentName.parse(name) is not None, name
        elif name.startswith("stamp/"):
            assert StampName.parse(name) is not None, name
        elif name.startswith("checked/"):
            assert CheckedName.parse(name) is not None, name
        elif name.startswith("report/"):
            assert ReportId.parse(name) is not None, name
        else:
            assert name.split("/")[0] in ("format", "root", "note", "key", "cert", "data", "page"), name


def records(store: Path, names: set[str], kind: str = "data") -> dict[bytes, list[str]]:
    """Return which of the packs `names` hold each record id."""
    held: dict[bytes, list[str]] = {}
    for name in sorted(names):
        pack = PackName.parse(name)
        if pack is not None and pack.kind == kind:
            entries = check_pack(pack, (store / name).read_bytes(), None, None)
            for row in entries.ids:
                held.setdefault(row.tobytes(), []).append(name)
    return held


def change(machine: Machine, generator: random.Random) -> None:
    """Change both volumes: new content, zeros, content known from elsewhere, parts of blocks, and the size of one."""
    for name, path in sorted(machine.volumes.items()):
        blocks = path.stat().st_size // BLOCK
        for block in generator.sample(range(blocks), min(blocks, 12)):
            kind = generator.randrange(7)
            if kind > 3:
                with path.open("r+b") as out:
                    out.seek(block * BLOCK + generator.randrange(BLOCK - 300))
                    out.write(generator.randbytes(300))
                continue
            overwrite(
                path, block, bytes(BLOCK) if kind == 0 else b"r" * BLOCK if kind == 1 else generator.randbytes(BLOCK)
            )
        if name == "logs":
            with path.open("r+b") as out:
                out.truncate(generator.randrange(20, 60) * BLOCK + generator.randrange(BLOCK))


def made(
    root: Path, forge: Forge, points: int = 2, spool: bool = False, extra: Mapping[str, str] | None = None
) -> CrashMachine:
    """Return a machine with so many restore points, and changes on its volumes that are in none of them.

    `spool`: it has one; `extra`: as of `Machine`.
    """
    root.mkdir()
    volumes = {
        "data": random_volume(root / "data.img", 130, seed=1, tail=777),
        "logs": random_volume(root / "logs.img", 30, seed=2),
    }
    machine = CrashMachine(
        root / "machine",
        root / "vault",
        root / "cache",
        volumes=volumes,
        extra={**(extra or {})},
        spool=root / "spool" if spool else None,
        forge=forge,
    )
    machine.init()
    generator = random.Random(points)
    for _ in range(points):
        assert machine.backup()["problems"] == []
        change(machine, generator)
    if points:
        fill(machine, generator)
    return machine


def fill(machine: CrashMachine, generator: random.Random) -> None:
    """Write two packs' worth of new content, so that kills fall between them."""
    with machine.volumes["data"].open("r+b") as out:
        out.seek(20 * BLOCK)
        out.write(generator.randbytes(90 * BLOCK))


class Aftermath:
    """What must be true of a machine whose session was killed or failed, then after the next session.

    `store` is where sessions write to: the vault, or the spool while the vault is away. From there a session sweeps
    what no point came to list: pages, packs nobody knows of, and if `swept` those with blocks that changed again.
    """

    def __init__(self, machine: CrashMachine, store: Path | None = None, *, swept: bool = False) -> None:
        self.machine = machine
        self.store = machine.vault if store is None else store
        self.vault, self.cache = objects(self.store), self._cached()
        self.known = self.packs()
        self.swept = swept

    def packs(self) -> set[str]:
        """Return the data packs the store held when it was last looked at."""
        return {name for name in self.vault if name.startswith("data/")}

    def _cached(self) -> dict[str, bytes]:
        cache = self.machine.cache
        found = objects(cache) if cache is not None and cache.is_dir() else {}
        # What was seen on which day is written anew by every session, and what it replaces goes, like old reports.
        return {name: data for name, data in found.items() if not name.startswith(("stamp/", "report/"))}

    def of_kill(self) -> list[str]:
        """Check the stores as the killed session left them: nothing changed, nothing half; return its points."""
        vault, cache = objects(self.store), self._cached()
        self._stand(vault, sweeping=self.swept)
        assert self.cache.items() <= cache.items()
        check_whole(self.store, vault)
        if self.machine.cache is not None:
            check_whole(self.machine.cache, cache)
        known = self.machine.acknowledged(self.store)
        assert known <= vault.keys()
        self.known |= known
        added = vault.keys() - self.vault.keys()
        self.vault, self.cache = vault, cache
        return [name.rpartition("/")[2] for name in sorted(added) if name.startswith("root/")]

    def _stand(self, vault: Mapping[str, bytes], *, sweeping: bool) -> None:
        """Check that what was in the store before still is, but for what may be swept."""
        gone = self.vault.keys() - vault.keys()
        # Of reports the newest few are kept.
        swept = {"data", "page", "index", "report"} if sweeping else {"report"}
        assert {name.split("/")[0] for name in gone} <= swept
        assert self.swept or not gone & self.known, "what was acknowledged is gone"
        assert {name: digest for name, digest in self.vault.items() if name not in gone}.items() <= vault.items()
        self.known -= gone

    def of_next(self) -> Any:
        """Run the next session, check that it needed nothing twice and left nothing behind; return its report."""
        machine = self.machine
        report = machine.backup(expect=0 if self.store == machine.vault else 3)
        # Where it went to is all there is to say.
        assert [each for each in report["problems"] if not each.endswith(IN_THE_SPOOL)] == []
        before, vault = self.vault, objects(self.store)
        self._stand(vault, sweeping=self.store == machine.spool)
        check_whole(self.store, vault)
        sent = records(self.store, vault.keys() - before.keys())
        held = records(self.store, self.known & vault.keys())
        assert not sent.keys() & held.keys(), "what was acknowledged was sent again"
        assert all(len(packs) == 1 for packs in sent.values())
        assert leftovers(self.store) == []
        if machine.cache is not None:
            check_whole(machine.cache, objects(machine.cache))
            assert leftovers(machine.cache) == []
        return report

    def content(self, point: str, *arguments: str) -> None:
        """Restore every volume of a point and compare it with what the volumes hold."""
        for name, path in self.machine.volumes.items():
            target = self.machine.root / "out"
            target.unlink(missing_ok=True)
            self.machine.restore(point, name, target, *arguments)
            assert target.read_bytes() == path.read_bytes(), f"{name} of {point}"


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """Give a folder in memory where there is one: hundreds of sessions sync a lot."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            yield Path(folder)
    else:
        yield otherwise
