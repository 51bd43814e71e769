from __future__ import annotations

import copy
import pickle

import pytest

from adapters.config import Secret


def test_a_secret_shows_itself_nowhere_but_when_revealed() -> None:
    secret = Secret("correct horse")
    assert secret.reveal() == "correct horse"
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert "horse" not in shown
        assert "***" in shown


def test_a_secret_is_neither_pickled_nor_copied() -> None:
    for action in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="not to be pickled"):
            action(Secret("x"))


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret("x")
