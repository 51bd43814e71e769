"""Passphrases: the one thing a person must keep. Generated ones are seven words; weak ones are refused."""

from __future__ import annotations

import secrets
import unicodedata
from typing import Final

from engine.errors import ConfigError

WORDS: Final = 7  # of a list of 2048: 77 bits
LENGTH_MAX: Final = 1024
GUESSES_LOG10_MIN: Final = 10.0  # zxcvbn's best class, "very unguessable"; each guess costs an Argon2id run
_JUDGED_MAX: Final = 72  # zxcvbn refuses more; what follows only adds strength


def generate() -> str:
    """Return seven random words, in lower case, separated by spaces."""
    # Imported here: the word list is a file that only `init` needs.
    from mnemonic import Mnemonic

    words = Mnemonic("english").wordlist
    return " ".join(secrets.choice(words) for _ in range(WORDS))


def normalise(passphrase: str) -> str:
    """Return the passphrase in Unicode form NFC: the same keys give the same bytes on every system.

    Raises: ConfigError if it is empty, too long, or contains control characters.
    """
    normal = unicodedata.normalize("NFC", passphrase)
    if not normal.strip():
        raise ConfigError("the passphrase is empty; give one, or let 'forebay init' generate one")
    if len(normal) > LENGTH_MAX:
        raise ConfigError(f"the passphrase has {len(normal)} characters; at most {LENGTH_MAX} are allowed")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in normal):
        raise ConfigError("the passphrase contains control characters (a line break or a tab?); leave them out")
    return normal


def check_strength(passphrase: str) -> None:
    """Return if the passphrase is strong enough to found a domain with.

    Raises: ConfigError, with advice and without the passphrase.
    """
    # Imported here: it loads dictionaries, which only `init` needs.
    from zxcvbn import zxcvbn  # type: ignore[import-untyped]

    judged = zxcvbn(normalise(passphrase)[:_JUDGED_MAX])
    if float(judged["guesses_log10"]) >= GUESSES_LOG10_MIN:
        return
    # Only zxcvbn's own advice is quoted, never `sequence` or `password`, which repeat the passphrase.
    warning = str(judged["feedback"]["warning"]).rstrip(".")
    reason = f": {warning[0].lower()}{warning[1:]}" if warning else ""
    raise ConfigError(
        f"the passphrase is too weak{reason}; take several uncommon words, or let 'forebay init' generate seven"
    )
