"""Show Forebay at work: a volume is backed up twice, both restore points are restored and compared.

Uses nothing but the command `forebay`, as a user would. Without --volume it makes a sample volume: an ext4 filesystem
with real files in it (no root needed), and changes files in that filesystem between the two backups. A volume given
with --volume is only ever read: it is backed up as it is, twice, and compared with what is restored from the second
point. Everything lies in one folder, which is made anew at each run and kept for a look around afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
STEP_BYTES = 4 * MIB
FILLER_BYTES = 16 * MIB
MARKER = "made-by-forebay-demo"
E2FS = ("mkfs.ext4", "debugfs", "e2fsck")

CONFIG = """\
[system]
name = "demo"
state_dir = "state"

[[volume]]
name = "data"
path = {volume}

[vault]
url = {vault}

[cache]
path = "cache"
"""


class Stop(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass
class Demo:
    """The folder of the demonstration, and what has been learnt in it so far."""

    folder: Path
    volume: Path
    size: int
    began: float = field(default_factory=time.monotonic)
    backups: list[dict[str, Any]] = field(default_factory=list)

    def forebay(self, *arguments: str) -> dict[str, Any]:
        """Run a forebay command; its progress appears on the terminal, its JSON document is returned."""
        shown = " ".join(arguments)
        say(f"\n$ forebay {shown}")
        progress = "bar" if sys.stderr.isatty() else "lines"
        command = [str(Path(sys.executable).with_name("forebay")), "--json", "--progress", progress]
        done = subprocess.run(
            [*command, *arguments],
            env=os.environ | {"FOREBAY_CONFIG": str(self.folder / "forebay.toml")},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            # What went wrong stands on stderr, above; problems that did not stop it stand in the document.
            raise Stop(f"forebay {shown} ended with exit code {done.returncode}\n{done.stdout}".rstrip())
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def backup(self) -> dict[str, Any]:
        """Back up, tell what it did, and return the point's figures for the volume."""
        document = self.forebay("backup")
        figures: dict[str, Any] = document["volumes"]["data"] | {"point": document["point"]}
        self.backups.append(figures)
        say(
            f"  restore point {figures['point']}: read {amount(figures['read_bytes'])} in {figures['seconds']:.1f} s,"
            f" {figures['changed']} blocks were new; sent {amount(figures['vault_bytes'])} to the vault"
            f" and {amount(figures['cache_bytes'])} to the cache"
        )
        return figures

    def restore(self, point: str, name: str, expected: Path) -> Path:
        """Restore a point to a new file and compare it with what it was made from."""
        target = self.folder / name
        began = time.monotonic()
        self.forebay(
            *("restore", point, "--volume", "data", "--to", near(target)),
            *("--passphrase-file", near(self.folder / "passphrase")),
        )
        seconds = time.monotonic() - began
        difference = first_difference(target, expected, self.size)
        if difference is not None:
            raise Stop(f"{target} differs from {expected} at byte {difference}")
        say(f"  {name}: {amount(self.size)} in {seconds:.1f} s, every byte as it was")
        return target


def main() -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(description="Back up a volume twice, restore both points, compare.")
    parser.add_argument("--volume", type=Path, help="a volume of yours, which is only read; default: a sample is made")
    parser.add_argument("--mib", type=int, default=256, help="size of the sample volume (default: 256)")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/demo"), help="where all is kept (default: build/demo)"
    )
    arguments = parser.parse_args()
    try:
        folder = arguments.folder.absolute()
        if arguments.volume is None:
            find_tools()
            sample(fresh(folder), max(64, arguments.mib))
        else:
            check_volume(folder, arguments.volume)
            yours(fresh(folder), arguments.volume.absolute())
    except (Stop, OSError) as stop:
        print(f"demo: {stop}", file=sys.stderr)
        return 1
    return 0


