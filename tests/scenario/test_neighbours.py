"""Several systems on one vault and one cache: friends at the same time, and one that lies."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from adapters.state.directory import StateDirectory
from engine.acks import PackAck, decode_log
from engine.names import FragmentName, PackName, PointId, certificate_name
from engine.root import RootBody, seal_root
from engine.vault import hpke
from tests.scenario.cheap import enrol
from tests.scenario.inprocess import backup, newest_root
from tests.scenario.machine import BLOCK, Machine, finish, overwrite, random_volume
from tests.scenario.mallory import Mallory, blocks_of, copies, hooked_backup, identity_of, packs_in
from tests.scenario.recover import Recoverer

NAMES = ("web-01", "db-02", "ci-03", "nas-04")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four systems enrolled in one vault and one cache: what takes long is done once."""
    root = tmp_path_factory.mktemp("template")
    for name in NAMES:
        (root / f"{name}.img").touch()
        enrol(machine_of(root, name, cache=True))
    return root


def machine_of(root: Path, name: str, *, cache: bool) -> Machine:
    return Machine(root / name, root / "vault", root / "cache" if cache else None, name, {"data": root / f"{name}.img"})


Enrolled = Callable[..., list[Machine]]


@pytest.fixture
def enrolled(template: Path, tmp_path: Path) -> Enrolled:
    """Return what gives the first so many systems, with volumes of their own, in one vault and perhaps one cache."""

    def make(count: int, *, cache: bool = True) -> list[Machine]:
        shutil.copytree(template, tmp_path / "world")
        machines = [machine_of(tmp_path / "world", name, cache=cache) for name in NAMES[:count]]
        for machine in machines:
            machine.write_config()
        return machines

    return make


def start(machine: Machine) -> subprocess.Popen[str]:
    machine.write_config()
    return subprocess.Popen(
        machine.command("backup", "--json"),
        env=machine.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], expect: int | None = 0) -> dict[str, object]:
    out, err = process.communicate(timeout=120)
    document = finish(subprocess.CompletedProcess([], process.returncode, out, err), expect).document
    assert document is None or isinstance(document, dict)
    return document or {}


def content_of(machine: Machine) -> bytes:
    return machine.volumes["data"].read_bytes()


def lay_out(machine: Machine, shared: bytes, seed: int, blocks: int = 40) -> None:
    """Give a machine a volume of the shared blocks and some of its own."""
    own = np.random.default_rng(seed).bytes(blocks * BLOCK)
    machine.volumes["data"].write_bytes(shared + own)


def block_ids(machine: Machine, content: bytes) -> set[bytes]:
    mallory = Mallory(identity_of(machine), machine.vault)
    return {mallory.id_of(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)}


def acknowledged_packs(machine: Machine) -> list[PackAck]:
    """Return the packs in the vault that local state knows of and no fragment lists yet."""
    store = (machine.vault / "format").read_bytes()[12:28]
    with StateDirectory.open(machine.state, lock=False) as state:
        durable, volatile = decode_log(state.acks(store).read())
    return durable + volatile


@pytest.mark.parametrize("count", [2, 4])
def test_systems_that_back_up_at_the_same_moment_share_what_was_there_before(enrolled: Enrolled, count: int) -> None:
    machines = enrolled(count)
    random = np.random.default_rng(1)
    base, news = random.bytes(60 * BLOCK), random.bytes(50 * BLOCK)
    lay_out(machines[0], base, 10)
    assert backup(machines[0]).problems == []
    kept: list[tuple[Machine, str, bytes]] = []
    for day in range(2):
        for number, machine in enumerate(machines):
            lay_out(machine, base + news, 100 * day + number)
        for machine, process in [(machine, start(machine)) for machine in machines]:
            report = ended(process)
            assert report["problems"] == []
            kept.append((machine, str(report["point"]), content_of(machine)))
    for machine, point, content in kept:
        recoverer = Recoverer.of(machine)
        recoverer.cache = None
        assert recoverer.restored(point) == content
        if machine is machines[-1]:
            assert Recoverer.of(machine, only_cache=True).restored(point) == content
    for store in (machines[0].vault, machines[0].cache):
        assert store is not None
        assert set(copies(store, block_ids(machines[0], base)).values()) == {1}
        assert set(copies(store, block_ids(machines[0], news)).values()) <= {*range(1, count + 1)}
        for number, machine in enumerate(machines):
            own = content_of(machine)[110 * BLOCK :]
            assert set(copies(store, block_ids(machine, own)).values()) == {1}, number


