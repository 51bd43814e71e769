"""`forebay init`: makes or joins vault, cache and spool, enrols this system; safe to repeat, wherever it stopped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapters.cli import frame, inittext, keyfile
from adapters.cli.inittext import Outcome
from adapters.cli.storeplaces import (
    check_marker,
    check_writable,
    has_slots,
    look_at,
    make_store,
    near_places,
    open_place,
)
from adapters.openstore import weakness_of
from engine.errors import ConfigError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from adapters.config import Config, Secret
    from engine.vault.certificate import Certificates
    from engine.vault.formatobject import StoreKind
    from engine.vault.identity import Identity


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml init",
        "forebay --config forebay.toml init --passphrase-file /root/passphrase --json",
        "forebay --config forebay.toml init --generate --passphrase-file /root/passphrase",
        "forebay --config forebay.toml init --replace",
        "forebay --config forebay.toml init --cache",
        "forebay --config forebay.toml init --spool",
        "forebay --config forebay.toml init --offline --passphrase-file FILE",
    )
)
@click.option(
    "--cache", "cache_only", is_flag=True, help="Only adopt the configured cache, new or put in place of another."
)
@click.option(
    "--spool", "spool_only", is_flag=True, help="Only adopt the configured spool, new or put in place of another."
)
@click.option("--offline", is_flag=True, help="Found a domain while there is no vault yet; needs a spool.")
@click.option("--replace", is_flag=True, help="Take the place of the system that has this name in the vault.")
@frame.passphrase_option
@keyfile.key_file_option
@click.option("--generate", is_flag=True, help="Write a generated passphrase to the new file of --passphrase-file.")
@frame.pass_context
def command(
    context: frame.Context,
    cache_only: bool,
    spool_only: bool,
    offline: bool,
    replace: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
    generate: bool,
) -> int:
    """Create or join vault, cache and spool, and enrol this system.

    An empty vault becomes a new domain, sealed with a passphrase: a strong one is asked for, or generated. A vault
    that has a domain is joined with its passphrase. The keys of this system go into the identity file; backing up
    needs no passphrase afterwards, restoring does. Repeating init changes nothing, and finishes what an interrupted
    init began. With --offline the domain is founded before there is a vault, and the vault is made by a later init.
    """
    if (cache_only or spool_only) and (replace or generate or offline):
        only = "--cache" if cache_only else "--spool"
        others = "--replace, --generate and --offline"
        raise click.UsageError(f"{only} adopts a {only[2:]} and nothing else: leave {others} out")
    if offline and replace:
        raise click.UsageError("--offline founds a domain, in which there is no system to replace: leave --replace out")
    config = context.config
    context.start_logs()
    enrolled = _existing_identity(config, replace)
    if cache_only or spool_only:
        kinds: tuple[tuple[bool, StoreKind], ...] = ((cache_only, "cache"), (spool_only, "spool"))
        outcome = frame.run_async(partial(_only, config, enrolled, [kind for wanted, kind in kinds if wanted]))
    elif offline:
        outcome = _offline(config, enrolled, passphrase_file, key_file, generate=generate)
    elif enrolled is not None and not replace:
        outcome = frame.run_async(partial(_again, config, enrolled))
    else:
        founding = frame.run_async(partial(_survey, config, replace))
        secret = _passphrase(passphrase_file, founding=founding, generate=generate)
        key = keyfile.read_key_file(key_file)
        outcome = frame.run_async(partial(_enrol, config, enrolled, secret, key, replace=replace, founding=founding))
    if not cache_only and not spool_only and not outcome.identity.vault_pending:
        frame.run_async(partial(_ask_weakness, config, outcome))
    code = frame.SOMETHING_MISSING if outcome.problems else frame.DONE
    context.emit(inittext.document(config, outcome, code), inittext.text(config, outcome))
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


async def _survey(config: Config, replace: bool) -> bool:
    """Look at all places before anything is changed; return whether a domain is to be founded.

    Raises: ConfigError, StoreUnavailable, StoreRejected, StoreCorrupt, FormatTooNew.
    """
    await _survey_near(config)
    if await look_at("vault", config.vault.place, config) == "new":
        if replace:
            raise ConfigError(
                f"the vault {config.vault.url} is empty, there is no system {config.system.name!r} to replace: "
                "mount its disk, or leave --replace out"
            )
        await check_writable(config)
        return True
    await check_marker(config.vault.place, "vault", config)
    founding = not await has_slots(config.vault.place, config)
    await check_writable(config)
    return founding


async def _survey_near(config: Config) -> None:
    """Look at cache and spool. Raises: as `_survey`."""
    for kind, place in near_places(config):
        if await look_at(kind, place, config) == "store":
            await check_marker(place, kind, config)


async def _survey_offline(config: Config) -> None:
    """Look at all places while there is no vault yet. Raises: ConfigError if there is one; as `_survey`."""
    try:
        there = await look_at("vault", config.vault.place, config) == "store"
    except (ConfigError, StoreError):
        there = False  # no disk is mounted there yet, no server answers: which is what --offline is for
    if there:
        raise ConfigError(f"the vault {config.vault.url} is there: leave --offline out")
    await _survey_near(config)
    await check_writable(config, vault=False)


def _passphrase(file: Path | None, *, founding: bool, generate: bool) -> Secret:
    from adapters.cli import newpassphrase

    if founding:
        return newpassphrase.choose(file, generate=generate)
    if generate:
        raise ConfigError("the vault has a passphrase already: leave --generate out and give that one")
    return frame.read_passphrase(file)


async def _prepare(config: Config) -> None:
    """Make the state directory, and cache and spool where there are none."""
    import anyio.to_thread

    from adapters.state.files import Disk

    await anyio.to_thread.run_sync(Disk().make_folder, config.system.state_dir)
    for kind, place in near_places(config):
        await make_store(kind, place, config)


async def _enrol(
    config: Config, pinned: Identity | None, secret: Secret, key: bytes | None, *, replace: bool, founding: bool
) -> Outcome:
    """Found or join, write the identity, adopt cache and spool: in that order, each step durable before the next."""
    import anyio.to_thread

    from adapters.clock import SystemClock
    from adapters.state import identity as files
    from engine.vault.founding import check_name, enrol
    from engine.vault.slots import KdfCost

    path = config.system.identity_file
    check_name(config.system.name)

    async def stage(identity: Identity) -> None:
        await _prepare(config)
        await anyio.to_thread.run_sync(files.stage, path, identity)

    if founding:
        # What can fail here fails before the vault is touched; a join first shows that its passphrase is right.
        await _prepare(config)
        await make_store("vault", config.vault.place, config)
    enrolment = await enrol(
        open_place(config.vault.place, config),
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
    await _prepare(config)
    await anyio.to_thread.run_sync(files.save, path, enrolment.identity)
    outcome = Outcome(enrolment.identity, enrolment, replaced=replace, problems=list(enrolment.problems))
    for kind, _ in near_places(config):
        try:
            await _adopt(config, outcome, kind)
        except ConfigError as error:  # the system is enrolled all the same
            outcome.problems.append(f"the {kind} is not adopted: {error}")
    return outcome


def _offline(
    config: Config, enrolled: Identity | None, passphrase_file: Path | None, key_file: Path | None, *, generate: bool
) -> Outcome:
    """Found a domain while there is no vault, or finish what an interrupted founding began. Raises: ConfigError."""
    if enrolled is not None:
        if not enrolled.vault_pending:
            raise ConfigError(f"this machine is enrolled in {config.vault.url} already: leave --offline out")
        return frame.run_async(partial(_near, config, Outcome(enrolled)))
    if config.spool is None:
        raise ConfigError(
            f"init --offline needs a [spool] table in {config.source}: without a spool nothing could be backed up "
            "while there is no vault"
        )
    frame.run_async(partial(_survey_offline, config))
    secret = _passphrase(passphrase_file, founding=True, generate=generate)
    key = keyfile.read_key_file(key_file)
    return frame.run_async(partial(_found_offline, config, secret, key))


async def _found_offline(config: Config, secret: Secret, key: bytes | None) -> Outcome:
    import anyio.to_thread

    from adapters.clock import SystemClock
    from adapters.state import identity as files
    from engine.vault.offline import found_offline
    from engine.vault.slots import KdfCost

    await _prepare(config)
    identity = await found_offline(config.system.name, secret.reveal(), key, KdfCost(), SystemClock())
    # From here on the passphrase is settled: whatever is left to do, a later run does without asking for it.
    await anyio.to_thread.run_sync(files.save, config.system.identity_file, identity)
    return await _near(config, Outcome(identity, offline=True))


async def _again(config: Config, identity: Identity) -> Outcome:
    """Check an enrolment that exists, and finish what an interrupted or an offline init left undone."""
    import anyio.to_thread

    from adapters.state import identity as files
    from engine.vault.enrolment import check_enrolment
    from engine.vault.formatobject import read_format
    from engine.vault.founding import check_vault
    from engine.vault.publishing import publish

    if identity.vault_pending:
        return await _first_contact(config, identity)
    vault = open_place(config.vault.place, config)
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
    return await _near(config, Outcome(identity))


async def _ask_weakness(config: Config, outcome: Outcome) -> None:
    """Note what the vault's server cannot do; that it does not answer now undoes nothing that was done."""
    try:
        outcome.weakness = await weakness_of(config.vault.place, connect_timeout_s=config.vault.connect_timeout_s)
    except StoreError as error:
        outcome.problems.append(f"the vault could not be asked what its server can do: {error}")