def sample(folder: Path, mib: int) -> None:
    """Show it on a sample volume that changes between the backups."""
    say("Making a sample volume: an ext4 filesystem with the files of this Python in it ...")
    volume = folder / "volume.img"
    count = make_sample(folder, volume, mib)
    say(f"  {near(volume)}: {amount(mib * MIB)}, {count} files")
    demo = prepare(folder, volume)
    demo.backup()
    before = keep_aside(volume, folder / "volume-before-changes.img")
    say("\nChanging files in it: one written anew, one deleted, two added ...")
    change_sample(folder, volume)
    demo.backup()
    first = demo.restore(demo.backups[0]["point"], "restored-first.img", before)
    second = demo.restore("latest", "restored-second.img", volume)
    for image in (first, second):
        run("e2fsck", "-fn", str(image), why="the restored filesystem is not sound")
    say("  both filesystems pass e2fsck")
    summary(demo, "Both points were restored and compared: every byte is as it was, and both filesystems are sound.")


def yours(folder: Path, volume: Path) -> None:
    """Show it on a volume of the user's, which is only read."""
    demo = prepare(folder, volume)
    free = shutil.disk_usage(folder).free
    if free < 4 * demo.size:
        raise Stop(f"{folder} has {amount(free)} free; vault, cache and two restores may take {amount(4 * demo.size)}")
    say(
        f"Your volume {volume} ({amount(demo.size)}) is only read."
        " It must not be written to meanwhile: no snapshot is made."
    )
    demo.backup()
    demo.backup()
    demo.restore(demo.backups[0]["point"], "restored-first.img", volume)
    demo.restore("latest", "restored-second.img", volume)
    summary(demo, "Both points were restored and compared with your volume: every byte is as it is there.")


def check_volume(folder: Path, volume: Path) -> None:
    """Refuse what is no volume, and what lies where everything is about to be removed."""
    if not (volume.is_file() or volume.is_block_device()):
        raise Stop(f"{volume} is no image file and no block device")
    if volume.resolve().is_relative_to(folder.resolve()):
        raise Stop(f"{volume} lies in {folder}, which is made anew: move it elsewhere, or name another --folder")
    try:
        volume.open("rb").close()
    except OSError as error:
        raise Stop(f"{volume} cannot be read: {error.strerror}") from None


def prepare(folder: Path, volume: Path) -> Demo:
    """Write the configuration and found vault and cache."""
    config = CONFIG.format(volume=json.dumps(str(volume)), vault=json.dumps((folder / "vault").as_uri()))
    (folder / "forebay.toml").write_text(config, encoding="utf-8")
    with volume.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    demo = Demo(folder, volume, size)
    demo.forebay("init", "--generate", "--passphrase-file", near(folder / "passphrase"))
    say(f"  vault and cache are founded; the passphrase, needed for restores only, is in {near(folder / 'passphrase')}")
    return demo


def summary(demo: Demo, verdict: str) -> None:
    """Tell a newcomer what happened, in plain words and figures."""
    first, second = demo.backups
    sent, plain = first["vault_bytes"] + second["vault_bytes"], first["read_bytes"] + second["read_bytes"]
    folder = demo.folder
    rows = [
        ("What was read", ""),
        ("  first backup", f"{amount(first['read_bytes'])} of {amount(demo.size)}: empty parts need no reading"),
        ("  second backup", f"{amount(second['read_bytes'])}, to find {blocks(second['changed'])} that had changed"),
        ("What went where", ""),
        ("  to the vault", f"{amount(first['vault_bytes'])}, then {amount(second['vault_bytes'])}"),
        ("  to the cache", f"{amount(first['cache_bytes'])}, then {amount(second['cache_bytes'])}"),
        ("", "all of it compressed and encrypted; each volume was read once for both"),
        ("What was saved", ""),
        ("  two plain copies", f"{amount(plain)}, empty parts left out"),
        ("  the vault took", f"{amount(sent)}, that is {sent / max(1, plain):.0%} of it"),
        ("  the second point", f"{second['vault_bytes'] / max(1, second['read_bytes']):.1%} of a plain copy"),
        ("Where it lies", ""),
        ("  the vault", f"{near(folder / 'vault')} ({amount(stored(folder / 'vault'))} with all it needs to know)"),
        ("  the cache", f"{near(folder / 'cache')} ({amount(stored(folder / 'cache'))})"),
        (
            "  local state",
            f"{near(folder / 'state')} ({amount(stored(folder / 'state'))}, can be rebuilt but for the identity)",
        ),
    ]
    say("\n" + "=" * 78)
    for name, text in rows:
        say(f"{name:<19}{text}".rstrip())
    say("=" * 78)
    say(f"{verdict}\n{time.monotonic() - demo.began:.0f} s in all. Look around:")
    say(f"  export FOREBAY_CONFIG={near(folder / 'forebay.toml')}; .venv/bin/forebay points")


