"""What happens to machines and stores between and within sessions: damage, losses, copies brought back."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from adapters.state.pause import Pause
from engine.names import FORMAT
from tests.simulation.machines import Machine
from tests.simulation.spools import OWN
from tests.simulation.stores import Kind, SimStore

WAITING: Final = ("data/", "page/", "note/", "root/")  # of what waits, what somebody else may have rotted
DAY_MS: Final = 86_400_000
STATE_PARTS: Final = ("volumes", "index", "newest", "journal", "sessions", "incarnation", "")


class Misfortunes:
    """Lets things happen, at random, and tells of each."""

    def __init__(
        self,
        chance: random.Random,
        stores: Mapping[Kind, SimStore],
        folder: Path,
        tell: Callable[[str], None],
        look: Callable[[], None],
        rots: random.Random,
    ) -> None:
        self._rots = rots
        self.chance, self.stores, self._folder, self._tell, self._look = chance, stores, folder, tell, look
        # Where pages are never lost, every block that is missing must have a reason of its own.
        self._fragile = chance.choice((("data/",), ("data/", "page/", "index/", "root/")))
        self._copies: dict[str, Path] = {}
        self._marker = b""

    def settings(self, machine: Machine) -> None:
        """Change the configuration."""
        chance, has = self.chance, machine.settings
        has.delta = chance.random() < 0.8
        has.compression = chance.choice(("lz4", "zstd", "none"))
        has.share = chance.choice(("vault", "vault", "own"))
        has.window_s = chance.choice((0, 60, 1800))
        has.cache = chance.random() < 0.85
        has.on_error = chance.choice(("warn", "warn", "error", "fail"))
        has.on_slow = chance.choice(("wait", "wait", "skip"))
        has.retries_max = chance.choice((0, 1, 5))
        has.hints = chance.random() < 0.3
        has.on_loss = chance.choice(("restart", "resume"))
        has.room_bytes = round(2 ** chance.uniform(18, 24)) if chance.random() < 0.1 else None
        has.max_bytes = (8 << 20) + round(2 ** chance.uniform(18, 24)) if chance.random() < 0.1 else None
        has.upload_window = machine.ills.choice(("", "", "", "20:00-06:00", "09:00-17:00"))
        self._tell(f"{machine.name}: {has}")

    def switch_spool(self, machine: Machine) -> None:
        """Take the spool out of the configuration, or put it there."""
        machine.settings.spool = not machine.settings.spool
        machine.touched = set(machine.contents)  # local state may end with a point of a spool it cannot see
        self._tell(f"{machine.name}: spool {'on' if machine.settings.spool else 'off'}")

    def switch_vault(self, machine: Machine) -> None:
        """Let the configuration name another vault, or the right one again."""
        machine.settings.elsewhere = not machine.settings.elsewhere
        self._tell(f"{machine.name}: [vault] url is {'another vault' if machine.settings.elsewhere else 'right again'}")

    def skew(self, machine: Machine) -> None:
        """Let the clock be wrong."""
        machine.clock.skew_ms = self.chance.choice((-DAY_MS, 0, 0, DAY_MS))
        self._tell(f"{machine.name}: the clock is wrong by {machine.clock.skew_ms} ms")

    def pause(self, machine: Machine) -> None:
        """Pause the upload for a time, or in this network, or end the pause, or go into another network."""
        kind = self.chance.choice(("time", "network", "resume", "resume", "move"))
        if kind == "move":
            machine.network = self.chance.choice(("home", "hotel", "train"))
        until_ms = machine.clock.now_ms() + round(2 ** self.chance.uniform(0, 27))
        pause = Pause(until_ms=until_ms) if kind == "time" else Pause(network=machine.network)
        if kind != "move":
            machine.pause(None if kind == "resume" else pause)
        self._tell(f"{machine.name}: pause: {kind}")

    def damage(self, machine: Machine) -> None:
        """Let objects of a store rot, lose their end, or vanish."""
        kind = self.chance.choice(("vault", "vault", "cache"))
        store = self.stores["vault" if kind == "vault" else "cache"]
        whole = [name for name in sorted(store.written) if name.startswith(self._fragile)]
        whole = [name for name in whole if store.objects.get(name) == store.written[name]]
        for name in self.chance.sample(whole, min(len(whole), self.chance.choice((1, 2, 5)))):
            damaged, how = self._damaged(store.objects.pop(name))
            if damaged is not None:
                store.objects[name] = damaged
            store.unsynced.discard(name)
            self._tell(f"{kind}: {name} {how}")

    def damage_spool(self, machine: Machine) -> None:
        """Let objects of the spool rot, lose their end, or vanish."""
        if not machine.spool.there:
            return
        names = [name for name in machine.spool.names() if name.startswith((*self._fragile, "note/"))]
        for name in self.chance.sample(names, min(len(names), self.chance.choice((1, 1, 3)))):
            damaged, how = self._damaged(machine.spool.get(name) or b"")
            machine.spool.ruin(name, damaged)
            self._tell(f"spool of {machine.name}: {name} {how}")
        machine.disk.settle()

    def rot_ahead(self, machine: Machine, share: float) -> None:
        """Let something rotten lie in the vault under names of the spool: put there once, and nobody heard of it."""
        vault, kinds = self.stores["vault"], ("note/", *self._fragile)
        names = [name for name in machine.spool.names() if name.startswith(kinds) and name.startswith(WAITING)]
        names = [name for name in names if name not in vault.objects and name not in vault.written]
        if not names or machine.identity.vault_pending or self._rots.random() >= share:
            return
        for name in self._rots.sample(names, min(len(names), self._rots.choice((1, 2, 5)))):
            data = machine.spool.tried[name]
            at = self._rots.choice((0, self._rots.randrange(len(data))))
            stop = self._rots.choice((at + 1, len(data)))
            vault.objects[name] = data[:at] + bytes(byte ^ 0xA5 for byte in data[at:stop]) + data[stop:]
            self._tell(f"vault: {name} lies there, rotten from {at} to {stop}")

    def _damaged(self, data: bytes) -> tuple[bytes | None, str]:
        how = self.chance.choice(("vanished", "rotted", "is short", "is short"))
        if how == "vanished" or not data:
            return None, "vanished"
        if how == "is short":
            return data[: self.chance.choice((0, self.chance.randrange(len(data))))], how
        at = self.chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.chance.randrange(8)]) + data[at + 1 :], how

    def lose_spool(self, machine: Machine) -> None:
        """Let the spool's folder be away, come back, or be lost for good."""
        here, aside = machine.spool.path, machine.home / "spool.aside"
        if aside.is_dir():
            if not here.is_dir():
                aside.rename(here)
                self._tell(f"{machine.name}: its spool is back")
        elif here.is_dir() and self.chance.random() < 0.6:
            here.rename(aside)
            self._tell(f"{machine.name}: its spool is away")
        elif here.is_dir():
            machine.spool.ruined |= {name for name in machine.spool.names() if name.startswith(OWN)}
            shutil.rmtree(here)
            self._tell(f"{machine.name}: its spool is lost")
        machine.disk.settle()
        machine.touched = set(machine.contents)  # local state may end with a point there

    def empty_vault(self, machine: Machine) -> None:
        """Let all be gone from the vault but what founded it."""
        vault = self.stores["vault"].objects
        for name in [name for name in vault if name.startswith(OWN)]:
            del vault[name]
        self._tell("the vault is emptied")

    def move_vault(self, machine: Machine) -> None:
        """Let the vault's marker be gone, as where its disk is not mounted, or be there again."""
        vault = self.stores["vault"].objects
        if FORMAT in vault:
            self._marker = vault.pop(FORMAT)
        elif self._marker:
            vault[FORMAT], self._marker = self._marker, b""
        self._tell(f"the vault's marker is {'there' if FORMAT in vault else 'gone'}")

    def settle(self, machine: Machine) -> None:
        """Let all that can come back come back."""
        if FORMAT not in self.stores["vault"].objects:
            self.move_vault(machine)
        if (machine.home / "spool.aside").is_dir() and not machine.spool.there:
            self.lose_spool(machine)
        machine.settings.elsewhere = False
        machine.settings.room_bytes = machine.settings.max_bytes = None
        machine.settings.upload_window = ""
        machine.pause(None)

    def lose_state(self, machine: Machine) -> None:
        """Lose a part of local state, or all of it."""
        part = self.chance.choice(STATE_PARTS)
        path = machine.disk.root / "state" / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._forget(machine)
        self._tell(f"{machine.name}: lost {part or 'all'} of its state")

    def copy_state(self, machine: Machine) -> None:
        """Copy local state, to be brought back some time."""
        if not (state := machine.disk.root / "state").is_dir():
            return
        copy = self._folder / f"{machine.name}.copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(state, copy)
        self._copies[machine.name] = copy
        self._tell(f"{machine.name}: its state is copied")

    def roll_back(self, machine: Machine) -> None:
        """Bring back the copy of local state."""
        if (copy := self._copies.get(machine.name)) is None:
            return
        shutil.rmtree(machine.disk.root / "state", ignore_errors=True)
        shutil.copytree(copy, machine.disk.root / "state")
        self._forget(machine)
        self._tell(f"{machine.name}: its state is rolled back to the copy")

    def _forget(self, machine: Machine) -> None:
        machine.disk.settle()
        machine.touched, machine.forgetful = set(machine.contents), True

    def power_cut(self, machine: Machine) -> None:
        """Cut the power of a machine that does nothing."""
        self._tell(f"{machine.name}: its power is cut while it does nothing")
        machine.cut_power()

    def vanish(self) -> None:
        """Let packs vanish from the vault, now, whatever is going on."""
        self._look()
        vault = self.stores["vault"]
        packs = [name for name in sorted(vault.objects) if name.startswith(self._fragile)]
        packs = [name for name in packs if name.startswith(("data/", "page/"))]
        for name in self.chance.sample(packs, min(len(packs), self.chance.choice((1, 3, len(packs))))):
            del vault.objects[name]
            self._tell(f"vault: {name} vanished in the middle of a session")
        self._look()
