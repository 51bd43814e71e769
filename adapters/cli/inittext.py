"""What `init` did, as the one document and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.config import Config
    from engine.vault.founding import Enrolment
    from engine.vault.identity import Identity


@dataclass
class Outcome:
    """What was done. `adopted`: kinds of stores; `forgotten`: the spool that another one took the place of.

    `weakness`: a sentence about what the vault's server cannot do.
    """

    identity: Identity
    enrolment: Enrolment | None = None
    offline: bool = False
    vault_made: bool = False
    replaced: bool = False
    adopted: set[str] = field(default_factory=set)
    cache_foreign: int = 0
    forgotten: bytes | None = None
    weakness: str | None = None
    problems: list[str] = field(default_factory=list)


def document(config: Config, outcome: Outcome, code: int) -> dict[str, Any]:
    """Return what `init --json` prints."""
    identity, enrolment = outcome.identity, outcome.enrolment
    cache, spool = config.cache, config.spool
    return {
        "system": identity.name,
        "system_id": identity.system,
        "domain": identity.domain,
        "certificate": identity.certificate_number,
        "identity_file": config.system.identity_file,
        "already_enrolled": enrolment is None and not outcome.offline,
        "founded": outcome.offline or (enrolment is not None and enrolment.founded),
        "replaced": outcome.replaced,
        "resumed": enrolment is not None and enrolment.resumed,
        "vault": {"url": config.vault.url, "store": identity.vault, "pending": identity.vault_pending},
        "cache": None
        if cache is None
        else {
            "path": str(cache.place),
            "store": identity.cache,
            "adopted": "cache" in outcome.adopted,
            "other_domains": outcome.cache_foreign,
        },
        "spool": None
        if spool is None
        else {"path": spool.path, "store": identity.spool, "adopted": "spool" in outcome.adopted},
        "warnings": [] if outcome.weakness is None else [f"vault: {outcome.weakness}"],
        "problems": outcome.problems,
        "exit_code": code,
    }


def text(config: Config, outcome: Outcome) -> str:
    """Return what `init` prints for people."""
    lines = [_enrolled(config, outcome), *_stores(config, outcome)]
    if outcome.forgotten is not None:
        lines.append(
            f"The spool it had before ({outcome.forgotten.hex()}) is forgotten: points that still lie in it are not "
            "uploaded; 'forebay points --spool PATH' lists them, and with the passphrase they can be restored."
        )
    if outcome.cache_foreign:
        lines.append(
            f"The cache is shared with {outcome.cache_foreign} other domain(s); nothing is deduplicated with them."
        )
    if outcome.enrolment is not None or outcome.offline:
        lines.append(
            f"Its keys are in {config.system.identity_file}. Keep the passphrase: backing up does not need it, "
            "restoring does."
        )
    if outcome.weakness is not None:
        lines.append(f"Warning: {outcome.weakness}")
    return "\n".join([*lines, *(f"Problem: {problem}" for problem in outcome.problems)])


def _enrolled(config: Config, outcome: Outcome) -> str:
    name, url, enrolment = outcome.identity.name, config.vault.url, outcome.enrolment
    if outcome.offline:
        return (
            f"Founded a new domain without a vault and enrolled this machine as {name!r}. Sessions go to the spool; "
            f"run 'forebay init' once {url} is there."
        )
    if outcome.vault_made:
        return f"Made the vault in {url} for the domain of system {name!r}, which was founded without it."
    if enrolment is None:
        where = "without its vault yet" if outcome.identity.vault_pending else f"in {url}"
        return f"System {name!r} is already enrolled {where}."
    if outcome.replaced:
        return f"This machine now takes the place of system {name!r} in {url}."
    if enrolment.founded:
        return f"Founded a new domain in {url} and enrolled this machine as {name!r}."
    return f"Joined the domain in {url} as system {name!r}."


def _stores(config: Config, outcome: Outcome) -> list[str]:
    lines = []
    cache, spool = config.active_cache, config.spool
    places = {"cache": cache.place if cache is not None else None, "spool": spool.path if spool is not None else None}
    for kind, place in places.items():
        if place is None:
            continue
        if kind in outcome.adopted:
            lines.append(f"The {kind} in {place} is adopted.")
        elif outcome.enrolment is None and not outcome.problems:
            lines.append(f"The {kind} in {place} is the one it has adopted.")
    return lines
