"""Choosing the passphrase of a new domain: given, typed, or generated and shown once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from adapters.cli import frame
from adapters.config.secret import Secret
from engine.errors import ConfigError
from engine.vault import passphrase as rules

TRIES_MAX: Final = 3


def choose(file: Path | None, *, generate: bool) -> Secret:
    """Return a passphrase that is strong enough to found a domain with.

    `generate`: make one and write it to the new file `file`. Otherwise it comes from `file` or FOREBAY_PASSPHRASE;
    on a terminal without either a generated one is offered. Raises: ConfigError.
    """
    if generate:
        return _written(file)
    if file is not None or os.environ.get("FOREBAY_PASSPHRASE"):
        given = frame.read_passphrase(file)
        rules.check_strength(given.reveal())
        return given
    if not _on_terminal():
        raise ConfigError(
            "this vault is new and needs a passphrase: give --passphrase-file FILE, with --generate to have one made "
            "and written there, or set FOREBAY_PASSPHRASE"
        )
    return _offered()


def _on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _written(file: Path | None) -> Secret:
    """Write a generated passphrase to a new owner-only file: it is durable before anything is sealed with it."""
    if file is None:
        raise ConfigError("--generate needs --passphrase-file FILE: the new file the passphrase is written to")
    words = rules.generate()
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(words + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise ConfigError(f"passphrase file {file} exists: leave --generate out to use what is in it") from None
    except OSError as error:
        raise ConfigError(f"passphrase file {file} cannot be written: {error.strerror or error}") from None
    return Secret(words)


def _offered() -> Secret:
    words = rules.generate()
    click.echo(
        "\nThis vault is new, and everything in it will be sealed with a passphrase. This one was generated:\n\n"
        f"    {words}\n\n"
        "Write it down and keep it away from this machine: a restore elsewhere needs it, and nobody can recover it.\n",
        err=True,
    )
    typed = click.prompt(
        "Press Enter to take it, or type one of your own",
        default="",
        show_default=False,
        hide_input=True,
        err=True,
    )
    if typed:
        rules.check_strength(typed)
        if click.prompt("Type it again", hide_input=True, err=True) != typed:
            raise ConfigError("the two passphrases differ: run 'forebay init' again")
        return Secret(typed)
    for _ in range(TRIES_MAX):
        last = click.prompt("Type its last two words, to show that you have it", err=True)
        if last.lower().split() == words.split()[-2:]:
            return Secret(words)
        click.echo("These are not the last two words of the seven above.", err=True)
    raise ConfigError("these were not its last two words: run 'forebay init' again and write the passphrase down first")