async def _first_contact(config: Config, identity: Identity) -> Outcome:
    """Make the vault of a domain that was founded offline. Raises: ConfigError if there is another one."""
    import anyio.to_thread

    from adapters.state import identity as files
    from engine.vault.offline import finish_pending, pending_format

    place = config.vault.place
    await make_store("vault", place, config, pending_format(identity))
    identity = await finish_pending(open_place(place, config), identity)
    await anyio.to_thread.run_sync(files.save, config.system.identity_file, identity)
    return await _near(config, Outcome(identity, vault_made=True))


async def _near(config: Config, outcome: Outcome) -> Outcome:
    """Adopt cache and spool where there was none before; say what is wrong with those there were."""
    from engine.vault.formatobject import read_format

    for kind, place in near_places(config):
        known = _known(outcome.identity, kind)
        if known is None:
            await make_store(kind, place, config)
            await _adopt(config, outcome, kind)
            continue
        try:
            found = await read_format(open_place(place, config), kind)
        except StoreError as error:
            outcome.problems.append(f"the {kind} cannot be used: {error}" + _if_moved(kind))
            continue
        if found.store != known:
            outcome.problems.append(
                f"the {kind} in {place} is not the one this system adopted: put that one back, or run "
                f"'forebay init --{kind}' to adopt this one"
            )
    return outcome


