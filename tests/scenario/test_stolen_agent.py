"""A stolen agent: what it holds opens the volume as it is now, and nothing of what it was (docs/SECURITY.md)."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from adapters.config import load_config
from adapters.state import identity as files
from adapters.stores.folder import FolderStore
from engine.block import BLOCK_BYTES, ID_BYTES, KEY_BYTES, PART_BYTES, REF_BYTES, ref_of
from engine.errors import ConfigError
from engine.page import PageAddress
from engine.recovery.access import SystemAccess, by_identity, by_passphrase
from engine.recovery.places import Place, Places, Problems
from engine.subkeys import record_keys
from engine.vault.identity import Identity
from tests.scenario.inprocess import backup, newest_root
from tests.scenario.machine import PASSPHRASE, Machine, overwrite, random_volume

OLD = b"what was here yesterday ".ljust(BLOCK_BYTES, b"o")
NEW = b"what is here today ".ljust(BLOCK_BYTES, b"n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    volume = random_volume(tmp_path / "vol.img", 100)
    overwrite(volume, 40, OLD)
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes={"data": volume})
    machine.init()
    assert backup(machine).exit_code == 0
    overwrite(volume, 40, NEW)
    assert backup(machine).exit_code == 0
    return machine


def held(machine: Machine) -> bytes:
    """Return all an agent has on its own disk."""
    return b"\0".join(path.read_bytes() for path in sorted(machine.state.rglob("*")) if path.is_file())


def identity_of(machine: Machine) -> Identity:
    return files.load(load_config(machine.config).system.identity_file)


def access_of(machine: Machine, passphrase: str | None) -> SystemAccess:
    places = Places([Place("vault", "vault", FolderStore(machine.vault, "test"))], Problems())

    async def main() -> SystemAccess:
        if passphrase is not None:
            return (await by_passphrase(passphrase, None, places)).only()
        return (await by_identity(identity_of(machine), places)).only()

    return anyio.run(main)


def test_keys_of_overwritten_blocks_are_gone_from_the_machine(machine: Machine) -> None:
    everything = held(machine)
    blocks = identity_of(machine).keys.blocks
    assert ref_of(blocks, NEW)[-KEY_BYTES:] in everything  # so the search finds what is there
    assert ref_of(blocks, OLD)[-KEY_BYTES:] not in everything


def test_of_a_block_that_changes_in_part_four_older_records_stay_readable_and_nothing_behind_them(
    machine: Machine,
) -> None:
    volume, chance = machine.volumes["data"], random.Random(5)
    keys = identity_of(machine).keys.blocks
    content = bytearray(chance.randbytes(BLOCK_BYTES))
    refs: list[bytes] = []
    for day in range(9):
        content[day * PART_BYTES : (day + 1) * PART_BYTES] = chance.randbytes(PART_BYTES)
        overwrite(volume, 40, bytes(content))
        refs.append(ref_of(keys, bytes(content)))
        assert backup(machine).volumes["data"].vault_deltas == (1 if day else 0)
    everything = held(machine)
    older = [record_keys(ref[ID_BYTES:]) for ref in refs[:-1]]
    assert not any(ref[ID_BYTES:] in everything for ref in refs[:-1])
    assert not any(links in everything for _, links in older), "no source leads to its own sources"
    assert sum(parts in everything for parts, _ in older) == 4
    overwrite(volume, 40, chance.randbytes(BLOCK_BYTES))
    assert backup(machine).exit_code == 0
    everything = held(machine)
    assert not any(key in everything for ref in refs for key in (ref[ID_BYTES:], *record_keys(ref[ID_BYTES:])))


@pytest.mark.parametrize("how", ["zero", "whole", "switched off"])
def test_keys_of_sources_go_with_the_block_that_needed_them(machine: Machine, how: str) -> None:
    volume, chance = machine.volumes["data"], random.Random(6)
    content = chance.randbytes(BLOCK_BYTES)
    source_key = record_keys(ref_of(identity_of(machine).keys.blocks, content)[ID_BYTES:])[0]
    for begin in (content[:100], b"changed".ljust(100)):
        overwrite(volume, 40, begin + content[100:])
        assert backup(machine).exit_code == 0
    assert source_key in held(machine)
    if how == "switched off":
        machine.extra["vault"] = "delta = false"
    else:
        overwrite(volume, 40, bytes(BLOCK_BYTES) if how == "zero" else chance.randbytes(BLOCK_BYTES))
    assert backup(machine).exit_code == 0
    assert source_key not in held(machine)


def test_no_key_tree_can_be_opened_with_what_the_agent_holds(machine: Machine) -> None:
    everything = held(machine)
    root = newest_root(machine)
    (volume,) = root.body.volumes
    assert len(volume.runs) == 2
    agent, owner = access_of(machine, None), access_of(machine, PASSPHRASE)
    for run in volume.runs:
        assert PageAddress.parse(run.id_tree).ref in everything  # what lists ids, it may open
        with pytest.raises(ConfigError, match="passphrase"):
            agent.open_envelope(root, run)
        key_tree = owner.open_envelope(root, run)
        assert key_tree[:REF_BYTES] not in everything
        assert key_tree[16:REF_BYTES] not in everything


def test_the_agent_restores_nothing_without_the_passphrase(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "out"
    done = machine.run("restore", "latest", "--volume", "data", "--to", str(target), expect=2)
    assert "passphrase" in done.stderr
    assert not target.exists()


def test_neither_passphrase_nor_secrets_are_printed_or_readable_by_others(machine: Machine, tmp_path: Path) -> None:
    secret = identity_of(machine)
    printed = ""
    for arguments in (["backup", "--verbose"], ["status"], ["points"], ["check-config"]):
        done = machine.run(*arguments)
        printed += done.stdout + done.stderr
    printed += machine.restore("latest", "data", tmp_path / "out", "--verbose").stderr
    assert PASSPHRASE not in printed
    for value in (secret.domain_secret, secret.signing_private, secret.listing_key):
        assert value.hex() not in printed
    for path in machine.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or machine.state.stat().st_mode & 0o077 == 0
    assert (machine.state / "identity").stat().st_mode & 0o777 == 0o600
