"""`forebay init`: makes or joins vault and cache and enrols this system; safe to repeat, at whatever it was stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adapters.cli import frame, keyfile
from adapters.cli.writable import nearest_existing, why_not_writable
from engine.errors import ConfigError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from adapters.config import Config, Secret
    from adapters.stores.folder import FolderStore
    from engine.vault.certificate import Certificates
    from engine.vault.founding import Enrolment
    from engine.vault.identity import Identity


@dataclass
class _Outcome:
    """What was done, for the one document at the end."""

    identity: Identity
    enrolment: Enrolment | None = None
    replaced: bool = False
    cache_adopted: bool = False
    cache_foreign: int = 0
    problems: list[str] = field(default_factory=list)


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml init",
        "forebay --config forebay.toml init --passphrase-file /root/passphrase --json",
        "forebay --config forebay.toml init --generate --passphrase-file /root/passphrase",
        "forebay --config forebay.toml init --replace",
        "forebay --config forebay.toml init --cache",
    )
)
@click.option(
    "--cache", "cache_only", is_flag=True, help="Only adopt the configured cache, new or put in place of another."
)
@click.option("--replace", is_flag=True, help="Take the place of the system that has this name in the vault.")
@frame.passphrase_option
@keyfile.key_file_option
@click.option("--generate", is_flag=True, help="Write a generated passphrase to the new file of --passphrase-file.")
@frame.pass_context
def command(
    context: frame.Context,
    cache_only: bool,
    replace: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
    generate: bool,
) -> int:
    """Create or join vault and cache, and enrol this system.

    An empty vault becomes a new domain, sealed with a passphrase: a strong one is asked for, or generated. A vault
    that has a domain is joined with its passphrase. The keys of this system go into the identity file; backing up
    needs no passphrase afterwards, restoring does. Repeating init changes nothing, and finishes what an interrupted
    init began.
    """
    if cache_only and (replace or generate):
        raise click.UsageError("--cache adopts a cache and nothing else: leave --replace and --generate out")
    config = context.config
    context.start_logs()
    enrolled = _existing_identity(config, replace)
    if cache_only:
        outcome = frame.run_async(partial(_only_cache, config, enrolled))
    elif enrolled is not None and not replace:
        outcome = frame.run_async(partial(_again, config, enrolled))
    else:
        founding = _survey(config, replace)
        secret = _passphrase(passphrase_file, founding=founding, generate=generate)
        key = keyfile.read_key_file(key_file)
        outcome = frame.run_async(partial(_enrol, config, enrolled, secret, key, replace=replace, founding=founding))
    code = frame.SOMETHING_MISSING if outcome.problems else frame.DONE
    context.emit(_document(config, outcome, code), _text(config, outcome))
    return code


def _existing_identity(config: Config, replace: bool) -> Identity | None:
    """Return the identity of this machine; None: never enrolled, or damaged and being replaced. Raises: ConfigError."""
    from adapters.state import identity as files

    try:
        if not config.system.identity_file.exists():
            return None
    except OSError as error:
        raise ConfigError(
            f"identity file {config.system.identity_file} cannot be looked at: {error.strerror or error}"
        ) from None
    try:
        identity = files.load(config.system.identity_file)
    except ConfigError:
        if replace:
            return None  # a damaged identity is what --replace is for
        raise
    files.require_name(config.system.identity_file, identity, config.system.name)
    return identity


def _survey(config: Config, replace: bool) -> bool:
    """Look at all places before anything is changed; return whether a domain is to be founded.

    Raises: ConfigError, StoreUnavailable, StoreRejected, StoreCorrupt, FormatTooNew.
    """
    cache = config.active_cache
    if cache is not None and _place("cache", cache.path) == "store":
        frame.run_async(partial(_check_marker, cache.path, "cache"))
    if _place("vault", config.vault.folder) == "new":
        if replace:
            raise ConfigError(
                f"the vault {config.vault.url} is empty, there is no system {config.system.name!r} to replace: "
                "mount its disk, or leave --replace out"
            )
        _check_writable(config)
        return True
    frame.run_async(partial(_check_marker, config.vault.folder, "vault"))
    founding = not frame.run_async(partial(_has_slots, config.vault.folder))
    _check_writable(config)
    return founding


def _check_writable(config: Config) -> None:
    """Return if every place can be written to, so that none is left half made. Raises: ConfigError."""
    places = [
        ("vault", config.vault.folder),
        ("state_dir", config.system.state_dir),
        ("identity_file", config.system.identity_file.parent),
    ]
    if config.active_cache is not None:
        places.append(("cache", config.active_cache.path))
    for what, folder in places:
        try:
            existing = nearest_existing(folder)
            reason = why_not_writable(existing)
        except OSError as error:
            existing, reason = folder, error.strerror or str(error)
        if reason is not None:
            raise ConfigError(f"{what}: {existing} cannot be written to ({reason}); nothing was changed")


def _place(kind: Literal["vault", "cache"], folder: Path) -> Literal["store", "new"]:
    """Tell a store from a place where one can be made. Raises: ConfigError."""
    from adapters.stores.plainnames import TMP
    from engine.names import FORMAT

    try:
        if (folder / FORMAT).exists():
            return "store"
        if not folder.exists() and not folder.parent.is_dir():
            raise ConfigError(f"{kind}: there is no folder {folder.parent}: mount its disk, or make it")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{kind}: {folder} is not a folder: choose another path")
        if folder.exists() and {entry.name for entry in folder.iterdir()} - {TMP, "lost+found"}:
            raise ConfigError(f"{kind}: folder {folder} is not empty and holds no Forebay store: choose an empty one")
    except OSError as error:
        raise ConfigError(f"{kind}: {folder} cannot be looked at: {error.strerror or error}") from None
    return "new"


def _passphrase(file: Path | None, *, founding: bool, generate: bool) -> Secret:
    from adapters.cli import newpassphrase

    if founding:
        return newpassphrase.choose(file, generate=generate)
    if generate:
        raise ConfigError("the vault has a passphrase already: leave --generate out and give that one")
    return frame.read_passphrase(file)


def _store(folder: Path, config: Config) -> FolderStore:
    from adapters.stores.folder import FolderStore

    return FolderStore(folder, "init", connect_timeout_s=config.vault.connect_timeout_s)


async def _check_marker(folder: Path, kind: Literal["vault", "cache"]) -> None:
    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import read_format

    await read_format(FolderStore(folder, "init"), kind, "write")


async def _has_slots(folder: Path) -> bool:
    from adapters.stores.folder import FolderStore

    async for _ in FolderStore(folder, "init").list("key/"):
        return True
    return False


async def _make_store(kind: Literal["vault", "cache"], folder: Path) -> None:
    """Make a store in a folder that holds none yet. Raises: ConfigError, StoreRejected, StoreUnavailable."""
    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import new_store

    if _place(kind, folder) == "new":
        await FolderStore.create(folder, new_store(kind).encode())


async def _enrol(
    config: Config, pinned: Identity | None, secret: Secret, key: bytes | None, *, replace: bool, founding: bool
) -> _Outcome:
    """Found or join, write the identity, adopt the cache: in that order, each step durable before the next."""
    import anyio.to_thread

    from adapters.clock import SystemClock
    from adapters.state import identity as files
    from adapters.state.files import Disk
    from engine.vault.founding import check_name, enrol
    from engine.vault.slots import KdfCost

    path = config.system.identity_file
    check_name(config.system.name)

    async def prepare() -> None:
        await anyio.to_thread.run_sync(Disk().make_folder, config.system.state_dir)
        if config.active_cache is not None:
            await _make_store("cache", config.active_cache.path)

    async def stage(identity: Identity) -> None:
        await prepare()
        await anyio.to_thread.run_sync(files.stage, path, identity)

    if founding:
        # What can fail here fails before the vault is touched; a join first shows that its passphrase is right.
        await prepare()
        await _make_store("vault", config.vault.folder)
    enrolment = await enrol(
        _store(config.vault.folder, config),
        config.system.name,
        secret.reveal(),
        key,
        KdfCost(),
        SystemClock(),
        replace=replace,
        pinned=pinned,
        staged=await anyio.to_thread.run_sync(files.load_staged, path),
        stage=stage,
    )
    await prepare()
    await anyio.to_thread.run_sync(files.save, path, enrolment.identity)
    outcome = _Outcome(enrolment.identity, enrolment, replaced=replace, problems=list(enrolment.problems))
    if config.active_cache is not None:
        await _adopt(config, outcome)
    return outcome


async def _again(config: Config, identity: Identity) -> _Outcome:
    """Check an enrolment that exists, and finish what an interrupted init left undone."""
    import anyio.to_thread

    from adapters.state import identity as files
    from engine.vault.formatobject import read_format
    from engine.vault.founding import check_enrolment, check_vault, publish

    vault = _store(config.vault.folder, config)
    try:
        check_vault(identity, await read_format(vault, "vault", "write"))
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}; this machine is enrolled in that vault: to begin anew with another one, move "
            f"{config.system.identity_file} away first"
        ) from error
    await publish(vault, identity)
    await check_enrolment(vault, identity)
    await anyio.to_thread.run_sync(files.unstage, config.system.identity_file)
    outcome = _Outcome(identity)
    cache = config.active_cache
    if cache is None:
        return outcome
    if identity.cache is None:
        await _make_store("cache", cache.path)
        await _adopt(config, outcome)
        return outcome
    try:
        found = await read_format(_store(cache.path, config), "cache")
        if found.store != identity.cache:
            outcome.problems.append(
                f"the cache in {cache.path} is not the one this system adopted: put that one back, or run "
                "'forebay init --cache' to adopt this one"
            )
    except StoreError as error:
        outcome.problems.append(f"the cache cannot be used: {error}")
    return outcome


async def _only_cache(config: Config, identity: Identity | None) -> _Outcome:
    if identity is None:
        raise ConfigError("this system is not enrolled yet: run 'forebay init' without --cache")
    if config.cache is None:
        raise ConfigError(f"{config.source} has no [cache] table: add one, then run 'forebay init --cache' again")
    await _make_store("cache", config.cache.path)
    outcome = _Outcome(identity)
    await _adopt(config, outcome)
    return outcome


async def _adopt(config: Config, outcome: _Outcome) -> None:
    """Adopt the configured cache, which exists, and write its id into the identity file."""
    import anyio.to_thread

    from adapters.state import identity as files
    from engine.vault.founding import adopt_cache

    assert config.cache is not None
    before = outcome.identity
    adoption = await adopt_cache(_store(config.cache.path, config), before, await _own_certificates(config, before))
    outcome.identity, outcome.cache_foreign = adoption.identity, adoption.foreign
    if adoption.identity != before:
        outcome.cache_adopted = True
        await anyio.to_thread.run_sync(files.save, config.system.identity_file, adoption.identity)


async def _own_certificates(config: Config, identity: Identity) -> Certificates | None:
    """Return the vault's certificates, None while it is away: a cache can be adopted without it."""
    from engine.vault.certificate import Certificates

    try:
        return await Certificates.load(_store(config.vault.folder, config), identity.domain, identity.vault_public)
    except StoreError:
        return None


