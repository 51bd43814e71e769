"""Change trackers."""
