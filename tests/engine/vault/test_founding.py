from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

import anyio
import msgspec
import pytest

from engine.block import Bytes
from engine.errors import ConfigError, FormatTooNew, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.ports import ObjectInfo
from engine.vault.adoption import adopt_cache
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_enrolment
from engine.vault.formatobject import FormatObject, new_store
from engine.vault.founding import (
    Enrolment,
    check_name,
    check_pin,
    enrol,
)
from engine.vault.identity import Identity
from engine.vault.publishing import publish
from engine.vault.slots import found, open_slots, seal_slot
from tests.engine.vault.fakes_vault import (
    CHEAP,
    OTHER_PASSPHRASE,
    PASSPHRASE,
    certify,
    empty_cache,
    empty_vault,
    other_domain,
    run,
)
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore


def join(
    vault: MemoryStore | FaultyStore | Interrupted,
    name: str = "web-01",
    passphrase: str = PASSPHRASE,
    *,
    key_file: bytes | None = None,
    replace: bool = False,
    pinned: Identity | None = None,
    disk: Disk | None = None,
) -> Enrolment:
    disk = disk or Disk()

    async def main() -> Enrolment:
        return await enrol(
            vault,
            name,
            passphrase,
            key_file,
            CHEAP,
            FakeClock(),
            replace=replace,
            pinned=pinned,
            staged=disk.staged,
            stage=disk.stage,
        )

    return run(main)


class Disk:
    """Where a machine keeps its staged identity."""

    def __init__(self) -> None:
        self.staged: Identity | None = None

    async def stage(self, identity: Identity) -> None:
        self.staged = identity


class Stopped(StoreUnavailable):
    """The machine lost power."""


class Interrupted:
    """A store during whose n-th call, before or after it took effect, the machine stops for good."""

    def __init__(self, inner: MemoryStore, call: int, after: bool) -> None:
        self.inner, self.left, self.after = inner, call, after

    async def _step(self, call: Callable[[], Awaitable[bytes | int | None]]) -> bytes | int | None:
        self.left -= 1
        last = self.left == 0
        if self.left < 0 or (last and not self.after):
            raise Stopped
        try:
            return await call()
        finally:
            if last:
                raise Stopped

    async def put(self, name: str, data: Bytes) -> None:
        await self._step(lambda: self.inner.put(name, data))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await self._step(lambda: self.inner.get(name, offset, length))
        assert isinstance(data, bytes)
        return data

    async def stat(self, name: str) -> int:
        size = await self._step(lambda: self.inner.stat(name))
        assert isinstance(size, int)
        return size

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._step(self.inner.probe)
        async for info in self.inner.list(prefix, after):
            yield info

    async def delete(self, name: str) -> None:
        await self._step(lambda: self.inner.delete(name))

    async def probe(self) -> None:
        await self._step(self.inner.probe)

    async def flush(self) -> None:
        await self._step(self.inner.flush)


def names(vault: MemoryStore) -> list[str]:
    """Return the names of all systems of all domains that PASSPHRASE opens."""

    async def main() -> list[str]:
        found: list[str] = []
        for opened in await open_slots(vault, PASSPHRASE, None):
            certificates = await Certificates.load(vault, opened.domain, opened.vault_public)
            assert certificates.problems == []
            found += certificates.names(opened.keys).values()
        return sorted(found)

    return run(main)


def enrol_slot(vault: MemoryStore, passphrase: str = OTHER_PASSPHRASE) -> None:
    [opened] = run(lambda: open_slots(vault, PASSPHRASE, None))
    vault.objects.update([seal_slot(opened, "enrol", passphrase, CHEAP, None)])


def test_an_empty_vault_becomes_a_domain_with_one_slot_and_one_system() -> None:
    vault = empty_vault()
    made = join(vault)
    assert (made.founded, made.resumed, made.problems) == (True, False, [])
    assert sorted(name.split("/")[0] for name in vault.objects) == ["cert", "format", "key"]
    assert names(vault) == ["web-01"]
    identity = made.identity
    assert identity.certificate_number == 1
    assert identity.vault == vault.objects["format"][12:28]
    assert identity.cache is None
    assert vault.objects[identity.certificate_name] == identity.certificate
    assert [(name, vault.objects[name]) for name in vault.objects if name.startswith("key/")] == identity.slots


