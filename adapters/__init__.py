"""The outside world, one file each; main.py is the composition root."""
