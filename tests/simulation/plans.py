"""What simulations decide about a machine: its settings, what it does next and in what weather, what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.simulation.stores import Weather


@dataclass
class Settings:
    """What a machine's configuration says, as far as a simulation changes it.

    `room_bytes`: what the disk lets the spool have, `max_bytes`: what `max_size` does, None: more than ever needed.
    `elsewhere`: [vault] url leads to another vault. `upload_window`: as in the file; "": always.
    """

    delta: bool = True
    compression: str = "lz4"
    share: str = "vault"
    window_s: int = 0
    cache: bool = True
    on_error: str = "warn"
    on_slow: str = "wait"
    retries_max: int = 3
    hints: bool = False
    spool: bool = False
    on_loss: str = "restart"
    room_bytes: int | None = None
    max_bytes: int | None = None
    elsewhere: bool = False
    upload_window: str = ""


@dataclass
class Plan:
    """One session, upload or deletion: of which volumes, in which weather, and where the machine dies, if it does.

    `crash_at`: at which of its events; `crash_on`: so many events after the first of this name. `vanish_on`: packs
    vanish from the vault at the first event of this name. `way_on`: somebody else wants the state directory from the
    first event of this name on. `ailing`: the share of changes on the spool's disk that fail.
    """

    volumes: list[str] = field(default_factory=list)
    vault: Weather = field(default_factory=Weather)
    cache: Weather = field(default_factory=Weather)
    full: bool = False
    crash_at: int | None = None
    crash_on: tuple[str, int] = "", 0
    power_cut: bool = False
    disk_full: bool = False
    vanish_on: str = ""
    way_on: str = ""
    ailing: float = 0.0

    @property
    def calm(self) -> bool:
        """Whether nothing is in the way."""
        dies = self.crash_at is not None or self.crash_on[0]
        hurt = dies or self.disk_full or self.vanish_on or self.way_on or self.ailing
        return self.vault.calm and self.cache.calm and not hurt

    def __str__(self) -> str:
        dies = f"{'power cut' if self.power_cut else 'killed'} at {self.crash_at or self.crash_on}"
        return ", ".join(
            [
                f"vault {self.vault.name}, cache {self.cache.name}",
                *(["disk full"] if self.disk_full else []),
                *([dies] if self.crash_at is not None or self.crash_on[0] else []),
                *([f"packs vanish on {self.vanish_on}"] if self.vanish_on else []),
                *([f"to give way on {self.way_on}"] if self.way_on else []),
                *([f"spool ailing {self.ailing}"] if self.ailing else []),
            ]
        )


@dataclass(frozen=True)
class RootMade:
    """A root a session tried to put: its bytes, what the volumes held, and whether it was a full session.

    `own`: the names of what the session put, `sent`: of those, into the vault; `kept`: what was in the spool or got
    there. `began`, `put`: how many events there were in the world when the session began, and with the put of the root.
    `spooled`: it went to the spool; `resumed`: of a session that goes on there with what it sent to the vault.
    """

    data: bytes
    contents: dict[str, bytes]
    full: bool
    own: set[str]
    sent: set[str]
    kept: set[str]
    began: int
    put: int
    spooled: bool
    resumed: bool


@dataclass(frozen=True)
class Published:
    """A put of a root into the vault: which packs were there with their right size, and which roots in the spool.

    `began`: how many events there were when the session or upload began; `waits`: its name in the spool, where it lay.
    """

    root: str
    began: int
    packs: frozenset[str]
    spooled: tuple[str, ...]
    waits: str | None


@dataclass(frozen=True)
class Dropped:
    """A pack that was deleted from the spool, and the roots that lay there then.

    `back`: it had been deleted before, and a power cut brought it back.
    """

    pack: str
    spooled: tuple[str, ...]
    back: bool
