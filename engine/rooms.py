"""Memory for packs that is used again: fresh memory costs a page fault for every 4 KiB, and its pages a clearing.

A room is page-aligned, so that what lies in it can go to a disk directly. It comes back by itself when the last view of
it is gone, whoever held that: a put that was given up may still be reading from it in a thread nobody waits for.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Final

import numpy as np

ALIGNMENT: Final = 4096  # bytes: a multiple of every usual sector size, and the size of a page
FREE_ROOMS_MAX: Final = 4  # of one size, kept for the next packs


class Rooms:
    """Rooms of `room_bytes` bytes each, for any threads; at most `free_max` unused ones are kept."""

    def __init__(self, room_bytes: int, free_max: int = FREE_ROOMS_MAX) -> None:
        self.room_bytes, self._free_max = room_bytes, free_max
        self._free: deque[np.ndarray[tuple[int], np.dtype[np.uint8]]] = deque()

    def take(self) -> memoryview:
        """Return a room nobody else sees; what is in it is left from its last use."""
        try:
            memory = self._free.pop()  # what was used last is in the caches still
        except IndexError:
            memory = np.empty(self.room_bytes + ALIGNMENT, dtype=np.uint8)
        start = -int(memory.__array_interface__["data"][0]) % ALIGNMENT
        # Every view of the room keeps `room` alive, none keeps only `memory`: `room` goes when the last of them does.
        room = memory[start : start + self.room_bytes]
        weakref.finalize(room, self._came_back, memory).atexit = False
        return room.data

    def _came_back(self, memory: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        # Called wherever the last view ends, in any thread: a deque needs no lock.
        if len(self._free) < self._free_max:
            self._free.append(memory)
