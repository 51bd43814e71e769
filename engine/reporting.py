"""Writing a system's report to its vault, with a copy in its cache.

Rules:
- It comes after everything else and costs nothing but a log line, and `WITHIN_S` at most, if it cannot be put.
- A store is written to only if its format object is that of the system's own: what is not there is away, never empty.
- The newest `KEPT` are kept. Older ones go where deleting is allowed; that it is not is no error.
- A report says all that those before it said. So nothing queues up while the vault is away: what is noted is only that
  it has not got the newest, and whoever reaches it next writes a report of how things stand then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final

import anyio
import msgspec

from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.events import EventLog
from engine.names import ReportId
from engine.ports import ObjectStore
from engine.report import ORDER_END, own_report
from engine.reportbody import ReportBody
from engine.stage import flush
from engine.vault.formatobject import StoreKind, read_format
from engine.vault.identity import Identity

log = EventLog("report")

KEPT: Final = 8
WITHIN_S: Final = 15.0  # for each store
_REMOVED_MAX: Final = 32  # in one go: what piled up where deleting was refused goes little by little
_LISTED_MAX: Final = 100_000


class _Target(msgspec.Struct, eq=False):
    """A store on the way to its report; `looked`: it is the right one, and `listed` are the reports it keeps."""

    kind: StoreKind
    objects: ObjectStore
    looked: bool = False
    listed: list[ReportId] = []
    error: StoreError | None = None


class Reporter:
    """Brings one report to the stores of a system: `prepare` while there is other work, `put` once all is done."""

    def __init__(self, identity: Identity, stores: Mapping[StoreKind, ObjectStore], within_s: float = WITHIN_S) -> None:
        """`within_s`: how long one store may take to be looked at, and to be put to."""
        self._identity, self._within_s = identity, within_s
        self._targets = [_Target(kind, objects) for kind, objects in stores.items()]

    def prepared(self, kind: StoreKind) -> bool:
        """Tell whether `prepare` has found this store to be there."""
        return any(target.looked for target in self._targets if target.kind == kind)

    async def prepare(self, kind: StoreKind) -> None:
        """Look whether a store is there, and remove from it what the next report makes too many."""
        await self._each([target for target in self._targets if target.kind == kind], self._look)

    async def put(self, body: ReportBody, incarnation: bytes, leave_out: Collection[StoreKind] = ()) -> list[StoreKind]:
        """Put a report, the same bytes everywhere but in the stores to `leave_out`; return which have it now.

        `incarnation` (8 bytes) of the state directory.
        """
        targets = [target for target in self._targets if target.kind not in leave_out]
        await self._each([target for target in targets if not target.looked], self._look)
        known = [number.order for target in targets for number in target.listed if number.order < ORDER_END]
        number = ReportId(max(body.time, max(known, default=0) + 1), incarnation)
        name, data = own_report(body, number, self._identity)

        async def put(target: _Target) -> None:
            await target.objects.put(name, data)
            await flush(target.objects)

        await self._each([target for target in targets if target.looked], put)
        for target in targets:
            if target.error is not None:
                log.warning("report_not_put", component=target.kind, error=str(target.error))
        there = [target.kind for target in targets if target.error is None]
        log.info("report_put", object=name, stores=there)
        return there

    async def _each(self, targets: Iterable[_Target], work: Callable[[_Target], Awaitable[None]]) -> None:
        """Do something with all of these stores side by side; what keeps it from that is the store's `error`."""

        async def one(target: _Target) -> None:
            target.error = None
            try:
                with anyio.fail_after(self._within_s):
                    await work(target)
            except TimeoutError:
                target.error = StoreUnavailable(f"the {target.kind} did not answer within {self._within_s:g} s")
            except StoreError as error:
                target.error = error

        async with anyio.create_task_group() as group:
            for target in targets:
                group.start_soon(one, target)

    async def _look(self, target: _Target) -> None:
        """See that it is the right store, and which reports of this system it has. Raises: StoreError."""
        await target.objects.probe()  # one try: what is away is not waited for
        wanted = self._identity.cache if target.kind == "cache" else self._identity.vault
        found = await read_format(target.objects, target.kind, "write")
        if found.store != wanted:
            raise StoreRejected(f"it is not the {target.kind} of this system (store {found.store.hex()})")
        system = self._identity.system
        listed: list[ReportId] = []
        async for info in target.objects.list(f"report/{system.hex()}/"):
            parsed = ReportId.parse(info.name)
            if parsed is not None and len(listed) < _LISTED_MAX:
                listed.append(parsed[1])
        # What has a number that no report has goes first.
        listed.sort(key=lambda number: (number.order < ORDER_END, number))
        try:
            for number in listed[: max(0, len(listed) + 1 - KEPT)][:_REMOVED_MAX]:
                await target.objects.delete(number.name(system))
        except (StoreRejected, StoreUnavailable) as error:
            log.info("old_reports_kept", component=target.kind, error=str(error))
        target.listed, target.looked = listed, True
