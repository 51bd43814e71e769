"""Reports: how a system stands, written by itself for whoever looks after many (docs/FORMAT.md, "Report").

A report is sealed under the system's listing key and signed by it, as its roots are: the store's owner and the other
systems of its domain learn when one was written and how long it is, no more. Its name ends with an order that only
grows, so that a listing shows which one is the newest.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.errors import StoreCorrupt
from engine.names import PointId, ReportId
from engine.reportbody import ReportBody, unprintable
from engine.signed import Header, Kind, Verify, decode_body
from engine.subkeys import report_key
from engine.vault.identity import Identity

REPORT_BYTES_MAX: Final = 65_536
ORDER_END: Final = 1 << 62  # an order from here on is forged: an honest one is hardly more than a clock's ms

KIND: Final = Kind("report", b"FBRPRT\x00\x01", b"forebay report v1\0", 0, report_key, REPORT_BYTES_MAX)

_BODY: Final = msgspec.msgpack.Decoder(ReportBody)


class Report(msgspec.Struct, frozen=True):
    """A report that was opened."""

    domain: bytes
    system: bytes
    id: ReportId
    certificate: int
    body: ReportBody


def own_report(body: ReportBody, number: ReportId, identity: Identity) -> tuple[str, bytes]:
    """Return (name, bytes) of a report of the system that `identity` is of."""
    assert not unprintable(body), "a report's texts are clipped"
    point = PointId(number.order, number.incarnation)
    header = Header(identity.domain, identity.system, point, b"", identity.certificate_number)
    data = KIND.seal(header, msgspec.msgpack.encode(body), identity.listing_key, identity.signer)
    assert len(data) <= REPORT_BYTES_MAX, "all that a report says is bounded"
    return number.name(identity.system), data


def report_header(name: str, data: bytes) -> Header:
    """Return what a report says without any key, checked against `name` only: nothing of it is signed yet.

    Raises: StoreCorrupt, FormatTooNew.
    """
    if len(data) > REPORT_BYTES_MAX:
        raise StoreCorrupt(name, f"no report is larger than {REPORT_BYTES_MAX} bytes")
    header = KIND.header(name, data)
    if ReportId(header.point.order, header.point.incarnation).name(header.system) != name:
        raise StoreCorrupt(name, "its header names another report: it was copied here from another name")
    return header


def open_report(name: str, data: bytes, listing_key: bytes, verify: Verify) -> Report:
    """Return the report in `data`, the object stored under `name`.

    Raises: StoreCorrupt (cut, flipped, swapped, not signed by the system), FormatTooNew, and what `verify` raises.
    """
    header = report_header(name, data)
    _, plain = KIND.open(name, data, listing_key, verify)
    body = decode_body(name, _BODY, plain)
    if unprintable(body):
        raise StoreCorrupt(name, "its texts hold control characters")
    number = ReportId(header.point.order, header.point.incarnation)
    return Report(header.domain, header.system, number, header.certificate, body)