def test_one_of_four_that_is_killed_in_mid_run_costs_the_others_nothing(enrolled: Enrolled) -> None:
    machines = enrolled(4)
    shared = np.random.default_rng(2).bytes(40 * BLOCK)
    for number, machine in enumerate(machines):
        lay_out(machine, shared, number, 60 if number else 700)
    victim = machines[0]
    folder = victim.vault / "data" / identity_of(victim).system.hex()
    processes = [start(machine) for machine in machines]
    pause = threading.Event()
    for _ in range(6000):
        if (folder.is_dir() and any(folder.iterdir())) or processes[0].poll() is not None:
            break
        pause.wait(0.01)
    processes[0].kill()
    processes[0].communicate(timeout=60)
    assert processes[0].returncode == -9, "it ended before it could be killed"
    for machine, process in zip(machines[1:], processes[1:], strict=True):
        assert ended(process)["problems"] == []
        assert Recoverer.of(machine).restored() == content_of(machine)
    sent = packs_in(victim.vault, writer=identity_of(victim).system)
    acknowledged = {ident.tobytes() for ack in acknowledged_packs(victim) for ident in ack.ids}
    report = backup(victim)
    assert (report.exit_code, report.problems) == (0, [])
    assert Recoverer.of(victim).restored() == content_of(victim)
    assert {*sent} <= {*packs_in(victim.vault, writer=identity_of(victim).system)}
    own = block_ids(victim, content_of(victim)[40 * BLOCK :])
    counts = copies(victim.vault, own)
    assert min(counts.values()) == 1
    assert {counts[ident] for ident in own & acknowledged} <= {1}, "what was acknowledged was sent again"
    # Packs that were put and not yet written down as acknowledged: no more than are in flight at once.
    assert sum(count - 1 for count in counts.values()) <= 17 * (4 << 20) // BLOCK


@pytest.fixture
def pair(enrolled: Enrolled) -> tuple[Machine, Mallory]:
    """Return a victim whose vault it shares with an enrolled liar."""
    victim, liar = enrolled(2, cache=False)
    random_volume(victim.volumes["data"], 60, seed=5, tail=999)
    return victim, Mallory(identity_of(liar), victim.vault)


def no_such_pack(mallory: Mallory, blocks: list[bytes]) -> None:
    mallory.publish([mallory.claim(mallory.pack_name(blocks), blocks)])


def shorter_pack(mallory: Mallory, blocks: list[bytes]) -> None:
    name = mallory.pack_name(blocks)
    mallory.put(str(name), bytes(name.size - 1))
    mallory.publish([mallory.claim(name, blocks)])


def empty_pack(mallory: Mallory, blocks: list[bytes]) -> None:
    name = mallory.pack_name(blocks)
    mallory.put(str(name), b"")
    mallory.publish([mallory.claim(name, blocks)])


def garbage(mallory: Mallory, blocks: list[bytes]) -> None:
    name = mallory.pack_name(blocks)
    mallory.put(str(name), secrets.token_bytes(name.size))
    mallory.publish([mallory.claim(name, blocks)])


def records_of_other_blocks(mallory: Mallory, blocks: list[bytes]) -> None:
    pack = mallory.pack([secrets.token_bytes(1000) for _ in blocks])
    mallory.put(str(pack.name), bytes(pack.data))
    claimed = mallory.claim(pack.name, blocks)
    mallory.publish([type(claimed)(pack.name, claimed.ids, pack.offsets, pack.lengths)])


def records_under_other_ids(mallory: Mallory, blocks: list[bytes]) -> None:
    pack = mallory.pack([secrets.token_bytes(1000) for _ in blocks], blocks)
    mallory.put(str(pack.name), bytes(pack.data))
    claimed = mallory.claim(pack.name, blocks)
    mallory.publish([type(claimed)(pack.name, claimed.ids, pack.offsets, pack.lengths)])


LIES = [no_such_pack, shorter_pack, empty_pack, garbage, records_of_other_blocks, records_under_other_ids]


