from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemonic import Mnemonic

from engine.errors import ConfigError
from engine.vault import passphrase


def test_a_generated_passphrase_has_seven_words_of_the_list_and_is_strong() -> None:
    words = set(Mnemonic("english").wordlist)
    assert len(words) == 2048
    seen = {passphrase.generate() for _ in range(20)}
    assert len(seen) == 20
    for one in seen:
        assert len(one.split(" ")) == 7
        assert set(one.split(" ")) <= words
        passphrase.check_strength(one)


@pytest.mark.parametrize(
    "weak",
    ["letmein", "hunter2hunter2", "Passw0rd123!", "aaaaaaaaaaaaaaaaaaaaaaaa", "forebay", "qwertyuiop", "x" * 500],
)
def test_a_weak_passphrase_is_refused_without_being_repeated(weak: str) -> None:
    with pytest.raises(ConfigError, match="too weak") as caught:
        passphrase.check_strength(weak)
    assert weak not in str(caught.value).replace("'forebay init'", "")


@pytest.mark.parametrize(
    "strong", ["copper lantern drifting north", "Zq7#fL0v!pX2", "ein Käfer fällt vom Dach herab", "7 ways " * 20 + "x"]
)
def test_a_strong_passphrase_passes_whatever_its_length(strong: str) -> None:
    passphrase.check_strength(strong)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("two\nlines", "control"),
        ("tab\there", "control"),
        ("\ud800", "control"),
        ("x" * 1025, "at most 1024"),
    ],
)
def test_what_cannot_be_a_passphrase_is_refused_in_a_sentence(bad: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        passphrase.normalise(bad)


def test_the_same_letters_are_the_same_passphrase_however_they_were_typed() -> None:
    assert passphrase.normalise("Ka\u0308fer") == passphrase.normalise("K\u00e4fer") == "K\u00e4fer"


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    with suppress(ConfigError):
        passphrase.check_strength(text)


def test_the_dictionaries_are_not_loaded_before_they_are_needed() -> None:
    code = "import sys, engine.vault.founding as _; sys.exit('zxcvbn' in sys.modules or 'mnemonic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
