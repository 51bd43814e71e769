"""The TCP proxy with faults that lies beside the checkout, in front of a real server."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.conftest import services


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
