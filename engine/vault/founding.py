"""How a system gets into a domain: founding, joining, replacing (DESIGN.md §8, `init`).

Every step may be the last one the machine ever does, so each leaves something the next run understands: first the
slot (a vault with a slot and no system is joined like any other), then the new identity is given to `stage`, then
its certificate is put. A staged identity whose certificate got through, or was never put, is taken up again; so
an interrupted run never finds its own name taken.

Stores have no locks. Whoever founds a domain or takes a name looks again after its put and steps back if it is not
alone: of two that meet, at least one sees the other, so that at most one stays.
"""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.errors import ConfigError, ObjectMissing, StoreCorrupt
from engine.names import certificate_name
from engine.ports import Clock, ObjectStore
from engine.stage import flush
from engine.subkeys import SECRET_BYTES
from engine.vault.certificate import NAME_BYTES_MAX, Certificates, issue
from engine.vault.formatobject import FormatObject, read_format
from engine.vault.identity import Identity
from engine.vault.passphrase import check_strength
from engine.vault.publishing import publish, slots_in
from engine.vault.slots import KdfCost, OpenedDomain, found, open_slots

Stage: TypeAlias = Callable[[Identity], Awaitable[None]]

_NUMBERS_TRIED_MAX: Final = 16


class Enrolment(msgspec.Struct, frozen=True):
    """What `enrol` did. `founded`: a domain was made; `resumed`: an interrupted enrolment was finished.

    `problems`: sentences about slots and certificates that are damaged or foreign.
    """

    identity: Identity
    founded: bool
    resumed: bool
    problems: list[str]


class _Joining(msgspec.Struct, frozen=True):
    """The domain a system is being enrolled in."""

    marker: FormatObject
    opened: OpenedDomain
    known: Certificates
    name: str
    taken: bytes | None  # the id of the system that has the name


async def enrol(
    vault: ObjectStore,
    name: str,
    passphrase: str,
    key_file: bytes | None,
    kdf: KdfCost,
    clock: Clock,
    *,
    replace: bool = False,
    pinned: Identity | None = None,
    staged: Identity | None = None,
    stage: Stage | None = None,
) -> Enrolment:
    """Found a domain in an empty vault, or join the one the passphrase opens, under the system name `name`.

    `vault` has its format object. `replace`: take over the system that has the name, keeping its id, recovery and
    listing key. `stage` makes the new identity durable before its certificate is put; `staged` is what it was
    given in an earlier run. `pinned`: an identity of this machine whose pinned vault key must still be there.

    Raises: ConfigError (wrong or weak passphrase, name taken, nothing to replace), StoreCorrupt, FormatTooNew,
    StoreUnavailable, StoreRejected.
    """
    name = check_name(name)
    marker = await read_format(vault, "vault", "write")
    if pinned is not None:
        check_vault(pinned, marker)
    founded = not await slots_in(vault) and await _found(vault, name, passphrase, key_file, kdf, replace)
    problems: list[str] = []
    domains = await open_slots(vault, passphrase, key_file, problems)
    joining = await _choose(vault, marker, domains, name)
    for identity in (pinned, staged):
        if identity is not None and identity.vault == marker.store:
            check_pin(identity, joining.opened)
    if staged is not None and _may_resume(staged, joining, replace):
        identity, resumed = staged, True
    else:
        identity, resumed = await _new_identity(vault, joining, clock.now_ms(), replace), False
        if stage is not None:
            await stage(identity)
    await publish(vault, identity)
    known = await _alone(vault, joining, identity)
    return Enrolment(identity, founded, resumed, problems + known.problems)


def check_vault(identity: Identity, marker: FormatObject) -> None:
    """Return if `marker` is that of the vault this system is enrolled in. Raises: ConfigError."""
    if marker.store != identity.vault:
        raise ConfigError(
            f"system {identity.name!r} is enrolled in vault {identity.vault.hex()}, but [vault] url leads to vault "
            f"{marker.store.hex()}: check the url; to enrol this machine there, move its identity file away and keep it"
        )


def check_pin(identity: Identity, opened: OpenedDomain) -> None:
    """Return if the slots of a domain hold the vault key this system pinned. Raises: ConfigError."""
    if identity.domain == opened.domain and identity.vault_public != opened.vault_public:
        raise ConfigError(
            f"the vault's key slots hold another vault key than the one system {identity.name!r} pinned when it was "
            "enrolled: the vault was replaced or forged; check [vault] url"
        )


def check_name(name: str) -> str:
    """Return a system's name in Unicode form NFC. Raises: ConfigError."""
    normal = unicodedata.normalize("NFC", name)
    if not 0 < len(normal.encode()) <= NAME_BYTES_MAX or not normal.isprintable():
        raise ConfigError(f"[system] name must have 1 to {NAME_BYTES_MAX} bytes and no control characters")
    return normal