@pytest.mark.parametrize("lie", LIES)
def test_a_neighbour_that_offers_what_it_has_not_is_noticed_and_named(
    pair: tuple[Machine, Mallory], lie: Callable[[Mallory, list[bytes]], None]
) -> None:
    victim, mallory = pair
    blocks = blocks_of(victim.volumes["data"])
    lie(mallory, blocks)
    report = backup(victim)
    assert report.exit_code == 0
    assert [problem for problem in report.problems if mallory.identity.system.hex() in problem] == report.problems != []
    for folder in ("data", "index"):
        shutil.rmtree(victim.vault / folder / mallory.identity.system.hex(), ignore_errors=True)
    assert Recoverer.of(victim).restored() == content_of(victim)
    again = backup(victim)
    assert (again.exit_code, again.problems, again.volumes["data"].vault_blocks) == (0, [], 0)


@pytest.mark.parametrize("lie", LIES)
def test_who_shares_with_nobody_relies_on_nobody(
    pair: tuple[Machine, Mallory], lie: Callable[[Mallory, list[bytes]], None]
) -> None:
    victim, mallory = pair
    victim.extra["vault"] = 'share = "own"'
    blocks = blocks_of(victim.volumes["data"])
    lie(mallory, blocks)
    report = backup(victim)
    assert (report.exit_code, report.problems) == (0, [])
    assert report.volumes["data"].vault_blocks == len(blocks)
    assert Recoverer.of(victim).restored() == content_of(victim)


@pytest.mark.parametrize("known_bytes", [8, 32])
def test_a_foreign_pack_that_takes_the_place_of_an_own_one_is_not_relied_on(
    pair: tuple[Machine, Mallory], known_bytes: int
) -> None:
    victim, mallory = pair
    assert backup(victim).problems == []
    (own, *_) = packs_in(victim.vault, writer=identity_of(victim).system)
    known = PackName.parse(own.relative_to(victim.vault).as_posix())
    assert known is not None
    news = [secrets.token_bytes(BLOCK) for _ in range(5)]
    # A place names its pack by eight bytes of its hash: those of a pack the victim trusts, its own.
    digest = known.hash[:known_bytes] + secrets.token_bytes(32 - known_bytes)
    mallory.publish([mallory.claim(mallory.pack_name(news, digest), news)])
    for number, block in enumerate(news):
        overwrite(victim.volumes["data"], number, block)
    report = backup(victim)
    assert report.exit_code == 0
    shutil.rmtree(victim.vault / "index" / mallory.identity.system.hex())
    assert Recoverer.of(victim).restored() == content_of(victim)


def test_a_pack_of_a_bystander_under_a_liar_s_name_bars_no_bystander(enrolled: Enrolled) -> None:
    victim, liar, friend = enrolled(3, cache=False)
    random_volume(friend.volumes["data"], 30, seed=6)
    assert backup(friend).problems == []
    shutil.copyfile(friend.volumes["data"], victim.volumes["data"])
    news = [secrets.token_bytes(BLOCK) for _ in range(5)]
    with victim.volumes["data"].open("ab") as out:
        out.write(b"".join(news))
    mallory = Mallory(identity_of(liar), victim.vault)
    (pack, *_) = packs_in(victim.vault, writer=identity_of(friend).system)
    known = PackName.parse(pack.relative_to(victim.vault).as_posix())
    assert known is not None
    mallory.publish([mallory.claim(mallory.pack_name(news, known.hash[:8] + secrets.token_bytes(24)), news)])
    report = backup(victim)
    assert report.exit_code == 0
    assert not any(f"system {identity_of(friend).system.hex()} offers" in problem for problem in report.problems)
    assert Recoverer.of(victim).restored() == content_of(victim)


def test_a_liar_s_pack_of_the_same_key_never_gets_into_the_table_of_a_merged_run(enrolled: Enrolled) -> None:
    victim, liar, friend = enrolled(3, cache=False)
    lent = [secrets.token_bytes(BLOCK) for _ in range(20)]
    friend.volumes["data"].write_bytes(b"".join(lent))
    assert backup(friend).problems == []
    mallory = Mallory(identity_of(liar), victim.vault)
    lies = [secrets.token_bytes(100) for _ in range(200)]
    for day, block in enumerate(lent[:18]):
        with victim.volumes["data"].open("ab") as out:
            out.write(block)
        if day == 14:
            for pack in packs_in(victim.vault, writer=identity_of(friend).system):
                known = PackName.parse(pack.relative_to(victim.vault).as_posix())
                assert known is not None
                digest = known.hash[:8] + secrets.token_bytes(24)
                mallory.publish([mallory.claim(mallory.pack_name(lies, digest), lies)])
        report = backup(victim)
        assert (report.exit_code, report.problems) == (0, []), day
        assert report.volumes["data"].vault_blocks == (day >= 14), day
    (point,) = newest_root(victim).body.volumes
    assert len(point.runs) <= 16
    # What the point needs stands in its own tables: no index is asked.
    shutil.rmtree(victim.vault / "index")
    assert Recoverer.of(victim).restored() == content_of(victim)


