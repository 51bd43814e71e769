"""The configuration file: one TOML file, read into frozen structs (DESIGN.md §7; deploy/forebay.toml)."""

from __future__ import annotations

from adapters.config.buckets import Bucket
from adapters.config.load import ConfigProblems, load_cache, load_config, load_vault, parse_config
from adapters.config.model import Cache, Config, Queue, Spool, System, Vault, Volume
from adapters.config.places import Place, Remote, Share
from adapters.config.secret import Secret

__all__ = [
    "Bucket",
    "Cache",
    "Config",
    "ConfigProblems",
    "Place",
    "Queue",
    "Remote",
    "Secret",
    "Share",
    "Spool",
    "System",
    "Vault",
    "Volume",
    "load_cache",
    "load_config",
    "load_vault",
    "parse_config",
]
