"""The configuration file: one TOML file, read into frozen structs (DESIGN.md §7; deploy/forebay.toml)."""

from __future__ import annotations

from adapters.config.load import ConfigProblems, load_config, load_vault, parse_config
from adapters.config.model import Cache, Config, Queue, Spool, System, Vault, Volume
from adapters.config.secret import Secret

__all__ = [
    "Cache",
    "Config",
    "ConfigProblems",
    "Queue",
    "Secret",
    "Spool",
    "System",
    "Vault",
    "Volume",
    "load_config",
    "load_vault",
    "parse_config",
]