def test_an_old_fragment_under_a_new_name_and_forged_ones_are_named_and_not_used(enrolled: Enrolled) -> None:
    victim, liar, friend = enrolled(3, cache=False)
    random_volume(friend.volumes["data"], 20, seed=7)
    random_volume(victim.volumes["data"], 20, seed=8)
    assert backup(friend).problems == []
    mallory = Mallory(identity_of(liar), victim.vault)
    (old,) = (victim.vault / "index" / identity_of(friend).system.hex()).iterdir()
    replayed = [
        str(FragmentName(writer, incarnation, sequence))
        for writer, incarnation, sequence in (
            (identity_of(friend).system, bytes.fromhex(old.name[:16]), 2),
            (identity_of(friend).system, bytes(8), 1),
            (mallory.identity.system, bytes(8), 1),
        )
    ]
    for name in replayed:
        mallory.put(name, old.read_bytes())
    blocks = blocks_of(victim.volumes["data"])
    claim = mallory.claim(mallory.pack_name(blocks), blocks)
    claimed = PackName("data", identity_of(victim).system, claim.name.hash, claim.name.size)
    forged = [
        mallory.publish([type(claim)(claimed, claim.ids, claim.offsets, claim.lengths)], identity_of(victim).system),
        mallory.publish([claim], identity_of(friend).system),
        mallory.publish([claim], secrets.token_bytes(16)),
    ]
    report = backup(victim)
    assert report.exit_code == 0
    for wrong in [*replayed, *forged[:2]]:
        assert any(wrong in problem for problem in report.problems), wrong
    assert report.volumes["data"].vault_blocks == len(blocks)
    for wrong in [*replayed, *forged]:
        (victim.vault / wrong).unlink()
    assert Recoverer.of(victim).restored() == content_of(victim)


def test_fragments_forged_with_the_last_number_there_is_do_not_stop_a_session(pair: tuple[Machine, Mallory]) -> None:
    victim, mallory = pair
    assert backup(victim).problems == []
    own = identity_of(victim).system
    (fragment,) = (victim.vault / "index" / own.hex()).iterdir()
    mallory.put(f"index/{own.hex()}/{fragment.name[:16]}-ffffffff", fragment.read_bytes())
    for number in range(5):
        overwrite(victim.volumes["data"], number, secrets.token_bytes(BLOCK))
    report = backup(victim)
    assert report.exit_code == 0
    assert any("-ffffffff" in problem for problem in report.problems)
    assert Recoverer.of(victim).restored() == content_of(victim)


@pytest.mark.parametrize("order", [1 << 61, (1 << 64) - 1])
def test_a_forged_root_is_named_and_stops_nothing(pair: tuple[Machine, Mallory], order: int) -> None:
    victim, mallory = pair
    own = identity_of(victim)
    first = backup(victim)
    point = PointId(order, secrets.token_bytes(8))
    forged = seal_root(
        RootBody(time=0, version="1", session=bytes(16)),
        domain=own.domain,
        system=own.system,
        point=point,
        recovery_key_id=hpke.key_id(own.recovery_public),
        certificate=1,
        listing_key=mallory.identity.listing_key,
        signer=mallory.identity.signer,
    )
    mallory.put(point.root(own.system), forged)
    refused = victim.restore("latest", "data", victim.root / "out", expect=1)
    assert point.root(own.system) in refused.stderr
    assert not (victim.root / "out").exists()
    listed = {row["id"]: row["state"] for row in victim.points()}
    assert listed == {str(first.point): "ok", str(point): "damaged"}
    overwrite(victim.volumes["data"], 3, secrets.token_bytes(BLOCK))
    report = backup(victim)
    assert report.exit_code == 0
    assert any(str(point) in problem for problem in report.problems)
    (victim.vault / point.root(own.system)).unlink()
    assert Recoverer.of(victim).restored() == content_of(victim)
    assert Recoverer.of(victim).restored(str(first.point)) != content_of(victim)


