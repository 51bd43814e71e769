"""The TCP proxy with faults that lies beside the checkout, in front of a real server."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.conftest import services
from tests.samba import free_port

CONNECT_TRIES_MAX = 100_000


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Any]:
    """Yield a ChaosProxy of this event loop in front of a port of the loopback; `proxy.port` is its own."""
    spec = importlib.util.spec_from_file_location("chaos_proxy", services() / "chaos_proxy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = await module.ChaosProxy("127.0.0.1", port).start()
    try:
        yield found
    finally:
        found.mode = "ok"
        await found.stop()


class ProxyProcess:
    """The same proxy as a process of its own, for commands that run as processes or in this one's thread."""

    def __init__(self, port: int) -> None:
        self.port, self._control = free_port(), free_port()
        words = [str(self.port), "127.0.0.1", str(port), "--control", str(self._control)]
        self._process = subprocess.Popen(
            [sys.executable, services() / "chaos_proxy.py", *words], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline()
        self.tell()  # it listens once it answers

    def tell(self, **settings: object) -> dict[str, Any]:
        """Change how the proxy behaves and return its state."""
        for _ in range(CONNECT_TRIES_MAX):
            with suppress(ConnectionRefusedError):
                control = socket.create_connection(("127.0.0.1", self._control), timeout=10)
                break
        else:
            raise AssertionError("the proxy does not listen")
        with control, control.makefile("rw") as lines:
            lines.write(json.dumps(settings) + "\n")
            lines.flush()
            state: dict[str, Any] = json.loads(lines.readline())
            return state

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
