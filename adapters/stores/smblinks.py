"""The links of one store: taken from those that idle or made anew, given back or given up; every error renamed here."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from adapters.stores.calls import Abandoned, Call
from adapters.stores.smbconnection import Login
from adapters.stores.smberrors import GONE, NONSENSE, is_lost, meaning_of
from adapters.stores.smbwire import Link
from engine.errors import ForebayError, StoreUnavailable

T = TypeVar("T")

IDLE_MAX: Final = 4
WAIT_MAX_S: Final = 1.0  # for a link to idle, where to make another one takes longer
_BROKEN: Final = {
    "gone": (StoreUnavailable, GONE),
    "garbled": (StoreUnavailable, NONSENSE),
}


class LinkLost(StoreUnavailable):
    """The connection broke, or could not be made."""


class Links:
    """Links to one share.

    `password`: asked for at each login, so that a changed one is taken up; it raises StoreRejected if there is none.
    `where`: what messages call the store.
    """

    def __init__(self, login: Login, password: Callable[[], str | None], where: str, connect_timeout_s: float) -> None:
        self.where = where
        self._login, self._password, self._connect_timeout_s = login, password, connect_timeout_s
        self._changed = threading.Condition()
        self._idle: list[Link] = []
        self._used_now = 0
        self._login_s = 0.0  # what it took to make the last link
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Give up the links that idle; later calls make new ones."""
        with self._changed:
            idle = list(self._idle)
            self._idle.clear()
        _close_all(idle)

    def take(self, call: Call, *, fresh: bool = False, brief: bool = False) -> tuple[Link, bool]:
        """Return a link for this call alone, and whether it had been used before.

        `fresh`: none that idled. `brief`: if none idles, it may be that one does before another one is made.
        Raises: as `use`.
        """
        if not fresh:
            with self._changed:
                if brief and not self._idle and self._used_now:
                    self._changed.wait_for(lambda: bool(self._idle), min(self._login_s, WAIT_MAX_S))
                while self._idle:
                    link = self._idle.pop()
                    if link.is_alive:
                        call.waits_on(link.cut)
                        return link, True
        began_s = time.monotonic()
        link = Link(self._login)
        call.waits_on(link.cut)
        try:
            password = self._password()
            with self.renaming(link):
                link.open(password, self._connect_timeout_s)
            self._login_s = time.monotonic() - began_s
            call.progress()
        except BaseException:
            link.close()
            raise
        return link, False

    def give(self, link: Link) -> None:
        """Take back a link on which nothing is under way."""
        with self._changed:
            if link.is_alive and len(self._idle) < IDLE_MAX:
                self._idle.append(link)
                self._changed.notify()
                return
        link.close()

    def use(self, call: Call, work: Callable[[Link], T], name: str = "", *, brief: bool = True) -> T:
        """Return `work(link)`; once more if a link that had idled turns out to be dead: every work may be repeated.

        `name`: the object it is about, for messages. `brief`: it is no more than a few requests.

        Raises: StoreUnavailable, StoreRejected, what `work` raises of ours; the error itself if no table knows it.
        """
        link, used = self.take(call, brief=brief)
        try:
            return self._used(link, work, name)
        except LinkLost:
            if not used:
                raise
        call.progress()
        self.close()  # what else idles has been idle for longer
        link, _ = self.take(call, fresh=True)
        return self._used(link, work, name)

    def _used(self, link: Link, work: Callable[[Link], T], name: str) -> T:
        with self._changed:
            self._used_now += 1
        try:
            with self.renaming(link, name):
                return work(link)
        finally:
            with self._changed:
                self._used_now -= 1
            self.give(link)

    @contextmanager
    def renaming(self, link: Link, name: str = "") -> Iterator[None]:
        """Raise our error for a foreign one, and close a link that is of no use any more. Raises: as `use`."""
        try:
            yield
        except (ForebayError, Abandoned):
            raise
        except Exception as error:
            lost = is_lost(error) or not link.is_alive
            meaning = meaning_of(error) or _BROKEN.get(link.why_broken() or "")
            if lost:
                link.close()
            if meaning is None:
                raise
            kind, advice = meaning
            about = f", object {name}" if name else ""
            if lost and kind is StoreUnavailable:
                kind = LinkLost
            raise kind(f"{self.where}{about}: {advice}") from error


def _close_all(links: list[Link]) -> None:
    for link in links:
        link.close()