def _known(identity: Identity, kind: StoreKind) -> bytes | None:
    return identity.cache if kind == "cache" else identity.spool


def _if_moved(kind: StoreKind) -> str:
    if kind != "spool":
        return ""
    return (
        "; if its folder was moved, correct [spool] path; if it is lost, 'forebay init --spool' adopts a new one, and "
        "what was not uploaded is lost with it"
    )


async def _only(config: Config, identity: Identity | None, kinds: list[StoreKind]) -> Outcome:
    """Adopt stores of these kinds, new or in place of others; the vault need not be there. Raises: ConfigError."""
    places = {
        "cache": config.cache.place if config.cache is not None else None,
        "spool": config.spool.path if config.spool is not None else None,
    }
    for kind in kinds:
        if identity is None:
            raise ConfigError(f"this system is not enrolled yet: run 'forebay init' without --{kind}")
        if places[kind] is None:
            raise ConfigError(f"{config.source} has no [{kind}] table: add one, then run 'forebay init --{kind}' again")
    assert identity is not None
    outcome = Outcome(identity)
    for kind in kinds:
        place = places[kind]
        assert place is not None
        await make_store(kind, place, config)
        await _adopt(config, outcome, kind)
    if identity.spool not in (None, outcome.identity.spool):
        outcome.forgotten = identity.spool
    return outcome


async def _adopt(config: Config, outcome: Outcome, kind: StoreKind) -> None:
    """Adopt the configured cache or spool, which exists, and write its id into the identity file."""
    import anyio.to_thread

    from adapters.state import identity as files
    from engine.vault.adoption import adopt_cache, adopt_spool

    before = outcome.identity
    known = await _own_certificates(config, before)
    if kind == "cache":
        assert config.cache is not None
        adoption = await adopt_cache(open_place(config.cache.place, config), before, known)
        outcome.cache_foreign = adoption.foreign
    else:
        assert config.spool is not None
        adoption = await adopt_spool(open_place(config.spool.path, config), before, known)
    outcome.identity = adoption.identity
    if adoption.identity != before:
        outcome.adopted.add(kind)
        await anyio.to_thread.run_sync(files.save, config.system.identity_file, adoption.identity)


async def _own_certificates(config: Config, identity: Identity) -> Certificates | None:
    """Return the vault's certificates, None while it is away: a store can be adopted without it."""
    from engine.vault.certificate import Certificates

    try:
        return await Certificates.load(open_place(config.vault.place, config), identity.domain, identity.vault_public)
    except StoreError:
        return None
