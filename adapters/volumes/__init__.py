"""Volumes to read and targets to restore to."""
