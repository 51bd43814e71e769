"""The thin line of the bench: bytes come through it whole, never sooner than its rate and delay allow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from deploy.bench.line import Line

RATE = 4_000_000
DELAY_S = 0.05
CONTENT = bytes(range(256)) * 2000  # 512 kB


@pytest.fixture
def echo() -> Iterator[int]:
    """Run a server that gives back what it is sent, once all of it is there; yield its port."""

    def serve() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as incoming:
                connection.sendall(incoming.read())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def sent(port: int, answers: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as incoming:
        connection.sendall(CONTENT)
        connection.shutdown(socket.SHUT_WR)
        answers.append(incoming.read())


def test_two_connections_share_the_rate_and_are_late_by_the_delay(echo: int) -> None:
    answers: list[bytes] = []
    with Line(echo, RATE, DELAY_S) as line:
        began_s = time.perf_counter()
        threads = [threading.Thread(target=sent, args=(line.port, answers)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - began_s
        full, up_s = line.fullness()
    assert answers == [CONTENT] * 2
    # A round trip for the connection, one for the bytes, and each way all bytes one after the other, but for what
    # comes back of one while the other is still on its way.
    assert took_s >= 4 * DELAY_S + 3 * len(CONTENT) / RATE
    assert up_s >= 0.9999 * 2 * len(CONTENT) / RATE  # a sum of many small times is not exact
    assert 0 < full <= 1.0001
