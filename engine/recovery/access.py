"""Who may read what: the keys of systems, from the agent's identity or from the recovery passphrase.

The identity opens its own system's roots and notes: it lists points and cannot open a block of them. The recovery
passphrase goes the whole way: slot → certificates → listing key of any system of the domain → roots → envelopes
(DESIGN.md §5, Keys). Slots and certificates lie in the vault and, as copies, in the cache: what is damaged or gone
in one place is taken from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from engine.errors import ConfigError, FormatTooNew, ObjectMissing, StoreCorrupt, StoreError
from engine.note import Note, open_note
from engine.recovery.places import Places
from engine.report import Report, open_report, report_header
from engine.root import Root, RunDescriptor, open_root, root_header
from engine.runs import envelope_info, key_address
from engine.subkeys import DomainKeys
from engine.vault import hpke
from engine.vault.certificate import CERTIFICATE_BYTES_MAX, Certificates, parse_certificate_object
from engine.vault.identity import Identity
from engine.vault.slots import OpenedDomain, open_slots

_CERTIFICATES_MAX: Final = 1000  # of one system
_NAMED_MAX: Final = 20  # systems named in one sentence


@dataclass(frozen=True, slots=True)
class DomainAccess:
    """What opens one system's objects in one domain; `recovery_private` (96 bytes) only with the passphrase."""

    keys: DomainKeys
    certificates: Certificates
    listing_key: bytes = field(repr=False)
    recovery_private: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class SystemAccess:
    """A system one may read: its 16-byte id, its name, and its keys per domain (it may have joined another one)."""

    system: bytes
    name: str
    domains: dict[bytes, DomainAccess]

    def open_root(self, name: str, data: bytes) -> Root:
        """Return the root in `data`, the object stored under `name`. Raises: StoreCorrupt, FormatTooNew."""
        access = self._domain(name, root_header(name, data).domain)
        return open_root(name, data, access.listing_key, access.certificates.verify_number)

    def open_report(self, name: str, data: bytes) -> Report:
        """Return the report in `data`, the object stored under `name`. Raises: StoreCorrupt, FormatTooNew."""
        access = self._domain(name, report_header(name, data).domain)
        return open_report(name, data, access.listing_key, access.certificates.verify_number)

    def open_note(self, name: str, data: bytes) -> Note:
        """Return the note in `data`, the object stored under `name`. Raises: StoreCorrupt, FormatTooNew."""
        # A note's header lies like a root's; which domain it names is part of what its signature covers.
        error: StoreCorrupt | None = None
        for access in self.domains.values():
            try:
                note = open_note(name, data, access.listing_key, access.certificates.verify_number)
            except StoreCorrupt as reason:
                error = error or reason
                continue
            if note.domain == access.keys.domain:
                return note
            error = StoreCorrupt(name, "it names another domain than the one its signature is of")
        raise error or StoreCorrupt(name, "it belongs to a domain that cannot be opened")

    def open_envelope(self, root: Root, run: RunDescriptor) -> bytes:
        """Return the address of a run's key tree (64 bytes), or none for a run that names nothing.

        Raises: StoreCorrupt naming the root; ConfigError without the recovery key.
        """
        name = root.point.root(self.system)
        access = self._domain(name, root.domain)
        if access.recovery_private is None:
            raise ConfigError("opening blocks needs the recovery passphrase: give --passphrase-file")
        if hpke.key_id(hpke.public_of(access.recovery_private)) != root.recovery_key_id:
            raise StoreCorrupt(name, "it is sealed to another recovery key than the passphrase opens")
        try:
            info = envelope_info(root.domain, self.system, run.run)
            opened = hpke.open(access.recovery_private, run.envelope, info)
        except ValueError as error:
            raise StoreCorrupt(name, f"the key envelope of a run does not open: {error}") from None
        return key_address(name, run, opened)

    def keys(self, root: Root) -> DomainKeys:
        """Return the subkeys of the domain a root belongs to."""
        return self._domain(root.point.root(self.system), root.domain).keys

    def certificates(self, root: Root) -> Certificates:
        """Return the certificates of the domain a root belongs to: the verifier of its packs and fragments."""
        return self._domain(root.point.root(self.system), root.domain).certificates

    def _domain(self, name: str, domain: bytes) -> DomainAccess:
        access = self.domains.get(domain)
        if access is None:
            raise StoreCorrupt(name, f"it belongs to domain {domain.hex()}, which these keys do not open")
        return access


class Access:
    """The systems one may read."""

    def __init__(self, systems: Iterable[SystemAccess], problems: Sequence[str] = ()) -> None:
        self.systems = sorted(systems, key=lambda one: (one.name, one.system))
        self._problems = list(problems)

    def named(self, name: str) -> SystemAccess:
        """Return the system called `name`, or whose id in hexadecimal it is. Raises: ConfigError."""
        found = [one for one in self.systems if name in (one.name, one.system.hex())]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(one.system.hex() for one in found)
            raise ConfigError(f"several systems are called {name!r}: give --system one of their ids: {ids}")
        raise ConfigError(f"there is no system {name!r}; {self._known()}")

    def only(self) -> SystemAccess:
        """Return the one system there is. Raises: ConfigError if there are more, or none."""
        if len(self.systems) == 1:
            return self.systems[0]
        raise ConfigError(f"say which system is meant with --system NAME; {self._known()}")

    def _known(self) -> str:
        # A certificate that cannot be read hides its system's name: whoever misses one must see why.
        why = "".join(f"; {problem}" for problem in self._problems[:3])
        if not self.systems:
            return "no system of this store can be opened" + why
        names = ", ".join(one.name for one in self.systems[:_NAMED_MAX])
        more = f" and {len(self.systems) - _NAMED_MAX} more" if len(self.systems) > _NAMED_MAX else ""
        return f"known are: {names}{more}{why}"


