"""The places a recovery reads from: cache and vault, nearest first, each there or put aside with its reason.

A place that cannot be used does not end a recovery as long as another one can: its reason is kept as a problem
the user is shown. With none left, the first reason is the error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from engine.errors import (
    ForebayError,
    FormatTooNew,
    ObjectMissing,
    StoreCorrupt,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from engine.ports import ObjectInfo, ObjectStore
from engine.signed import OBJECT_BYTES_MAX

CACHE: Final = "cache"
SPOOL: Final = "spool"
VAULT: Final = "vault"
PROBLEMS_MAX: Final = 1000
_LISTED_MAX: Final = 5_000_000  # names under one prefix; more is an attack on memory, not a vault

T = TypeVar("T")


@dataclass(slots=True)
class Problems:
    """Sentences for the user, each once, in the order found; bounded, with the number of those left out."""

    sentences: dict[str, None] = field(default_factory=dict)
    left_out: int = 0

    def add(self, sentence: str) -> None:
        """Keep `sentence` unless it is known or there are too many."""
        if sentence in self.sentences:
            return
        if len(self.sentences) < PROBLEMS_MAX:
            self.sentences[sentence] = None
        else:
            self.left_out += 1

    def listed(self) -> list[str]:
        """Return the sentences; the last one tells how many were left out, if any."""
        more = [f"and {self.left_out} more problems of this kind"] if self.left_out else []
        return [*self.sentences, *more]


@dataclass(frozen=True, slots=True)
class Place:
    """One store to recover from: `name` "vault" or "cache", `where` its URL or path, for sentences."""

    name: str
    where: str
    objects: ObjectStore

    @property
    def title(self) -> str:
        """The words a sentence uses for this place."""
        return f"{self.name} {self.where}"


@dataclass(slots=True)
class Reading(Generic[T]):
    """What came of reading one object: its `value` and the `place` it opened in, or why it `failed`, per place."""

    value: T | None
    place: str | None = None
    failed: dict[str, StoreError] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """Return one sentence for every place where the object did not open."""
        return [f"{place}: {error}" for place, error in self.failed.items()]


Check = Callable[[Place], Awaitable[None]]


class Places:
    """The places that are there, nearest first, and why the others are not used."""

    def __init__(self, places: Sequence[Place], problems: Problems) -> None:
        self._places = list(places)
        self._aside: dict[str, StoreError] = {}
        self.problems = problems

    def usable(self) -> list[Place]:
        """Return the places not put aside, nearest first."""
        return [place for place in self._places if place.name not in self._aside]

    def get(self, name: str) -> Place | None:
        """Return the usable place called `name`, or None."""
        return next((place for place in self.usable() if place.name == name), None)

    def is_aside(self, name: str) -> bool:
        """Tell whether the place called `name` was configured and is not used."""
        return name in self._aside

    def put_aside(self, place: Place, error: StoreError) -> None:
        """Use `place` no more; `error` becomes a problem."""
        if place.name not in self._aside:
            self._aside[place.name] = error
            self.problems.add(f"{place.title} is not used: {error}")

    async def open(self, check: Check) -> None:
        """Probe every place and run `check` on it; put aside what fails.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt, FormatTooNew: no place is left; the vault's own reason.
        """
        for place in self.usable():
            try:
                await place.objects.probe()
                await check(place)
            except (StoreUnavailable, StoreRejected, StoreCorrupt, FormatTooNew, ObjectMissing) as error:
                self.put_aside(place, error)
        self.require()

    def require(self) -> None:
        """Raise the vault's reason, or else the cache's, if no place is left. Raises: StoreError."""
        if self.usable():
            return
        place = next((place for place in reversed(self._places) if place.name in self._aside), None)
        assert place is not None, "a recovery needs at least one place"
        error = self._aside[place.name]
        if isinstance(error, StoreUnavailable):
            raise StoreUnavailable(f"{place.title} is away: {error}") from error
        if isinstance(error, StoreRejected):
            raise StoreRejected(f"{place.title} cannot be used: {error}") from error
        if isinstance(error, StoreCorrupt):
            raise StoreCorrupt(error.name, f"{error.reason} ({place.title})") from error
        if isinstance(error, FormatTooNew):
            raise FormatTooNew(f"{place.title}: {error}") from error
        raise error

    async def listing(self, prefix: str) -> dict[str, list[ObjectInfo]]:
        """Return, per usable place, the objects under `prefix`; a place that fails is put aside.

        Raises: StoreError: no place is left.
        """
        found: dict[str, list[ObjectInfo]] = {}
        for place in self.usable():
            try:
                found[place.name] = await _listed(place, prefix)
            except (StoreUnavailable, StoreRejected) as error:
                self.put_aside(place, error)
        self.require()
        return found

    async def read(
        self, name: str, holders: Collection[str], open_it: Callable[[bytes], T], bytes_max: int = OBJECT_BYTES_MAX
    ) -> Reading[T]:
        """Return the object `name` opened by `open_it`, from the first of the places `holders` where it opens.

        The vault is asked first: it is what counts, the cache holds copies. `bytes_max`: what is larger is cut
        there, so that it does not open.
        """
        reading: Reading[T] = Reading(None)
        for place in [place for place in reversed(self.usable()) if place.name in holders]:
            try:
                reading.value = open_it(bytes(await place.objects.get(name, 0, bytes_max + 1)))
                reading.place = place.name
                break
            except (StoreCorrupt, ObjectMissing, FormatTooNew) as error:
                reading.failed[place.name] = error
            except (StoreUnavailable, StoreRejected) as error:
                reading.failed[place.name] = error
                self.put_aside(place, error)
        return reading


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error a group of a recovery's tasks stands for; what is no expected error comes first."""
    leaves: list[BaseException] = []
    groups: list[BaseExceptionGroup[BaseException]] = [group]
    while groups:
        for error in groups.pop().exceptions:
            if isinstance(error, BaseExceptionGroup):
                groups.append(error)
            else:
                leaves.append(error)
    return next((leaf for leaf in leaves if not isinstance(leaf, ForebayError)), leaves[0])


async def _listed(place: Place, prefix: str) -> list[ObjectInfo]:
    rows: list[ObjectInfo] = []
    async for row in place.objects.list(prefix):
        rows.append(row)
        if len(rows) > _LISTED_MAX:
            raise StoreRejected(f"{place.title} lists more than {_LISTED_MAX} objects under {prefix!r}")
    return rows
