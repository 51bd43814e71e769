"""Points, readers and restores."""
