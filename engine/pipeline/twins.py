"""Packs that vault and cache have in common are made once: a first backup sends both the same records in one order.

A pack is its session's header, its records and what follows from them, so the same records in the same order make the
same pack, byte for byte. A record is told by its header, whose nonce is drawn at random. What one lane finishes the
other takes as long as anybody holds it: nothing is kept for its sake, and no lane waits longer than for the other's
hashing.
"""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from engine.pack import FinishedPack, PackBuilder


class Twins:
    """Finishes the data packs of one session, from worker threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished: WeakValueDictionary[bytes, FinishedPack] = WeakValueDictionary()
        self._making: dict[bytes, threading.Lock] = {}
        self.shared = 0  # packs that were taken from the other lane

    def finish(self, builder: PackBuilder) -> FinishedPack:
        """Return the finished pack of `builder`, which another one with the same records may have made (*sync*)."""
        key = builder.content_key()
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            try:
                with self._lock:
                    finished = self._finished.get(key)
                if finished is None:
                    finished = builder.finish()
                    with self._lock:
                        self._finished[key] = finished
                else:
                    self.shared += 1
                return finished
            finally:
                with self._lock:
                    self._making.pop(key, None)