def test_another_system_joins_with_the_passphrase_and_shares_the_domain() -> None:
    vault = empty_vault()
    first, second = join(vault).identity, join(vault, "web-02")
    assert not second.founded
    assert second.identity.keys == first.keys
    assert second.identity.system != first.system
    assert second.identity.listing_key != first.listing_key
    assert second.identity.signing_private != first.signing_private
    assert names(vault) == ["web-01", "web-02"]


def test_an_enrol_slot_is_enough_to_join() -> None:
    vault = empty_vault()
    join(vault)
    enrol_slot(vault)
    second = join(vault, "web-02", OTHER_PASSPHRASE).identity
    assert names(vault) == ["web-01", "web-02"]
    assert second.system in run(lambda: check_enrolment(vault, second)).systems()
    assert len(second.slots) == 2


def test_a_wrong_passphrase_changes_nothing() -> None:
    vault = empty_vault()
    join(vault)
    before = dict(vault.objects)
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        join(vault, "web-02", "wrong horse entirely")
    assert vault.objects == before


def test_a_weak_passphrase_founds_nothing() -> None:
    vault = empty_vault()
    with pytest.raises(ConfigError, match="too weak"):
        join(vault, passphrase="hunter2")
    assert list(vault.objects) == ["format"]


def test_a_taken_name_is_refused_and_says_what_to_do() -> None:
    vault = empty_vault()
    first = join(vault).identity
    before = dict(vault.objects)
    with pytest.raises(ConfigError, match="--replace") as caught:
        join(vault)
    assert first.system.hex() in str(caught.value)
    assert "'web-01'" in str(caught.value)
    assert vault.objects == before


def test_names_are_the_same_in_every_unicode_form() -> None:
    vault = empty_vault()
    assert join(vault, "Bu\u0308ro").identity.name == "B\u00fcro"
    with pytest.raises(ConfigError, match="already has a system"):
        join(vault, "B\u00fcro")