def _document(config: Config, outcome: _Outcome, code: int) -> dict[str, Any]:
    identity, enrolment = outcome.identity, outcome.enrolment
    return {
        "system": identity.name,
        "system_id": identity.system,
        "domain": identity.domain,
        "certificate": identity.certificate_number,
        "identity_file": config.system.identity_file,
        "already_enrolled": enrolment is None,
        "founded": enrolment is not None and enrolment.founded,
        "replaced": outcome.replaced,
        "resumed": enrolment is not None and enrolment.resumed,
        "vault": {"url": config.vault.url, "store": identity.vault},
        "cache": None
        if config.cache is None
        else {
            "path": config.cache.path,
            "store": identity.cache,
            "adopted": outcome.cache_adopted,
            "other_domains": outcome.cache_foreign,
        },
        "problems": outcome.problems,
        "exit_code": code,
    }


def _text(config: Config, outcome: _Outcome) -> str:
    identity, enrolment = outcome.identity, outcome.enrolment
    lines: list[str] = []
    if enrolment is None:
        lines.append(f"System {identity.name!r} is already enrolled in {config.vault.url}.")
    elif outcome.replaced:
        lines.append(f"This machine now takes the place of system {identity.name!r} in {config.vault.url}.")
    elif enrolment.founded:
        lines.append(f"Founded a new domain in {config.vault.url} and enrolled this machine as {identity.name!r}.")
    else:
        lines.append(f"Joined the domain in {config.vault.url} as system {identity.name!r}.")
    if outcome.cache_adopted and config.cache is not None:
        lines.append(f"The cache in {config.cache.path} is adopted.")
    elif enrolment is None and config.active_cache is not None and not outcome.problems:
        lines.append(f"The cache in {config.active_cache.path} is the one it has adopted.")
    if outcome.cache_foreign:
        lines.append(
            f"The cache is shared with {outcome.cache_foreign} other domain(s); nothing is deduplicated with them."
        )
    if enrolment is not None:
        lines.append(
            f"Its keys are in {config.system.identity_file}. Keep the passphrase: backing up does not need it, "
            "restoring does."
        )
    return "\n".join([*lines, *(f"Problem: {problem}" for problem in outcome.problems)])
