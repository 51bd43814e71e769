"""Who may read what: the identity its own points, the recovery passphrase everything of its domain, others nothing."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.block import BLOCK_BYTES
from engine.errors import ConfigError, StoreCorrupt, StoreUnavailable
from engine.names import certificate_name
from engine.recovery.access import by_identity, by_passphrase
from engine.recovery.catalogue import Catalogue
from engine.vault.slots import KdfCost, seal_slot
from tests.engine.recovery.build import PASSPHRASE, System, World, domain, find, open_access, restore

pytestmark = pytest.mark.anyio

CONTENT = b"\1" * BLOCK_BYTES


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_identity_lists_its_own_points_and_opens_no_block() -> None:
    world = World()
    system = world.system()
    world.system("db-02")
    point = await world.backup(system, {"data": CONTENT})
    places, problems = world.places()
    access = await by_identity(system.identity(world), places)
    own = access.only()
    assert own.name == "web-01"
    found = await find(places, own)
    assert found.id == point
    with pytest.raises(ConfigError, match="needs the recovery passphrase"):
        own.open_envelope(found.require_root(), found.volume("data").runs[0])
    with pytest.raises(ConfigError, match=r"there is no system 'db-02'; known are: web-01"):
        access.named("db-02")
    assert problems.listed() == []


async def test_the_passphrase_opens_every_system_by_name_or_id() -> None:
    world = World()
    web, database = world.system(), world.system("db-02")
    places, _ = world.places()
    access = await open_access(places)
    assert [one.name for one in access.systems] == ["db-02", "web-01"]
    assert access.named("db-02").system == database.id
    assert access.named(web.id.hex()).name == "web-01"
    with pytest.raises(ConfigError, match=r"there is no system 'nas'; known are: db-02, web-01"):
        access.named("nas")
    with pytest.raises(ConfigError, match=r"say which system is meant with --system NAME; known are: db-02, web-01"):
        access.only()


async def test_two_systems_of_one_name_are_told_apart_by_id() -> None:
    world = World()
    first, second = world.system(), world.system()
    places, _ = world.places()
    access = await open_access(places)
    with pytest.raises(ConfigError, match=r"several systems are called 'web-01'"):
        access.named("web-01")
    assert access.named(first.id.hex()).system == first.id
    assert access.named(second.id.hex()).system == second.id


async def test_a_wrong_passphrase_is_said_to_be_wrong() -> None:
    world = World()
    world.system()
    places, _ = world.places()
    with pytest.raises(ConfigError, match="the passphrase is wrong"):
        await by_passphrase("not the one", None, places)


async def test_a_pinned_vault_key_makes_another_domain_a_foreign_vault() -> None:
    world = World()
    world.system()
    places, _ = world.places()
    with pytest.raises(ConfigError, match="another domain's key slots"):
        await by_passphrase(PASSPHRASE, None, places, bytes(32))
    access = await by_passphrase(PASSPHRASE, None, places, world.opened.vault_public)
    assert access.only().name == "web-01"


async def test_an_enrol_slot_reads_nothing() -> None:
    world = World(cache=False)
    world.system()
    name, data = seal_slot(world.opened, "enrol", "a passphrase to enrol with", KdfCost.cheapest(), None)
    world.vault.objects.objects[name] = data
    places, _ = world.places()
    with pytest.raises(ConfigError, match="give the recovery passphrase"):
        await by_passphrase("a passphrase to enrol with", None, places)


async def test_two_domains_of_one_passphrase_are_both_read() -> None:
    world = World(cache=False)
    web = world.system()
    other, slot = domain(number=1)
    assert other.domain != world.opened.domain
    database = System("db-02", other)
    world.vault.objects.objects |= dict([slot, (database.certificate.object_name, database.certificate.data)])
    places, _ = world.places()
    access = await open_access(places)
    assert {one.system for one in access.systems} == {web.id, database.id}
    assert set(access.named("db-02").domains) == {other.domain}


async def test_what_is_damaged_in_the_vault_is_opened_from_the_cache_and_reported() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": CONTENT})
    for name in (world.slot[0], system.certificate.object_name):
        data = world.vault.objects.objects[name]
        world.vault.objects.objects[name] = data[:-1] + bytes([data[-1] ^ 1])
    done = await restore(world)
    assert done.content == CONTENT
    said = "\n".join(done.report.problems)
    assert f"object {world.slot[0]} is damaged" in said
    assert f"vault: object {system.certificate.object_name} is damaged" in said


async def test_the_cache_alone_opens_everything_with_the_vault_away() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": CONTENT})
    world.vault.objects.away = True
    places, _ = world.places()
    access = await open_access(places)
    assert (await find(places, access.only())).where == ["cache"]
    assert places.is_aside("vault")


async def test_with_no_place_there_the_vaults_reason_is_given() -> None:
    world = World()
    world.system()
    for side in world.sides:
        side.objects.away = True
    places, _ = world.places()

    async def nothing(place: object) -> None:
        return None

    with pytest.raises(StoreUnavailable, match="vault memory:vault is away: the memory store is away"):
        await places.open(nothing)


async def test_a_certificate_nobody_trusts_adds_no_system_and_is_named() -> None:
    world = World(cache=False)
    world.system()
    forger = System("web-01", domain(number=2)[0])
    name = certificate_name(world.opened.domain, forger.id, 1)
    world.vault.objects.objects[name] = forger.certificate.data
    places, problems = world.places()
    access = await open_access(places)
    assert access.named("web-01").system != forger.id
    assert any(name in problem for problem in problems.listed())


async def test_a_root_signed_by_someone_else_is_damaged() -> None:
    world = World(cache=False)
    system = world.system()
    await world.backup(system, {"data": CONTENT})
    system.signing = Ed25519PrivateKey.generate()
    point = await world.backup(system, {"data": CONTENT})
    places, _ = world.places()
    access = (await open_access(places)).only()
    catalogue = Catalogue(places)
    with pytest.raises(StoreCorrupt, match="its signature is not that of the system"):
        await catalogue.find(await catalogue.names(access), "latest", "data")
    assert str(point)


async def test_a_root_of_another_domain_does_not_open() -> None:
    world = World(cache=False)
    system = world.system()
    await world.backup(system, {"data": CONTENT})
    places, _ = world.places()
    access = (await open_access(places)).only()
    name, data = next(item for item in world.vault.objects.objects.items() if item[0].startswith("root/"))
    other = data[:16] + bytes(16) + data[32:]
    with pytest.raises(StoreCorrupt, match="belongs to domain 0000"):
        access.open_root(name, other)