@pytest.mark.parametrize("name", ["", "x" * 256, "two\nlines", "bell\a"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name must have"):
        check_name(name)


def test_replace_keeps_id_recovery_and_listing_key_and_certifies_a_new_signing_key() -> None:
    vault = empty_vault()
    old = join(vault).identity
    new = join(vault, replace=True).identity
    assert (new.system, new.listing_key, new.recovery_public) == (old.system, old.listing_key, old.recovery_public)
    assert new.signing_private != old.signing_private
    assert new.certificate_number == 2
    certificates = run(lambda: check_enrolment(vault, new))
    assert certificates.verify_number(new.system, 1, b"m", old.signer(b"m"))
    assert certificates.verify_number(new.system, 2, b"m", new.signer(b"m"))
    assert not certificates.verify_number(new.system, 2, b"m", old.signer(b"m"))
    assert names(vault) == ["web-01"]


def test_replace_needs_a_system_to_replace() -> None:
    with pytest.raises(ConfigError, match="vault is empty"):
        join(empty_vault(), replace=True)
    vault = empty_vault()
    join(vault)
    with pytest.raises(ConfigError, match="no system named 'web-02'"):
        join(vault, "web-02", replace=True)


def test_replace_needs_the_recovery_passphrase() -> None:
    vault = empty_vault()
    join(vault)
    enrol_slot(vault)
    before = dict(vault.objects)
    with pytest.raises(ConfigError, match="recovery passphrase"):
        join(vault, passphrase=OTHER_PASSPHRASE, replace=True)
    assert vault.objects == before


def test_replace_passes_over_a_number_that_a_damaged_object_holds() -> None:
    vault = empty_vault()
    old = join(vault).identity
    vault.objects[old.certificate_name[:-1] + "2"] = b"garbage"
    made = join(vault, replace=True)
    assert made.identity.certificate_number == 3
    assert len(made.problems) == 1
    assert "00000002" in made.problems[0]


def test_replace_gives_up_on_a_vault_full_of_garbage() -> None:
    vault = empty_vault()
    old = join(vault).identity
    for number in range(2, 40):
        vault.objects[f"{old.certificate_name[:-8]}{number:08x}"] = b"garbage"
    with pytest.raises(StoreCorrupt, match="remove them"):
        join(vault, replace=True)


@pytest.mark.parametrize("barrier", [False, True], ids=["durable puts", "flush"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("action", ["found", "join", "replace"])
def test_stopped_at_any_call_and_repeated_it_is_done_once(action: str, after: bool, barrier: bool) -> None:
    for call in range(1, 100):
        vault = MemoryStore(barrier)
        vault.objects["format"] = new_store("vault").encode()
        name = "web-01" if action == "found" else "web-02"
        if action != "found":
            join(vault)
        if action == "replace":
            join(vault, name)
        disk = Disk()
        try:
            join(Interrupted(vault, call, after), name, replace=action == "replace", disk=disk)
        except Stopped:
            vault.power_cut()
        else:
            assert call > 10
            break
        made = join(vault, name, replace=action == "replace", disk=disk)
        assert names(vault) == sorted({"web-01", name})
        assert sum(one.startswith("key/") for one in vault.objects) == 1
        assert made.identity.certificate_number == (2 if action == "replace" else 1)
        run(partial(check_enrolment, vault, made.identity))
    else:
        pytest.fail("it never ended")


def test_an_interrupted_replacement_is_finished_and_not_done_twice() -> None:
    vault, disk = empty_vault(), Disk()
    join(vault)
    faulty = FaultyStore(vault, FaultPlan().lose_acknowledgement("put", prefix="cert/"))
    with pytest.raises(StoreUnavailable):
        join(faulty, replace=True, disk=disk)
    made = join(vault, replace=True, disk=disk)
    assert made.resumed
    assert made.identity.certificate_number == 2


def test_what_was_staged_for_another_vault_name_or_domain_is_not_taken_up() -> None:
    disk = Disk()
    join(empty_vault(), disk=disk)
    vault = empty_vault()
    assert not join(vault, disk=Disk()).resumed
    stale = Disk()
    stale.staged = disk.staged
    assert not join(vault, "web-02", disk=stale).resumed
    assert names(vault) == ["web-01", "web-02"]


def test_what_was_staged_for_a_name_that_another_machine_took_meanwhile_is_refused() -> None:
    vault, disk = empty_vault(), Disk()
    join(vault, "web-02")
    with pytest.raises(StoreUnavailable):
        join(FaultyStore(vault, FaultPlan().fail("put", prefix="cert/")), disk=disk)
    join(vault)
    with pytest.raises(ConfigError, match="already has a system"):
        join(vault, disk=disk)


def together(*starts: Callable[[], Awaitable[Enrolment]]) -> list[Enrolment | BaseException]:
    """Run enrolments at the same time; return what each came to."""
    outcomes: list[Enrolment | BaseException] = []

    async def one(start: Callable[[], Awaitable[Enrolment]]) -> None:
        try:
            outcomes.append(await start())
        except (ConfigError, StoreCorrupt) as error:
            outcomes.append(error)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for start in starts:
                group.start_soon(one, start)

    run(main)
    return outcomes


def start(vault: MemoryStore, name: str) -> Callable[[], Awaitable[Enrolment]]:
    return lambda: enrol(vault, name, PASSPHRASE, None, CHEAP, FakeClock())


@pytest.mark.parametrize("machines", [2, 3])
def test_machines_that_take_one_name_at_once_never_both_get_it(machines: int) -> None:
    vault = empty_vault()
    join(vault, "first")
    outcomes = together(*[start(vault, "web-01")] * machines)
    won = [one for one in outcomes if isinstance(one, Enrolment)]
    assert len(won) <= 1
    assert names(vault) == ["first"] + ["web-01"] * len(won)
    for one in outcomes:
        assert isinstance(one, Enrolment) or "web-01" in str(one)
    if not won:
        join(vault)


def test_machines_that_found_at_once_never_make_two_domains() -> None:
    vault = empty_vault()
    outcomes = together(start(vault, "web-01"), start(vault, "web-02"))
    assert sum(one.startswith("key/") for one in vault.objects) <= 1
    for one in outcomes:
        assert isinstance(one, Enrolment) or "no key slots" in str(one)
    missing = {"web-01", "web-02"} - {one.identity.name for one in outcomes if isinstance(one, Enrolment)}
    for name in sorted(missing):
        join(vault, name)
    assert names(vault) == ["web-01", "web-02"]
    assert sum(one.startswith("key/") for one in vault.objects) == 1


def test_two_domains_share_a_vault_and_each_passphrase_joins_its_own() -> None:
    vault = empty_vault()
    ours = join(vault).identity
    vault.objects.update(other_domain().slots)
    theirs = join(vault, passphrase=OTHER_PASSPHRASE).identity  # the same name, in another domain
    assert theirs.domain == other_domain().domain != ours.domain
    assert names(vault) == ["web-01"]
    assert len(theirs.slots) == 1
    run(lambda: check_enrolment(vault, ours))
    run(lambda: check_enrolment(vault, theirs))


def test_a_passphrase_that_opens_two_domains_joins_the_one_that_has_the_name_or_the_most_systems() -> None:
    vault = empty_vault()
    big = join(vault).identity
    join(vault, "web-02")
    small, slot = found(PASSPHRASE, CHEAP, None)
    vault.objects.update([slot])
    certificate = certify(small, name="db-01")
    vault.objects[certificate.object_name] = certificate.data
    assert join(vault, "web-03").identity.domain == big.domain
    assert join(vault, "db-01", replace=True).identity.domain == small.domain
    with pytest.raises(ConfigError, match="already has a system"):
        join(vault, "db-01")


def test_damaged_slots_and_certificates_are_reported_and_do_not_stop_a_join() -> None:
    vault = empty_vault()
    old = join(vault).identity
    vault.objects[old.certificate_name] = old.certificate[:-1]
    vault.objects[old.slots[0][0][:-4] + "0000"] = b"garbage"
    made = join(vault, "web-02")
    assert len(made.problems) == 2
    assert "00000001" in " ".join(made.problems)


@pytest.mark.parametrize("flag", ["flags_read", "flags_write"])
def test_a_newer_vault_is_left_alone(flag: str) -> None:
    vault = MemoryStore()
    vault.objects["format"] = FormatObject("vault", bytes(16), **{flag: 2}).encode()
    with pytest.raises(FormatTooNew):
        join(vault)
    assert list(vault.objects) == ["format"]


def test_a_vault_without_marker_is_away() -> None:
    with pytest.raises(StoreUnavailable, match="mount it"):
        join(MemoryStore())


def test_a_read_only_vault_is_refused_before_anything_local_is_written() -> None:
    disk = Disk()
    plan = FaultPlan().fail("put", 1, 9, error=lambda: StoreRejected("read-only"))
    with pytest.raises(StoreRejected):
        join(FaultyStore(empty_vault(), plan), disk=disk)
    assert disk.staged is None


def test_the_machine_refuses_a_vault_that_is_not_its_own() -> None:
    ours = join(empty_vault()).identity
    vault = empty_vault()
    join(vault)
    with pytest.raises(ConfigError, match="check the url"):
        join(vault, replace=True, pinned=ours)


def forged_slots(vault: MemoryStore, identity: Identity) -> None:
    """Put slots of another maker, under the same passphrase and the same domain id, in the place of the real ones."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = other_domain()
    assert made.vault_private is not None
    vault_key = Ed25519PrivateKey.from_private_bytes(made.vault_private)
    certificate = vault_key.sign(b"forebay enrol v1\0" + identity.domain + made.enrol_public)
    fake = replace(made, domain=identity.domain, enrol_certificate=certificate)
    for name in [name for name in vault.objects if name.startswith(("key/", "cert/"))]:
        del vault.objects[name]
    vault.objects.update([seal_slot(fake, "recovery", PASSPHRASE, CHEAP, None)])
    certified = certify(fake, system=identity.system)
    vault.objects[certified.object_name] = certified.data


def test_another_vault_key_than_the_pinned_one_is_noticed_with_and_without_passphrase() -> None:
    vault = empty_vault()
    identity = join(vault).identity
    forged_slots(vault, identity)
    with pytest.raises(ConfigError, match="another vault key than the pinned one"):
        run(lambda: check_enrolment(vault, identity))
    with pytest.raises(ConfigError, match="another vault key than the one"):
        join(vault, replace=True, pinned=identity)
    disk = Disk()
    disk.staged = identity
    with pytest.raises(ConfigError, match="another vault key than the one"):
        join(vault, disk=disk)
    with pytest.raises(StoreCorrupt, match="not what this machine was enrolled with"):
        run(lambda: publish(vault, identity))


def test_a_valid_certificate_of_another_key_under_ones_own_name_is_noticed() -> None:
    # Whoever holds an enrolment key and may overwrite objects can sign a number 1, also for a system that has one.
    vault = empty_vault()
    identity = join(vault).identity
    [opened] = run(lambda: open_slots(vault, PASSPHRASE, None))
    enroller = replace(opened, vault_private=None, recovery_private=None)
    intruder = certify(enroller, system=identity.system)
    vault.objects[intruder.object_name] = intruder.data
    with pytest.raises(ConfigError, match="do not back up to it"):
        run(lambda: check_enrolment(vault, identity))


def test_the_pin_holds_for_its_own_domain_only() -> None:
    identity = join(empty_vault()).identity
    check_pin(identity, other_domain())
    with pytest.raises(ConfigError, match="pinned"):
        check_pin(msgspec.structs.replace(identity, domain=other_domain().domain), other_domain())


def test_a_certificate_that_vanished_is_named_and_put_back_by_init() -> None:
    vault = empty_vault()
    identity = join(vault).identity
    del vault.objects[identity.certificate_name]
    with pytest.raises(ConfigError, match="does not have the certificate"):
        run(lambda: check_enrolment(vault, identity))
    run(lambda: publish(vault, identity))
    run(lambda: check_enrolment(vault, identity))


def test_a_slot_that_was_removed_on_purpose_does_not_come_back_into_the_vault() -> None:
    vault = empty_vault()
    [kept] = join(vault).identity.slots
    enrol_slot(vault)
    identity = join(vault, "web-02").identity
    [removed] = [name for name, _ in identity.slots if name != kept[0]]
    del vault.objects[removed]
    run(lambda: publish(vault, identity))
    assert removed not in vault.objects


def test_a_new_cache_gets_slots_and_all_certificates_of_this_system() -> None:
    vault, cache = empty_vault(), empty_cache()
    join(vault)
    identity = join(vault, replace=True).identity
    other = join(vault, "web-02").identity
    known = run(lambda: check_enrolment(vault, identity))
    adoption = run(lambda: adopt_cache(cache, identity, known))
    assert adoption.identity == msgspec.structs.replace(identity, cache=cache.objects["format"][12:28])
    assert adoption.foreign == 0
    assert {name for name in cache.objects if name.startswith("key/")} == {name for name, _ in identity.slots}
    assert sum(name.startswith("cert/") for name in cache.objects) == 2
    assert other.certificate_name not in cache.objects
    run(lambda: check_enrolment(cache, identity))


def test_a_cache_is_shared_by_systems_and_domains_and_says_so() -> None:
    vault, cache = empty_vault(), empty_cache()
    first, second = join(vault).identity, join(vault, "web-02").identity
    foreign = join(empty_vault()).identity
    for identity, others in ((first, 0), (second, 0), (foreign, 1), (first, 1)):
        adoption = run(partial(adopt_cache, cache, identity))
        assert adoption.foreign == others
    assert sum(name.startswith("cert/") for name in cache.objects) == 3


def test_a_vault_or_a_folder_without_marker_is_no_cache() -> None:
    identity = join(empty_vault()).identity
    with pytest.raises(StoreRejected, match="is a vault, not a cache"):
        run(lambda: adopt_cache(empty_vault(), identity))
    with pytest.raises(StoreUnavailable, match="mount it"):
        run(lambda: adopt_cache(MemoryStore(), identity))


def test_an_interrupted_adoption_is_finished_by_the_next() -> None:
    identity = join(empty_vault()).identity
    for call in range(1, 30):
        cache = empty_cache()
        try:
            run(partial(adopt_cache, Interrupted(cache, call, after=True), identity))
        except Stopped:
            run(partial(adopt_cache, cache, identity))
            assert len(cache.objects) == 3
        else:
            assert call > 5
            return
    pytest.fail("it never ended")