def make_identity(
    opened: OpenedDomain,
    name: str,
    vault: bytes,
    now_ms: int,
    system: bytes,
    number: int,
    listing_key: bytes,
) -> Identity:
    """Return the identity of a system with a new signing key, and with certificate `number` for it.

    `vault` and `system` are 16 bytes, `listing_key` 32.
    """
    signing = Ed25519PrivateKey.generate()
    certificate = issue(
        opened,
        system=system,
        number=number,
        name=name,
        signing_public=signing.public_key().public_bytes_raw(),
        listing_key=listing_key,
        issued_ms=now_ms,
    )
    return Identity(
        system=system,
        name=name,
        domain=opened.domain,
        domain_secret=opened.domain_secret,
        signing_private=signing.private_bytes_raw(),
        listing_key=listing_key,
        recovery_public=opened.recovery_public,
        vault_public=opened.vault_public,
        certificate_number=number,
        certificate=certificate.data,
        slots=opened.slots,
        vault=vault,
    )


async def _found(
    vault: ObjectStore, name: str, passphrase: str, key_file: bytes | None, kdf: KdfCost, replace: bool
) -> bool:
    """Put the slot of a new domain; False if another machine founded one meanwhile and this one stepped back."""
    if replace:
        raise ConfigError(f"the vault is empty, there is no system {name!r} to replace: leave --replace out")
    check_strength(passphrase)
    _, (slot, data) = await anyio.to_thread.run_sync(found, passphrase, kdf, key_file)
    await vault.put(slot, data)
    await flush(vault)
    if await slots_in(vault) == [slot]:
        return True
    await vault.delete(slot)
    await flush(vault)
    return False


async def _choose(vault: ObjectStore, marker: FormatObject, domains: list[OpenedDomain], name: str) -> _Joining:
    """Return the domain to enrol in: one that has the name, else the most populated, else the one with least id."""
    choices: list[_Joining] = []
    for opened in domains:
        known = await Certificates.load(vault, opened.domain, opened.vault_public)
        named = sorted(system for system, other in known.names(opened.keys).items() if other == name)
        if len(named) > 1:
            listed = ", ".join(one.hex() for one in named)
            raise ConfigError(
                f"{len(named)} systems in the vault are named {name!r} ({listed}): choose another [system] name"
            )
        choices.append(_Joining(marker, opened, known, name, named[0] if named else None))
    return max(choices, key=lambda one: (one.taken is not None, len(one.known.systems())))


def _may_resume(staged: Identity, joining: _Joining, replace: bool) -> bool:
    """Tell if finishing the staged identity is what this run was asked for, and still possible."""
    here = (joining.marker.store, joining.opened.domain, joining.name)
    if (staged.vault, staged.domain, staged.name) != here or joining.taken not in (None, staged.system):
        return False
    published = joining.known.get(staged.system, staged.certificate_number)
    if published is not None:
        return published.data == staged.certificate
    newest = joining.known.newest(staged.system)
    if newest is None:
        return not replace and staged.certificate_number == 1
    return replace and staged.certificate_number > newest.number


async def _new_identity(vault: ObjectStore, joining: _Joining, now_ms: int, replace: bool) -> Identity:
    """Make keys and a certificate: for a new system, or (`replace`) a new signing key for the one with the name."""
    opened, taken = joining.opened, joining.taken
    if taken is None and replace:
        raise ConfigError(f"the vault has no system named {joining.name!r} to replace: leave --replace out")
    if taken is None:
        system, number, listing_key = secrets.token_bytes(16), 1, secrets.token_bytes(SECRET_BYTES)
    elif not replace:
        raise _taken(joining.name, taken)
    elif opened.recovery_private is None or opened.vault_private is None:
        raise ConfigError("--replace needs the recovery passphrase: this one may only enrol new systems")
    else:
        system, number = taken, await _free_number(vault, joining.known, taken)
        listing_key = joining.known.open_listing_key(taken, opened.recovery_private)
    return make_identity(opened, joining.name, joining.marker.store, now_ms, system, number, listing_key)


async def _free_number(vault: ObjectStore, known: Certificates, system: bytes) -> int:
    """Return the least number above the system's newest valid one that no object, not even a damaged one, has."""
    newest = known.newest(system)
    first = 1 if newest is None else newest.number + 1
    for number in range(first, first + _NUMBERS_TRIED_MAX):
        try:
            await vault.stat(certificate_name(known.domain, system, number))
        except ObjectMissing:
            return number
    raise StoreCorrupt(
        certificate_name(known.domain, system, first),
        f"it and the {_NUMBERS_TRIED_MAX - 1} after it are no valid certificates; remove them",
    )


async def _alone(vault: ObjectStore, joining: _Joining, identity: Identity) -> Certificates:
    """Return the certificates as they are now; step back if another machine took the same name meanwhile."""
    known = await joining.known.refresh(vault)
    names = known.names(joining.opened.keys)
    if not any(other == identity.name and system != identity.system for system, other in names.items()):
        return known
    await vault.delete(identity.certificate_name)
    await flush(vault)
    raise ConfigError(
        f"another machine took the name {identity.name!r} at the same moment: choose another [system] name and run "
        "'forebay init' again"
    )


def _taken(name: str, system: bytes) -> ConfigError:
    return ConfigError(
        f"the vault already has a system named {name!r} (id {system.hex()}): choose another [system] name, or give "
        "--replace if this machine takes its place"
    )
