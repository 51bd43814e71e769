"""What a configuration says that is allowed piece by piece, but not together: places in each other's way, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Final

import msgspec

from adapters.config.buckets import Bucket
from adapters.config.model import LANE_BYTES_MAX, MEMORY_BYTES_MAX, S3_SETTINGS, Cache, Config, Vault
from adapters.config.places import Share, inside, mapped_drive
from adapters.config.units import show_size

# What lies in a state directory (adapters/state/directory.py), besides the identity file.
STATE_NAMES: Final = frozenset(
    (
        *("lock", "lock.pid", "lock.offered", "lock.wanted", "upload-pause"),
        *("incarnation", "newest", "journal", "sessions"),
        *("history.sqlite", "history.sqlite-journal", "volumes", "index"),
        *("verification.log", *(f"verification.log.{number}" for number in range(1, 5))),
    )
)


def contradictions(config: Config) -> list[str]:
    """Return a sentence for each contradiction in `config`; links in its paths are followed as far as they lead.

    That looks at every folder on the way to each place: at a mounted share that hangs, it hangs.
    """
    _real.cache_clear()
    return [
        *logins(config.vault, config.cache),
        *_folders(config),
        *_spool(config),
        *_volumes(config),
        *_identity(config),
        *_memory(config),
    ]


def logins(vault: Vault, cache: Cache | None) -> Iterator[str]:
    """Yield what is wrong with who logs in where: shares need a user, folders take none."""
    for table, settings in (("[vault]", vault), ("[cache]", cache)):
        if settings is None:
            continue
        if isinstance(settings.place, Share):
            if settings.user is None:
                yield f"{table} user is missing: {settings.place} takes a login, user and password_file"
            continue
        given = {"user": settings.user, "password_file": settings.password_file}
        what = "a bucket" if isinstance(settings.place, Bucket) else "a folder"
        for key in [key for key, value in given.items() if value is not None]:
            yield f"{table} {key} is for a share, and {settings.place} is {what}: leave it out, or write smb://"
    yield from _buckets(vault)


def _buckets(vault: Vault) -> Iterator[str]:
    """Yield what is wrong with the settings of buckets."""
    if isinstance(vault.place, Bucket):
        if vault.kms_key is not None and not vault.encryption.startswith("aws:kms"):
            yield '[vault] kms_key needs encryption = "aws:kms" or "aws:kms:dsse": add it, or leave kms_key out'
        if vault.lock_s is None and vault.lock_mode != "governance":
            yield '[vault] lock_mode needs lock, such as lock = "30 d": add it, or leave lock_mode out'
        return
    for field in msgspec.structs.fields(Vault):
        if field.name in S3_SETTINGS and getattr(vault, field.name) != field.default:
            yield f"[vault] {field.encode_name} is for a bucket, and {vault.place} is none: leave it out, or write s3://"


def _own_folders(config: Config) -> list[tuple[str, Path]]:
    """Return the places on this machine that Forebay keeps its own files in, by their settings."""
    found = [("[system] state_dir", config.system.state_dir)]
    if config.spool is not None:
        found.insert(0, ("[spool] path", config.spool.path))
    if config.cache is not None and isinstance(config.cache.place, Path):
        found.insert(0, ("[cache] path", config.cache.place))
    if isinstance(config.vault.place, Path):
        found.insert(0, ("[vault] url", config.vault.place))
    return found


def _folders(config: Config) -> Iterator[str]:
    vault, cache = config.vault.place, config.cache.place if config.cache is not None else None
    if isinstance(vault, Share) and isinstance(cache, Share) and (inside(vault, cache) or inside(cache, vault)):
        yield f"[vault] url ({vault}) and [cache] path ({cache}) must not lie inside each other"
    for name, path in _own_folders(config):
        if (mapped := mapped_drive(path)) is not None:
            yield f"{name} ({path}): {mapped}"
    for (name, path), (other_name, other) in combinations(_own_folders(config), 2):
        if name == "[spool] path" and other == config.system.state_dir and not _inside(other, path):
            continue  # the spool may lie in there: see `_spool`
        if _inside(path, other) or _inside(other, path):
            yield f"{name} ({path}) and {other_name} ({other}) must not lie inside each other"


def _spool(config: Config) -> Iterator[str]:
    """Yield what is wrong with a spool in the state directory: it may lie there, beside what is kept there."""
    if config.spool is None or not _inside(config.spool.path, config.system.state_dir):
        return
    within = Path(_real(config.spool.path)).relative_to(_real(config.system.state_dir)).parts
    if within and within[0] in STATE_NAMES:
        yield (
            f"[spool] path ({config.spool.path}) is where [system] state_dir keeps its own files: name another folder, "
            f"such as {config.system.state_dir / 'spool'}"
        )


def _volumes(config: Config) -> Iterator[str]:
    for volume in config.volumes:
        shown = f"[[volume]] {volume.name!r} path ({volume.path})"
        for name, folder in _own_folders(config):
            if _inside(volume.path, folder):
                yield f"{shown} lies in {name} ({folder}), where Forebay keeps its own files: name another path"
        if volume.hints is not None and _same(volume.hints, volume.path):
            yield f"{shown} is also its hints file: name the file that tells of changes"
    for volume, other in combinations(config.volumes, 2):
        if _same(volume.path, other.path):
            yield (
                f"[[volume]] {volume.name!r} and {other.name!r} have the same path ({other.path}): "
                "each volume needs a path of its own"
            )


def _identity(config: Config) -> Iterator[str]:
    path = config.system.identity_file
    for name, folder in _own_folders(config):
        if _inside(path, folder) and not _inside(config.system.state_dir, folder):
            yield f"[system] identity_file ({path}) lies in {name} ({folder}): keys must not lie where the backups are"
    files = [(f"the path of [[volume]] {volume.name!r}", volume.path) for volume in config.volumes]
    for name, other in [*files, ("this file", config.source)]:
        if _same(path, other):
            yield f"[system] identity_file ({path}) is also {name}: name a file of its own, which init makes"


def _memory(config: Config) -> Iterator[str]:
    if config.memory_bytes > MEMORY_BYTES_MAX:
        most = MEMORY_BYTES_MAX - (config.memory_bytes - config.queue.size_bytes)
        yield (
            f'[queue] size = "{show_size(config.queue.size_bytes)}" and {show_size(LANE_BYTES_MAX)} of packs'
            f" in flight for each of vault and cache make {show_size(config.memory_bytes)} of memory; allowed:"
            f" {show_size(MEMORY_BYTES_MAX)}, that is a [queue] size of at most {show_size(most)}"
        )


@lru_cache(maxsize=1024)
def _real(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _same(path: Path, other: Path) -> bool:
    return _real(path) == _real(other)


def _inside(inner: Path, outer: Path) -> bool:
    return Path(_real(inner)).is_relative_to(_real(outer))
