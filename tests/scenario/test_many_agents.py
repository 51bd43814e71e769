"""Many agents at once on one vault in a bucket and one cache in a share, and some of them are killed."""

from __future__ import annotations

import secrets
import subprocess
import threading
from pathlib import Path

import pytest

from adapters.state import identity as files
from tests.s3stores import write_keys
from tests.samba import Samba
from tests.scenario.cheap import enrol
from tests.scenario.machine import Machine, random_volume
from tests.scenario.smbmachine import share_machine
from tests.servers import BUCKET, S3Server

pytestmark = [pytest.mark.root, pytest.mark.services]
AGENTS = 8


def agent_at(root: Path, samba: Samba, server: S3Server, prefix: str, volume: Path) -> Machine:
    """Return an enrolled agent that is called as its folder is."""
    agent = share_machine(root, samba, prefix, volume, name=root.name)
    keys = write_keys(root / "keys", server.access_key, server.secret_key)
    agent.urls["vault"] = f"s3://{BUCKET}/{prefix}"
    agent.extra["vault"] = f'endpoint_url = "{server.endpoint}"\ncredentials_file = "{keys}"'
    enrol(agent)
    return agent


def restores(agent: Machine, *arguments: str) -> None:
    target = agent.root / "restored.img"
    target.unlink(missing_ok=True)
    agent.restore("latest", "data", target, *arguments)
    assert target.read_bytes() == agent.volumes["data"].read_bytes()


def begin(agent: Machine) -> subprocess.Popen[str]:
    return subprocess.Popen(
        agent.command("backup", "--json"),
        env=agent.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_at_work(agent: Machine, running: subprocess.Popen[str]) -> None:
    """Kill an agent once it has put something into the cache, or is through."""
    assert agent.cache is not None
    writes = agent.cache / "data" / files.load(agent.state / "identity").system.hex()
    waiting = threading.Event()
    while running.poll() is None and not (writes.is_dir() and any(writes.iterdir())):
        waiting.wait(0.005)
    running.kill()


def test_many_agents_share_a_bucket_and_a_share_while_some_are_killed(
    samba: Samba, s3_server: S3Server, tmp_path: Path
) -> None:
    prefix = secrets.token_hex(6)
    common = random_volume(tmp_path / "common.img", 60).read_bytes()
    agents: list[Machine] = []
    for number in range(AGENTS):
        volume = random_volume(tmp_path / f"{number}.img", 40, seed=number + 10)
        with volume.open("ab") as out:
            out.write(common)
        agents.append(agent_at(tmp_path / f"agent-{number}", samba, s3_server, prefix, volume))
    running = [begin(agent) for agent in agents]
    for agent, victim in zip(agents[::3], running[::3], strict=True):
        kill_at_work(agent, victim)
    told = [process.communicate(timeout=240) for process in running]
    for number, process in enumerate(running):
        assert number % 3 == 0 or process.returncode == 0, told[number]
    again = [begin(agent) for agent in agents[::3]]
    assert [(process.communicate(timeout=240), process.returncode)[1] for process in again] == [0] * len(again)
    for number, agent in enumerate(agents):
        restores(agent, *(["--only-cache"] if number % 2 else []))
    # Once all were there, nobody sends what is common again.
    last = random_volume(tmp_path / "last.img", 1)
    last.write_bytes(common)
    late = agent_at(tmp_path / "late", samba, s3_server, prefix, last)
    report = late.backup()["volumes"]["data"]
    assert report["changed"] > 0
    assert (report["vault_blocks"], report["cache_blocks"]) == (0, 0)
    restores(late, "--only-cache")
