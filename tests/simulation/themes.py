"""Kinds of worlds: how likely it is that something goes wrong there, and where machines die."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Where much happens in few events: in a random choice of events it would hardly ever be met.
DEATHS: Final = (
    *["vault put root"] * 3,
    *["replace journal"] * 2,
    "put index",
    "put data",
    "put page",
    *["cache flush"] * 3,
    "cache put",
    "unlink journal",
    "replace head",
    "replace newest",
    "unlink sessions",
    "unlink staged.seal",
    "ftruncate",
    "create",
    "link ",
)
# On the way into the spool and out of it: roots, packs and notes are linked there under their names, and unlinked.
MOVES: Final = (
    *["vault put root"] * 3,
    "vault put data",
    "vault put index",
    "vault put note",
    "vault flush",
    "replace newest",
    "replace journal",
    "fsync",
    "fdatasync",
    *["link "] * 3,
    *["unlink "] * 3,
    "fsync root",
    "probe",
    "replace incarnation",
)
VANISHINGS: Final = (*["vault put root"] * 4, "put index", "put page", "put data", "cache put root")
WAYS: Final = ("vault put data", "vault put root", "vault put index", "vault get", "vault list")


@dataclass(frozen=True)
class Likely:
    """How likely it is in a step that a store is not well, the machine dies, objects are damaged and so on.

    `power_cut`: of the deaths, those that lose what was not durable; `alone`: there is one machine, and its cache;
    `spool`: a machine has a spool; `away`: the vault is away from the start; `offline`: the domain was founded without
    a vault; `moves`: the vault's marker, or its url in the configuration, changes; `losses`: the vault is emptied, or
    the spool lost; `deletion`: a point that waits in the spool is deleted instead.
    """

    weather: float = 0.4
    death: float = 0.4
    damage: float = 0.0
    vanishing: float = 0.0
    state: float = 0.0
    power_cut: float = 0.7
    deaths: tuple[str, ...] = DEATHS
    alone: bool = False
    spool: float = 0.6
    away: float = 0.0
    offline: float = 0.1
    moves: float = 0.0
    losses: float = 0.0
    deletion: float = 0.06


THEMES: Final = {
    "everything": Likely(damage=0.15, vanishing=0.08, state=0.06, spool=0.8, away=0.1, moves=0.02, losses=0.02),
    "failures": Likely(weather=0.8, death=0.2),
    "deaths": Likely(weather=0.15, death=0.7, spool=0.5),
    "cuts": Likely(
        weather=0.0, death=0.6, power_cut=1.0, deaths=("cache put data", "cache flush"), alone=True, spool=0.2
    ),
    "losses": Likely(weather=0.1, death=0.1, damage=0.3, vanishing=0.4),
    "confusion": Likely(weather=0.3, death=0.3, damage=0.05, state=0.25, away=0.1, moves=0.03),
    "fallback": Likely(weather=0.6, death=0.3, deaths=(*DEATHS, *MOVES), spool=1.0, away=0.3, offline=0.2, moves=0.03),
    "backlog": Likely(weather=0.2, death=0.6, deaths=MOVES, spool=1.0, away=0.45, offline=0.2),
    "deletions": Likely(weather=0.1, death=0.3, spool=1.0, away=0.6, alone=True, deletion=0.5),
    "misfortunes": Likely(
        weather=0.2, death=0.2, damage=0.3, vanishing=0.2, spool=1.0, away=0.4, moves=0.03, losses=0.05
    ),
}
