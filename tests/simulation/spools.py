"""The spool of a simulated machine: the real folder store on its disk, and what must lie in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from adapters.stores.folder import FolderStore
from adapters.stores.plainnames import TMP
from engine.block import Bytes
from engine.ports import ObjectInfo
from tests.simulation.stores import Broken, SimStore

OWN: Final = ("data/", "page/", "index/", "root/", "note/")


@dataclass
class SpoolFolder:
    """What was put into the folder `path` by whoever was on this machine, whether it is there or not.

    `written`: what was put whole and not deleted since; `tried`: what was ever put. `unsynced`: what no flush has
    followed, which a power cut may take. `ruined`: what the world took or damaged. `left`: what was deleted and not
    put again, though a power cut may have brought it back.
    """

    path: Path
    written: dict[str, bytes] = field(default_factory=dict)
    tried: dict[str, bytes] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)
    ruined: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    @property
    def there(self) -> bool:
        """Whether the folder is there."""
        return self.path.is_dir()

    def get(self, name: str) -> bytes | None:
        """Return what lies under a name."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of what lies here and begins with `prefix`."""
        found = [str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file()]
        return sorted(name for name in found if name.startswith(prefix) and not name.startswith(f"{TMP}/"))

    def store(self) -> SimStore:
        """Return what lies here now, as a store to look into."""
        objects = {name: data for name in self.names() if (data := self.get(name)) is not None}
        return SimStore("spool", objects, dict(self.written))

    def reckon(self) -> None:
        """Take note of puts that were cut off and have happened all the same, and of deletes that have not."""
        for name, data in self.tried.items():
            if name not in self.written and self.get(name) == data:
                self.written[name] = data

    def after_cut(self) -> None:
        """Take note of what a power cut has taken. Raises: Broken: something that was flushed."""
        if not self.there:
            return
        for name, data in list(self.written.items()):
            if self.get(name) == data or name in self.ruined:
                continue
            if name not in self.unsynced:
                raise Broken(f"a power cut took {name} out of the spool after its flush")
            del self.written[name]
        self.unsynced.clear()

    def ruin(self, name: str, data: bytes | None) -> None:
        """Let an object of the spool have other bytes, or vanish."""
        self.ruined.add(name)
        path = self.path / name
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


class SpoolStore(FolderStore):
    """The spool as the agent has it: a folder store that tells `folder` and `deletes` what is done in it.

    `may` tells whether the machine may "put" or "delete" an object of this name; `puts` and `sees` are told what it
    puts, and which names a whole listing gave.
    """

    folder: SpoolFolder
    may: Callable[[str, str], bool]
    puts: Callable[[str, bytes], None]
    sees: Callable[[set[str]], None]
    deletes: Callable[[str], None]

    def __init__(self, root: Path, owner: str, sync: Literal["put", "flush"]) -> None:
        super().__init__(root, owner, sync)
        self._durable_puts = sync == "put"
        self._mine: set[str] = set()  # put by this store object, which alone knows that they want a flush

    async def put(self, name: str, data: Bytes) -> None:
        """See `ObjectStore.put`."""
        if not self.may("put", name):
            raise Broken(f"{name} is put into a spool by a system that must not")
        content = bytes(data)
        self.puts(name, content)
        self.folder.tried[name] = content
        self.folder.unsynced.add(name)
        self.folder.left.discard(name)
        await super().put(name, data)
        self.folder.written[name] = content
        if self._durable_puts:
            self.folder.unsynced.discard(name)
        else:
            self._mine.add(name)

    async def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        if not (self.may("put", name) and name.startswith(OWN)):
            raise Broken(f"{name} is deleted from a spool by a system that must not")
        self.deletes(name)
        self.folder.written.pop(name, None)
        self.folder.left.add(name)
        await super().delete(name)

    async def flush(self) -> None:
        """See `Barrier.flush`."""
        before = set(self._mine)
        await super().flush()
        self._mine -= before
        self.folder.unsynced -= before

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        found: set[str] = set()
        async for info in super().list(prefix, after):
            found.add(info.name)
            yield info
        self.sees(found)
