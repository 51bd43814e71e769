"""Forebay as a peer of the bench: the hints it is given, and the scenarios of peers.py on a tiny volume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.config import parse_config
from deploy.bench import agent, peer
from deploy.bench.history import Machine, away, contiguous, latency, lived
from deploy.bench.meter import AccessWatch, Meter, Stop, load_peers
from tests.conftest import bench_scripts

ROOT = Path(__file__).parents[2]
SHARED = bench_scripts()
MIB = 1 << 20
PAGE = 4096


def tiny_volume(folder: Path) -> Path:
    """Make what gen.py would, small: 32 MiB, half of it zeros; a day of scattered pages and one in one piece."""
    rng = np.random.default_rng(7)
    folder.mkdir()
    pages = 32 * MIB // PAGE
    (folder / "base.img").write_bytes(rng.bytes(16 * MIB) + bytes(16 * MIB))
    np.save(folder / "datapages.npy", np.arange(pages // 2))
    for day, changed in (("a", np.sort(rng.choice(pages // 2, 80, replace=False))), ("c", np.arange(2001, 2301))):
        np.save(folder / f"day-{day}.pos.npy", changed.astype(np.int64))
        (folder / f"day-{day}.dat").write_bytes(rng.bytes(len(changed) * PAGE))
        runs = np.split(changed, np.flatnonzero(np.diff(changed) != 1) + 1)
        hints = [{"offset": int(run[0]) * PAGE, "length": len(run) * PAGE, "exists": "true"} for run in runs]
        (folder / f"day-{day}.hints.json").write_text(json.dumps(hints), encoding="utf-8")
    return folder


def test_hints_of_the_generator_become_a_hints_file(tmp_path: Path) -> None:
    (tmp_path / "day-a.hints.json").write_text(
        '[{"offset": 4096, "length": 8192, "exists": "true"}, {"offset": 65536, "length": 4096, "exists": "true"}]'
    )
    extents = agent.gen_hints(tmp_path / "day-a.hints.json")
    assert extents == [(4096, 8192), (65536, 4096)]
    agent.write_hints(tmp_path / "hints", "backup 2", "backup 1", extents)
    assert [json.loads(line) for line in (tmp_path / "hints").read_text(encoding="utf-8").splitlines()] == [
        {"generation": "backup 2", "since": "backup 1", "extents": 2},
        {"offset": 4096, "length": 8192},
        {"offset": 65536, "length": 4096},
    ]
    assert list(tmp_path.glob("hints*")) == [tmp_path / "hints"]


@pytest.mark.parametrize("name", peer.PEERS)
def test_each_peer_writes_a_configuration_that_is_one(name: str, tmp_path: Path) -> None:
    made = peer.PEERS[name](str(tmp_path), str(tmp_path))
    made.prepare()
    text = Path(made.environ()["FOREBAY_CONFIG"]).read_text(encoding="utf-8")
    config = parse_config(text, tmp_path / "forebay.toml")
    assert config.volumes[0].path == tmp_path / "vol.img"
    assert config.vault.compression == ("zstd" if name == "forebay-zstd" else "lz4")
    assert (config.active_cache is not None) == (name == "forebay-lz4-cache")
    assert (config.volumes[0].hints is not None) == (name == "forebay-lz4-hints")


def test_hints_count_from_backup_to_backup(tmp_path: Path) -> None:
    data = tiny_volume(tmp_path / "data")
    made = peer.ForebayHints(str(tmp_path), str(data))
    made.prepare()
    heads = []
    for made.n, made.day in ((1, None), (2, None), (3, "a")):
        made.backup()
        heads.append(json.loads(made.site.hints.read_text(encoding="utf-8").splitlines()[0]))
    assert heads[:2] == [
        {"generation": "backup 1", "since": None, "extents": 0},
        {"generation": "backup 2", "since": "backup 1", "extents": 0},
    ]
    assert heads[2]["since"] == "backup 2"
    assert heads[2]["extents"] > 70


def test_commands_are_safe_in_the_shell_and_in_the_format_of_peers() -> None:
    command = peer.line(["/a folder/{x}/forebay", "restore"])
    assert command.format(x="wrong") == "'/a folder/{x}/forebay' restore"


def rows_of(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Run peers.py with our plugin and yield its rows."""
    done = subprocess.run(
        [sys.executable, str(SHARED / "peers.py"), "--plugin", str(peer.__file__), "--quiet-wait", "0", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=240,
    )
    yield from map(json.loads, done.stdout.splitlines())


@pytest.mark.bench_scripts
def test_the_scenarios_of_peers_run_and_restore_the_same_bytes(tmp_path: Path) -> None:
    data, work = tiny_volume(tmp_path / "data"), tmp_path / "work"
    peers = "forebay-lz4-hints,forebay-lz4-cache"
    steps = "full,nochange,a,c,restore,check"
    rows = list(rows_of(["--data", str(data), "--work", str(work), "--peer", peers, "--steps", steps]))
    assert [row["step"] for row in rows] == ["full", "nochange", "a", "c", "restore"] * 2, rows
    assert not any("rc" in row for row in rows)
    assert all(row["same"] for row in rows if row["step"] == "restore")
    # The hints are believed: of every backup but the first.
    log = (work / "log-forebay-lz4-hints.txt").read_text(encoding="utf-8")
    assert (log.count("by hints"), log.count("everything was compared")) == (3, 1)
    for row in rows:
        if row["step"] == "full":
            assert 16 * MIB < row["added"] < 17 * MIB
        elif row["step"] == "c":
            assert 300 * PAGE < row["added"] < 2 * 300 * PAGE


@pytest.mark.bench_scripts
def test_the_history_of_a_machine_is_measured_day_by_day(tmp_path: Path) -> None:
    data = tiny_volume(tmp_path / "data")
    meter = Meter(load_peers(SHARED), tmp_path / "log", 0)
    with Machine(meter, tmp_path / "machine", base=data / "base.img") as machine:
        rows = list(lived(machine, data, 2, 1))
        assert [row["step"] for row in rows] == ["full", "backup", "backup", "restore-first", "restore-latest"]
        assert all(row["same"] for row in rows[3:])
        assert {row["changed"] for row in rows[1:3]} == {81 * PAGE}
        assert all(row["added"] > row["changed"] for row in rows[1:3])
        assert {row["step"] for row in latency(machine, 1)} == {"status", "reading"}
        pieces = list(contiguous(machine, 1))
        assert [row["step"] for row in pieces] == ["compare", "hints"]
        assert all(row["added"] > row["changed"] == 81 * PAGE for row in pieces)
        absent = list(away(machine, 1))
        assert [row["step"] for row in absent] == ["vault", "spool", "copy", "upload", "restore"]
        assert absent[-1]["same"]
    assert not (tmp_path / "machine").exists()


@pytest.mark.bench_scripts
def test_a_command_that_fails_ends_the_work_and_names_the_log(tmp_path: Path) -> None:
    meter = Meter(load_peers(SHARED), tmp_path / "log", 0)
    with pytest.raises(Stop, match=r"^false ended with exit code 1: see .*log$"):
        meter.run(["false"], {}, tmp_path)
    (tmp_path / "volume").write_bytes(b"x")
    with pytest.raises(Stop, match="read nothing of"):
        meter.until_read(["false"], {}, tmp_path / "volume")


def test_without_the_scripts_it_says_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="SHARED="):
        load_peers(tmp_path)


def test_the_first_read_of_a_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "volume"
    file.write_bytes(b"content")
    with AccessWatch(file) as watch:
        with subprocess.Popen(["true"]) as other:
            assert not watch.wait(other.pid)
        os.close(os.open(file, os.O_RDONLY))
        with subprocess.Popen(["true"]) as other:
            assert not watch.wait(other.pid)
        file.read_bytes()
        assert watch.wait(os.getpid())