async def by_identity(identity: Identity, places: Places) -> Access:
    """Return what the agent's own identity opens: the points of its own system.

    Raises: StoreError if no place is left, StoreCorrupt for an identity that does not hold together.
    """
    held = {identity.certificate_name: identity.certified()}
    prefix = f"cert/{identity.domain.hex()}/{identity.system.hex()}-"
    listing = await places.listing(prefix)
    names = sorted({row.name for rows in listing.values() for row in rows} - held.keys())
    for name in names[-_CERTIFICATES_MAX:]:
        holders = [place for place, rows in listing.items() if any(row.name == name for row in rows)]
        parse = partial(parse_certificate_object, name, vault_public=identity.vault_public)
        reading = await places.read(name, holders, parse, CERTIFICATE_BYTES_MAX)
        if reading.value is not None:
            held[name] = reading.value
        for sentence in reading.sentences():
            places.problems.add(sentence)
    certificates = Certificates(identity.domain, identity.vault_public, held.values(), [])
    access = DomainAccess(identity.keys, certificates, identity.listing_key)
    return Access([SystemAccess(identity.system, identity.name, {identity.domain: access})])


async def by_passphrase(
    passphrase: str, key_file: bytes | None, places: Places, vault_public: bytes | None = None
) -> Access:
    """Return what the recovery passphrase opens: every system of its domains.

    `vault_public`: the vault key an identity has pinned (32 bytes); only its domain counts then.

    Raises: ConfigError for a wrong passphrase, one that opens only enrol slots, or a foreign vault; StoreCorrupt
    naming a damaged slot if nothing opens; StoreError if no place is left.
    """
    opened = await _open_domains(passphrase, key_file, places)
    if all(one.recovery_private is None for one in opened):
        raise ConfigError("this passphrase may enrol systems, but not read them: give the recovery passphrase")
    ours = [one for one in opened if one.recovery_private is not None and vault_public in (None, one.vault_public)]
    if not ours:
        raise ConfigError(
            "the passphrase opens another domain's key slots, not those of this system: check the configured vault"
        )
    problems: list[str] = []
    systems: dict[bytes, SystemAccess] = {}
    for domain in ours:
        certificates = await _certificates(domain, places, problems)
        _add_systems(systems, domain, certificates, problems)
    for problem in problems:
        places.problems.add(problem)
    return Access(systems.values(), problems)


async def _open_domains(passphrase: str, key_file: bytes | None, places: Places) -> list[OpenedDomain]:
    """Open the slots of the vault, or, where that fails, those of the cache: the vault's own are the newest."""
    first: ConfigError | StoreError | None = None
    for place in reversed(places.usable()):
        problems: list[str] = []
        try:
            opened = await open_slots(place.objects, passphrase, key_file, problems)
        except (ConfigError, StoreError) as error:
            # The passphrase may be right and only this place's slots damaged, or gone with their place.
            first = first or error
            if isinstance(error, StoreError) and not isinstance(error, StoreCorrupt | FormatTooNew | ObjectMissing):
                places.put_aside(place, error)
            continue
        for sentence in [*problems, *([str(first)] if isinstance(first, StoreCorrupt) else [])]:
            places.problems.add(f"{place.name}: {sentence}" if sentence in problems else sentence)
        return opened
    assert first is not None
    raise first


async def _certificates(domain: OpenedDomain, places: Places, problems: list[str]) -> Certificates:
    certificates = Certificates(domain.domain, domain.vault_public, [], [])
    damaged: dict[str, str] = {}
    for place in reversed(places.usable()):
        try:
            certificates = await certificates.refresh(place.objects)
        except StoreCorrupt as error:
            damaged[place.name] = str(error)
            continue
        except StoreError as error:
            places.put_aside(place, error)
            continue
        damaged |= {problem: f"{place.name}: {problem}" for problem in certificates.problems}
    places.require()
    problems.extend(damaged.values())
    return certificates


def _add_systems(
    systems: dict[bytes, SystemAccess], domain: OpenedDomain, certificates: Certificates, problems: list[str]
) -> None:
    """Add the systems of one domain whose certificates open with its recovery key."""
    assert domain.recovery_private is not None
    names = certificates.names(domain.keys)
    for system in certificates.systems():
        try:
            listing_key = certificates.open_listing_key(system, domain.recovery_private)
        except (StoreCorrupt, ObjectMissing) as error:
            problems.append(str(error))
            continue
        access = DomainAccess(domain.keys, certificates, listing_key, domain.recovery_private)
        known = systems.get(system)
        name = names.get(system) or (known.name if known else system.hex())
        others = known.domains if known else {}
        systems[system] = SystemAccess(system, name, {**others, domain.domain: access})