def test_a_forged_certificate_is_named_and_changes_nothing(pair: tuple[Machine, Mallory]) -> None:
    victim, mallory = pair
    own = identity_of(victim)
    name = certificate_name(own.domain, own.system, 2)
    mallory.put(name, mallory.identity.certificate)
    report = backup(victim)
    assert report.exit_code == 0
    assert any(name in problem for problem in report.problems)
    assert Recoverer.of(victim).restored() == content_of(victim)


@pytest.mark.parametrize("cut", [False, True])
def test_damage_to_a_pack_of_ours_never_gives_wrong_bytes(enrolled: Enrolled, tmp_path: Path, cut: bool) -> None:
    (victim,) = enrolled(1)
    random_volume(victim.volumes["data"], 40, seed=9)
    assert backup(victim).problems == []
    (pack, *_) = packs_in(victim.vault)
    size = pack.stat().st_size
    pack.write_bytes(secrets.token_bytes(size - 7 if cut else size))
    name = pack.relative_to(victim.vault).as_posix()
    assert Recoverer.of(victim).restored() == content_of(victim)
    assert victim.cache is not None
    shutil.rmtree(victim.cache)
    done = victim.restore(
        "latest", "data", tmp_path / "out", "--vault", f"file://{victim.vault}", "--system", "web-01", expect=1
    )
    assert any(name in problem for problem in done.document["problems"])
    holes = {block for first, count in done.document["holes"] for block in range(first, first + count)}
    content, restored = content_of(victim), (tmp_path / "out").read_bytes()
    for block in range(len(content) // BLOCK):
        at = slice(block * BLOCK, (block + 1) * BLOCK)
        assert restored[at] == (bytes(BLOCK) if block in holes else content[at])


def borrowing(enrolled: Enrolled) -> tuple[Machine, list[Path]]:
    """Return a system whose volume lies in the vault already, and the packs of its neighbour that hold it."""
    victim, friend = enrolled(2, cache=False)
    random_volume(friend.volumes["data"], 50, seed=10)
    assert backup(friend).problems == []
    shutil.copyfile(friend.volumes["data"], victim.volumes["data"])
    overwrite(victim.volumes["data"], 0, secrets.token_bytes(BLOCK))
    return victim, packs_in(victim.vault, writer=identity_of(friend).system)


@pytest.mark.parametrize("moment", ["data/", "page/"])
def test_a_foreign_pack_that_vanishes_before_the_commit_is_sent_again(enrolled: Enrolled, moment: str) -> None:
    victim, lent = borrowing(enrolled)

    async def vanish(name: str) -> None:
        if name.startswith(moment):
            for path in lent:
                path.unlink(missing_ok=True)

    report = hooked_backup(victim, before=vanish)
    assert report.exit_code == 0
    assert not any(path.exists() for path in lent)
    for path in lent:
        assert any(path.name in problem for problem in report.problems)
    assert Recoverer.of(victim).restored() == content_of(victim)
    again = backup(victim)
    assert (again.problems, again.volumes["data"].vault_blocks) == ([], 0)


def test_a_foreign_pack_that_vanishes_with_the_root_costs_a_second_root(enrolled: Enrolled) -> None:
    victim, lent = borrowing(enrolled)
    roots: list[str] = []

    async def vanish(name: str) -> None:
        if name.startswith("root/"):
            roots.append(name.rsplit("/", 1)[1])
            for path in lent:
                path.unlink(missing_ok=True)

    report = hooked_backup(victim, after=vanish)
    assert (report.exit_code, len(roots)) == (0, 2)
    assert report.point == roots[1]
    assert [row["id"] for row in victim.points()] == [roots[1]]
    assert {row["id"]: row["state"] for row in victim.points("--superseded")} == {
        roots[1]: "ok",
        roots[0]: "superseded",
    }
    assert Recoverer.of(victim).restored() == content_of(victim)
    again = backup(victim)
    assert (again.problems, again.volumes["data"].changed) == ([], 0)
    assert blake3(Recoverer.of(victim).restored()).digest() == blake3(content_of(victim)).digest()