def make_sample(folder: Path, volume: Path, mib: int) -> int:
    """Make an ext4 image of `mib` MiB, filled to about half with real files; return how many files."""
    root = folder / "files"
    left = mib * MIB // 2
    count = 0
    for path in library_files():
        size = path.stat().st_size
        if size > left:
            continue
        target = root / path.relative_to(Path(sysconfig.get_path("stdlib")))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        left -= size + 4096
        count += 1
        if left < 64 * 1024:
            break
    # A large sample (--mib) is filled up with what does not compress.
    for number in range(left // FILLER_BYTES):
        (root / f"filler-{number}.bin").write_bytes(os.urandom(FILLER_BYTES))
        count += 1
    (root / "notes.txt").write_text("This line will change.\n", encoding="utf-8")
    run("mkfs.ext4", "-q", "-F", "-d", str(root), str(volume), f"{mib}M", why="the sample volume could not be made")
    return count + 1


def library_files() -> Iterable[Path]:
    """Return the files of Python's own library, in an order that is always the same."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*"))
    return (path for path in paths if path.is_file() and "site-packages" not in path.parts)


def change_sample(folder: Path, volume: Path) -> None:
    """Change files inside the image through its filesystem, without mounting it: no root is needed."""
    (folder / "notes.txt").write_text("This line has changed.\n", encoding="utf-8")
    (folder / "new.bin").write_bytes(os.urandom(2 * MIB))
    commands = folder / "changes.debugfs"
    lines = (
        "rm notes.txt",
        f"write {folder / 'notes.txt'} notes.txt",
        "rm this.py",
        f"write {folder / 'new.bin'} new.bin",
        "mkdir added",
        f"write {folder / 'notes.txt'} added/notes.txt",
    )
    commands.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("debugfs", "-w", "-f", str(commands), str(volume), why="the sample volume could not be changed")
    run("e2fsck", "-fn", str(volume), why="the changed sample volume is not sound")


def keep_aside(volume: Path, copy: Path) -> Path:
    """Copy the volume, to compare with later; holes stay holes."""
    run("cp", "--sparse=always", "--reflink=auto", str(volume), str(copy), why="the volume could not be copied")
    return copy


def first_difference(left: Path, right: Path, size: int) -> int | None:
    """Return the first byte at which the first `size` bytes differ, or None."""
    with left.open("rb") as one, right.open("rb") as other:
        for offset in range(0, size, STEP_BYTES):
            a, b = one.read(min(STEP_BYTES, size - offset)), other.read(min(STEP_BYTES, size - offset))
            if a != b:
                same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                return offset + same
        return size if one.read(1) else None


def fresh(folder: Path) -> Path:
    """Make the folder anew; only a folder that an earlier demonstration made is removed."""
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise Stop(f"{folder} is not empty and was not made by this demonstration: name another with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def find_tools() -> None:
    """Make the programs for ext4 findable; users' paths often lack the folders they are in."""
    os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))
    lacking = [program for program in E2FS if shutil.which(program) is None]
    if lacking:
        raise Stop(
            f"{', '.join(lacking)} not found: install the package e2fsprogs, or use a volume of yours (VOLUME=path)"
        )


def run(*command: str, why: str) -> str:
    """Run a program quietly and return its output; stop with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Stop(f"{why}: {' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def stored(folder: Path) -> int:
    """Return the bytes that all files below `folder` really take."""
    return int(run("du", "-s", "-B1", str(folder), why="its size is not known").split()[0])


def near(path: Path) -> str:
    """Return the path as it is written from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def amount(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def blocks(count: int) -> str:
    """Return a number of blocks for people."""
    return f"{count} block{'' if count == 1 else 's'} of 64 KiB"


def say(text: str) -> None:
    """Tell it on stdout, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
