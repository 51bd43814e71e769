"""What `points` and `restore` share: where they read from, and whose keys they read with.

With a configuration: its vault, spool and cache, this system's identity, and the passphrase where more than its own
points is wanted. With `--vault`, `--spool` or `--cache` instead: those places and the passphrase, nothing else; that is
how a machine is recovered on another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from adapters.cli import frame
from adapters.cli.keyfile import key_file_option, read_key_file
from engine.errors import ConfigError, StateCorrupt, StoreRejected

if TYPE_CHECKING:
    from adapters.config import Config
    from adapters.config import Place as StorePlace
    from engine.names import PointId
    from engine.recovery.access import Access
    from engine.recovery.places import Place, Places, Problems
    from engine.state import Newest
    from engine.vault.identity import Identity

T = TypeVar("T")

OWNER: Final = "recovery"  # stands in the names of temporary files, of which a reader makes none


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the options said."""

    vault: str | None
    cache: str | None
    spool: Path | None
    only_cache: bool = False
    passphrase_file: Path | None = None
    key_file: Path | None = None

    @property
    def detached(self) -> bool:
        """Whether places were named instead of a configuration."""
        return not (self.vault is None and self.cache is None and self.spool is None)


def place_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add --vault, --spool, --cache, --passphrase-file and --key-file to a command."""
    for option in (
        key_file_option,
        frame.passphrase_option,
        click.option(
            "--cache",
            metavar="PATH",
            help="Instead of --config: read from this cache, a folder or smb://server/share/folder.",
        ),
        click.option(
            "--spool",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="Instead of --config: read from this spool.",
        ),
        click.option(
            "--vault",
            metavar="URL|FILE.toml",
            help="Instead of --config: read from this vault, or the one of a file with a [vault] table.",
        ),
    ):
        function = option(function)
    return function


@dataclass(slots=True)
class Recovery:
    """Places that are there, and the keys to read them with."""

    places: Places
    problems: Problems
    access: Access
    identity: Identity | None = None
    newest: tuple[bytes, Newest] | None = None
    folders: tuple[Path, ...] = ()  # of the stores and local state: no place for what is restored


@dataclass(slots=True)
class Opener:
    """Opens the places of a request, then whatever keys are wanted."""

    context: frame.Context
    request: Request
    config: Config | None = field(init=False, default=None)
    identity: Identity | None = field(init=False, default=None)
    folders: list[Path] = field(init=False, default_factory=list)

    async def open(self, *, own: bool) -> Recovery:
        """Open places and keys; `own`: this system's own points are all that is wanted, its identity is enough.

        Raises: ConfigError, StoreError.
        """
        from engine.recovery.access import by_identity, by_passphrase
        from engine.recovery.places import Places, Problems

        if self.request.detached and self.context.config_file is not None:
            raise ConfigError(
                "give either --config, or --vault, --spool and --cache: they name different places to read from"
            )
        if not self.request.detached:
            self.config = self.context.config
        problems = Problems()
        self._load_identity(problems, required=own)
        places = Places(self._places(problems), problems)
        await places.open(self._check)
        if own:
            assert self.identity is not None
            access = await by_identity(self.identity, places)
        else:
            passphrase = frame.read_passphrase(self.request.passphrase_file).reveal()
            key_file = read_key_file(self.request.key_file)
            pinned = self.identity.vault_public if self.identity is not None else None
            access = await by_passphrase(passphrase, key_file, places, pinned)
        return Recovery(places, problems, access, self.identity, self._newest(problems), tuple(self.folders))

    def _load_identity(self, problems: Problems, *, required: bool) -> None:
        from adapters.state import identity as files

        if self.config is None:
            return
        try:
            self.identity = files.load(self.config.system.identity_file)
        except ConfigError as error:
            if required:
                raise
            if self.config.system.identity_file.exists():
                problems.add(str(error))

    def _places(self, problems: Problems) -> list[Place]:
        """Return the places, nearest first. Raises: ConfigError."""
        from adapters.config import load_cache, load_vault
        from engine.recovery.places import CACHE, SPOOL, VAULT

        cache = load_cache(self.request.cache).place if self.request.cache is not None else None
        spool, vault = self.request.spool, None
        if self.config is not None:
            cache = self.config.active_cache.place if self.config.active_cache is not None else None
            spool = self.config.spool.path if self.config.spool is not None else None
            vault = self.config.vault
            self.folders.append(self.config.system.state_dir)
        elif self.request.vault is not None:
            vault = load_vault(self.request.vault)
        known = (cache, spool, vault.place if vault is not None else None)
        self.folders += [place for place in known if isinstance(place, Path)]
        if self.identity is not None and self.identity.vault_pending:
            vault = None  # none was made yet
        if self.identity is not None and self.identity.spool is None and spool is not None:
            problems.add(f"the spool in {spool} is not adopted yet: run 'forebay init'")
            spool = None
        if self.request.only_cache:
            vault = None
            if cache is None and spool is None:
                raise ConfigError("--only-cache needs a cache or a spool: configure one, or give --cache PATH")
        places = [
            self._place(name, str(path), path, 15.0)
            for name, path in ((CACHE, cache), (SPOOL, spool))
            if path is not None
        ]
        if vault is not None:
            places.append(self._place(VAULT, vault.url, vault.place, vault.connect_timeout_s))
        if not places:
            raise ConfigError("there is no vault yet, and no spool or cache to read from: run 'forebay init'")
        return places

    @staticmethod
    def _place(name: str, where: str, place: StorePlace, connect_timeout_s: float) -> Place:
        from adapters.clock import SystemClock
        from adapters.openstore import open_store
        from engine.pipeline.retry import RetryingStore
        from engine.policy import RetryPolicy
        from engine.recovery.places import Place

        store = open_store(place, OWNER, connect_timeout_s=connect_timeout_s)
        return Place(name, where, RetryingStore(store, RetryPolicy(), SystemClock(), random.Random()))

    async def _check(self, place: Place) -> None:
        """Return if the store is one this version reads, and the one this system belongs to.

        Raises: StoreError.
        """
        from engine.recovery.places import CACHE, SPOOL, VAULT
        from engine.vault.formatobject import StoreKind, read_format

        kinds: dict[str, StoreKind] = {VAULT: "vault", SPOOL: "spool", CACHE: "cache"}
        found = await read_format(place.objects, kinds[place.name], "read")
        if self.identity is None:
            return
        known = {VAULT: self.identity.vault, SPOOL: self.identity.spool, CACHE: self.identity.cache}[place.name]
        if known is not None and found.store != known:
            moved = "move the identity file away (and keep it) and run 'forebay init'"
            what = moved if place.name == VAULT else f"run 'forebay init --{place.name}'"
            raise StoreRejected(
                f"it is not the {place.name} this system belongs to (store {found.store.hex()} instead of "
                f"{known.hex()}): mount or configure the right one, or {what} to use this one"
            )

    def _newest(self, problems: Problems) -> tuple[bytes, Newest] | None:
        """Return the point local state ends with, if it speaks of this vault or spool."""
        from adapters.state.directory import StateDirectory

        if self.config is None or self.identity is None:
            return None
        try:
            with StateDirectory.open(self.config.system.state_dir, lock=False) as state:
                newest = state.newest()
        except StateCorrupt as error:
            problems.add(str(error))
            return None
        if newest is None or newest.vault not in (self.identity.vault, self.identity.spool):
            return None
        return self.identity.system, newest


def point_time(point: PointId, time_ms: int | None) -> str:
    """Return the local time of a point for people; of one that does not open, what its order says."""
    from datetime import UTC, datetime

    known = time_ms if time_ms is not None else point.order
    try:
        told = datetime.fromtimestamp(known / 1000, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return "?"
    return f"{told:%Y-%m-%d %H:%M:%S}" + ("" if time_ms is not None else " ?")


def problem_lines(problems: list[str]) -> list[str]:
    """Return the lines that list problems for people."""
    return ["Problems:", *(f"  - {problem}" for problem in problems)] if problems else []
