"""An upload gives the state directory to who waits for it; a session to nobody; leftovers cost nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from adapters.state import turns
from adapters.state.directory import StateDirectory
from engine.errors import SessionRunning


def test_a_holder_that_offers_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path):
        with pytest.raises(SessionRunning):
            StateDirectory.open(tmp_path)
        assert not turns.wanted(tmp_path)


def test_a_holder_that_offers_hears_who_waits_and_hands_over(tmp_path: Path) -> None:
    got: list[bool] = []

    def wait() -> None:
        with StateDirectory.open(tmp_path):
            got.append(turns.wanted(tmp_path))

    with StateDirectory.open(tmp_path):
        turns.offer(tmp_path)
        waiting = threading.Thread(target=wait)
        waiting.start()
        heard = threading.Event()
        while not heard.is_set() and waiting.is_alive():
            if turns.wanted(tmp_path):
                heard.set()
        assert not got
    waiting.join(60)
    # Whoever has it now is wanted by nobody, and offers nothing.
    assert got == [False]
    assert not (tmp_path / turns.OFFERED).exists()


def test_what_a_killed_process_left_costs_nothing(tmp_path: Path) -> None:
    turns.offer(tmp_path)
    (tmp_path / turns.WANTED).touch()
    with StateDirectory.open(tmp_path):
        assert not turns.wanted(tmp_path)
        with pytest.raises(SessionRunning):
            StateDirectory.open(tmp_path)


def test_a_holder_that_takes_its_offer_back_is_not_waited_for_longer(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path):
        turns.offer(tmp_path)
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                StateDirectory.open(tmp_path).close()
            except SessionRunning as error:
                failed.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not turns.wanted(tmp_path) and waiting.is_alive():
            pass
        turns.begin(tmp_path)
        waiting.join(60)
        assert len(failed) == 1
