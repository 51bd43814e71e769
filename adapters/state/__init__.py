"""Local state: everything under state_dir."""
