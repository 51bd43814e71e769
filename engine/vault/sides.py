"""Vault and cache opened by what runs beside sessions and needs both: verification of the vault, healing of points."""

from __future__ import annotations

import anyio.to_thread

from engine.errors import ConfigError
from engine.pipeline.setup import SessionSetup
from engine.pipeline.standin import recall
from engine.pipeline.stores import Side, open_side
from engine.ports import ObjectStore
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_enrolment, find_cache
from engine.vault.formatobject import FormatObject, read_format


async def open_vault(session: SessionSetup, *, writes: bool = True) -> tuple[Side, Certificates, list[str]]:
    """Return the vault, who is enrolled in it, and the problems found in it; not `writes`: only to read from.

    Raises: StoreError, ConfigError, StateCorrupt.
    """
    await session.vault.probe()
    if writes and session.lock is not None:
        await session.lock.vault.check_lock()
    found = await read_format(session.vault, "vault", "write" if writes else "read")
    if found.store != session.identity.vault:
        raise ConfigError("the vault is not the one this system was enrolled in; check [vault] url")
    certificates = await check_enrolment(session.vault, session.identity)
    side, problems = await _side(session, found, session.vault, certificates)
    if problem := await anyio.to_thread.run_sync(recall, session, side.packs):
        problems.append(problem)
    return side, certificates, problems


async def open_cache(session: SessionSetup, certificates: Certificates) -> tuple[Side, list[str]] | None:
    """Return the cache and the problems found in it; None: there is none.

    `certificates`: of the vault. Raises: StoreError (away, another one, refuses), StateCorrupt.
    """
    if session.cache is None or session.identity.cache is None:
        return None
    objects = session.cache.objects
    return await _side(session, await find_cache(objects, session.identity), objects, certificates)


async def _side(
    session: SessionSetup, found: FormatObject, objects: ObjectStore, certificates: Certificates
) -> tuple[Side, list[str]]:
    return await open_side(found, objects, session.identity, session.state, certificates, own_only=session.own_only)
