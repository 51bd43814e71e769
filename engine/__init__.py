"""Computes and coordinates: no sockets, no files, no OS calls (docs/ARCHITECTURE.md)."""
