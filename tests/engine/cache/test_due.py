"""When a verification may begin: cases, every hour of a week, both changes of the clock, and what always holds."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.attempt import Attempt
from engine.cache.due import Chance, next_chance
from engine.policy import BusinessHours, VerifyPolicy
from tests.engine.cache.zones import BERLIN, HAVANA, LORD_HOWE, NEW_YORK, ms

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
ALWAYS = VerifyPolicy()
OUTSIDE = VerifyPolicy(in_business_hours=False)
OFFICE = BusinessHours()
NEVER_FREE = BusinessHours(frozenset(range(7)), 0, 24 * 60)
SUNDAY = frozenset({6})


def attempt_at(started_ms: int, *, running: bool = False, completed: bool = True) -> Attempt:
    return Attempt(
        attempt="0" * 32, store="1" * 32, started_ms=started_ms, ended_ms=None if running else started_ms + HOUR,
        completed=completed and not running,
    )  # fmt: skip


def ask(
    now_ms: int,
    *,
    last_ms: int | None = None,
    first_ms: int | None = 0,
    policy: VerifyPolicy = OUTSIDE,
    hours: BusinessHours = OFFICE,
    zone: tzinfo = BERLIN,
    running: bool = False,
    completed: bool = True,
) -> Chance:
    last = None if last_ms is None else attempt_at(last_ms, running=running, completed=completed)
    return next_chance(policy, hours, now_ms=now_ms, zone=zone, first_session_ms=first_ms, last=last)


def due_at(due: str | int, now: str | int | None = None, **more: object) -> Chance:
    """Ask at `now` (at once, if it is not given) about the first verification, due since the first session ended."""
    due_ms = due if isinstance(due, int) else ms(due)
    now_ms = due_ms if now is None else now if isinstance(now, int) else ms(now)
    return ask(now_ms, first_ms=due_ms, **more)  # type: ignore[arg-type]


def test_none_is_due_before_a_session_has_ended() -> None:
    expected = Chance(may_start=False, due_ms=None, next_ms=None, reason="no_session")
    assert ask(5, first_ms=None) == expected
    assert ask(5, first_ms=None, policy=ALWAYS) == expected


def test_the_first_one_is_due_when_the_first_session_has_ended() -> None:
    now = ms("2026-06-01 12:00")
    assert due_at(now, policy=ALWAYS) == Chance(may_start=True, due_ms=now, next_ms=now, reason="due")
    free = ms("2026-06-01 18:00")
    assert due_at(now) == Chance(may_start=False, due_ms=now, next_ms=free, reason="business_hours")


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize("every_h", [1, 24, 720])
def test_each_later_one_is_due_every_after_the_start_of_the_one_before(every_h: int, completed: bool) -> None:
    policy = VerifyPolicy(every_s=every_h * 3600)
    last = ms("2026-06-01 12:00")
    due = last + every_h * HOUR
    asked = {at: ask(at, last_ms=last, policy=policy, completed=completed) for at in (last, due - 1, due, due + DAY)}
    early = Chance(may_start=False, due_ms=due, next_ms=due, reason="not_due")
    assert asked[last] == asked[due - 1] == early
    assert asked[due] == Chance(may_start=True, due_ms=due, next_ms=due, reason="due")
    assert asked[due + DAY] == Chance(may_start=True, due_ms=due, next_ms=due + DAY, reason="due")


@pytest.mark.parametrize("hour", range(7 * 24))
def test_every_hour_of_a_week(hour: int) -> None:
    now = ms("2026-06-01 00:00") + hour * HOUR  # a Monday
    day, clock = divmod(hour, 24)
    office = day < 5 and 8 <= clock < 18
    free = now + (18 - clock) * HOUR if office else now
    # Due now: it begins, or waits for 18:00. Not due before now: the same, and nothing begins earlier.
    assert due_at(now).may_start is not office
    assert due_at(now).next_ms == free
    early = ask(now - 1, last_ms=now - DAY)
    assert (early.may_start, early.due_ms, early.next_ms, early.reason) == (False, now, free, "not_due")
    # With in_business_hours it always begins as soon as it is due.
    assert due_at(now, policy=ALWAYS) == Chance(may_start=True, due_ms=now, next_ms=now, reason="due")
    # It has waited for 27 h: it begins, whatever the hour; a millisecond earlier the hour counted.
    waited = due_at(now - 27 * HOUR, now)
    assert (waited.may_start, waited.reason) == (True, "forced" if office else "due")
    before = due_at(now - 27 * HOUR + 1, now)
    assert before.may_start is not office
    assert before.next_ms == (now + 1 if office else now)
    # The edges of the hour.
    assert due_at(now - 1).may_start is not (day < 5 and 8 < clock <= 18)
    # One that runs is left alone, and none begins beside it.
    beside = ask(now, last_ms=now - 3 * DAY, running=True)
    assert (beside.may_start, beside.reason) == (False, "running")


@pytest.mark.parametrize(
    ("due", "hours", "forced_h", "free"),
    [
        # The hours of the default: the end of the day, the weekend.
        ("2026-06-01 07:59:59.999", OFFICE, 27, "2026-06-01 07:59:59.999"),
        ("2026-06-01 08:00", OFFICE, 27, "2026-06-01 18:00"),
        ("2026-06-01 17:59:59.999", OFFICE, 27, "2026-06-01 18:00"),
        ("2026-06-01 18:00", OFFICE, 27, "2026-06-01 18:00"),
        ("2026-06-05 17:00", OFFICE, 27, "2026-06-05 18:00"),
        ("2026-06-06 12:00", OFFICE, 27, "2026-06-06 12:00"),
        # force_after comes before the end of the hours.
        ("2026-06-01 08:00", OFFICE, 1, "2026-06-01 09:00"),
        ("2026-06-01 08:00", OFFICE, 10, "2026-06-01 18:00"),
        ("2026-06-01 08:00", OFFICE, 9, "2026-06-01 17:00"),
        # Hours that never end.
        ("2026-06-01 12:34", NEVER_FREE, 27, "2026-06-02 15:34"),
        ("2026-06-01 12:34", NEVER_FREE, 720, "2026-07-01 12:34"),
        # A whole day off; hours that last until midnight, and end where the next day has none.
        ("2026-06-01 12:00", BusinessHours(frozenset({0, 1}), 0, 24 * 60), 720, "2026-06-03 00:00"),
        ("2026-06-01 12:00", BusinessHours(frozenset({0}), 6 * 60, 24 * 60), 27, "2026-06-02 00:00"),
        # Hours over midnight belong to the day on which they begin.
        ("2026-06-01 21:59", BusinessHours(frozenset({0}), 22 * 60, 6 * 60), 27, "2026-06-01 21:59"),
        ("2026-06-01 22:00", BusinessHours(frozenset({0}), 22 * 60, 6 * 60), 27, "2026-06-02 06:00"),
        ("2026-06-02 05:59", BusinessHours(frozenset({0}), 22 * 60, 6 * 60), 27, "2026-06-02 06:00"),
        ("2026-06-02 22:00", BusinessHours(frozenset({0}), 22 * 60, 6 * 60), 27, "2026-06-02 22:00"),
        ("2026-06-01 05:00", BusinessHours(frozenset({0}), 22 * 60, 6 * 60), 27, "2026-06-01 05:00"),
        ("2026-06-01 05:00", BusinessHours(SUNDAY, 22 * 60, 6 * 60), 27, "2026-06-01 06:00"),
        ("2026-06-01 22:30", BusinessHours(frozenset({0, 1}), 22 * 60, 21 * 60), 720, "2026-06-02 21:00"),
        # The clock goes forward, 2:00 to 3:00 (Sunday, 29 March): hours that end in the hour that is not, before it,
        # at it and after it.
        ("2026-03-29 01:30", BusinessHours(SUNDAY, 60, 150), 27, "2026-03-29 01:00Z"),
        ("2026-03-29 01:30", BusinessHours(SUNDAY, 60, 105), 27, "2026-03-29 00:45Z"),
        ("2026-03-29 01:30", BusinessHours(SUNDAY, 60, 120), 27, "2026-03-29 01:00Z"),
        ("2026-03-29 01:30", BusinessHours(SUNDAY, 60, 180), 27, "2026-03-29 01:00Z"),
        ("2026-03-29 01:30", BusinessHours(SUNDAY, 60, 300), 27, "2026-03-29 03:00Z"),
        ("2026-03-29 03:00", BusinessHours(SUNDAY, 120, 180), 27, "2026-03-29 01:00Z"),
        # ... and back, 3:00 to 2:00 (Sunday, 25 October): 2:00 to 3:00 comes twice.
        ("2026-10-25 01:30", BusinessHours(SUNDAY, 60, 150), 27, "2026-10-25 00:30Z"),
        ("2026-10-25 02:30", BusinessHours(SUNDAY, 60, 150), 27, "2026-10-25 00:30Z"),
        ("2026-10-25 02:10~", BusinessHours(SUNDAY, 60, 150), 27, "2026-10-25 01:30Z"),
        ("2026-10-25 02:30~", BusinessHours(SUNDAY, 60, 150), 27, "2026-10-25 01:30Z"),
        ("2026-10-25 02:30", BusinessHours(SUNDAY, 150, 180), 27, "2026-10-25 01:00Z"),
        ("2026-10-25 02:30~", BusinessHours(SUNDAY, 150, 180), 27, "2026-10-25 02:00Z"),
        ("2026-10-25 01:30", BusinessHours(SUNDAY, 60, 300), 27, "2026-10-25 04:00Z"),
        # force_after is in hours that pass, not in hours of the clock.
        ("2026-03-28 12:00", NEVER_FREE, 27, "2026-03-29 16:00"),
        ("2026-10-24 12:00", NEVER_FREE, 27, "2026-10-25 14:00"),
    ],
)
def test_it_waits_for_the_end_of_the_hours_or_until_it_is_forced(
    due: str, hours: BusinessHours, forced_h: int, free: str
) -> None:
    policy = VerifyPolicy(in_business_hours=False, force_after_s=forced_h * 3600)
    asked = due_at(due, policy=policy, hours=hours)
    assert asked.next_ms == ms(free)
    assert asked.reason == ("due" if asked.may_start else "business_hours")


def test_every_is_in_hours_that_pass_not_in_hours_of_the_clock() -> None:
    assert ask(0, last_ms=ms("2026-03-28 12:00")).reason == "clock"
    assert ask(ms("2026-03-28 13:00"), last_ms=ms("2026-03-28 12:00")).due_ms == ms("2026-03-29 13:00")
    assert ask(ms("2026-10-24 13:00"), last_ms=ms("2026-10-24 12:00")).due_ms == ms("2026-10-25 11:00")


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("back_ms", [1, HOUR, 400 * DAY])
def test_a_clock_that_was_put_back_makes_one_due_at_once(back_ms: int, running: bool) -> None:
    now = ms("2026-06-01 12:00")
    asked = ask(now, last_ms=now + back_ms, running=running)
    expected = Chance(may_start=not running, due_ms=now, next_ms=now, reason="running" if running else "clock")
    assert asked == expected
    # It is over with the next attempt, which the new clock dates.
    assert ask(now + HOUR, last_ms=now).reason == "not_due"


def test_a_first_session_that_lies_in_the_future_makes_one_due_at_once() -> None:
    now = ms("2026-06-01 12:00")
    assert ask(now, first_ms=now + 1) == Chance(may_start=True, due_ms=now, next_ms=now, reason="clock")


def test_a_clock_that_was_put_forward_makes_one_due_and_forced() -> None:
    last = ms("2026-06-01 10:00")
    assert ask(last + HOUR, last_ms=last).reason == "not_due"
    assert ask(last + 364 * DAY + HOUR, last_ms=last).reason == "forced"


@pytest.mark.parametrize(
    ("woken", "may_start", "reason", "free"),
    [
        ("2026-06-08 09:00", True, "forced", "2026-06-08 09:00"),  # a Monday morning: it has waited for long enough
        ("2026-06-07 23:00", True, "due", "2026-06-07 23:00"),
        ("2026-06-04 09:00", True, "forced", "2026-06-04 09:00"),
        ("2026-06-03 09:00", False, "business_hours", "2026-06-03 13:00"),  # forced before the hours end
        ("2026-06-02 15:00", False, "business_hours", "2026-06-02 18:00"),
        ("2026-06-02 09:59", False, "not_due", "2026-06-02 18:00"),
    ],
)
def test_a_laptop_that_slept_for_days(woken: str, may_start: bool, reason: str, free: str) -> None:
    asked = ask(ms(woken), last_ms=ms("2026-06-01 10:00"))
    assert (asked.may_start, asked.reason, asked.next_ms) == (may_start, reason, ms(free))
    assert asked.due_ms == ms("2026-06-02 10:00")


def test_one_that_runs_leaves_told_when_the_next_is_due() -> None:
    last = ms("2026-06-01 10:00")
    asked = ask(last + HOUR, last_ms=last, running=True)
    assert asked == Chance(may_start=False, due_ms=last + DAY, next_ms=ms("2026-06-02 18:00"), reason="running")
    for at in range(last, last + 7 * DAY, HOUR):
        assert not ask(at, last_ms=last, running=True).may_start


WALL_HOURS = [
    OFFICE,
    BusinessHours(SUNDAY, 60, 150),
    BusinessHours(frozenset({5, 6}), 23 * 60 + 30, 2 * 60 + 15),
    BusinessHours(frozenset({5, 6, 0}), 20, 24 * 60),
    BusinessHours(frozenset({6}), 0, 1),
]


def in_hours(hours: BusinessHours, at_ms: int, zone: tzinfo) -> bool:
    """Return the same as the code by another way: minute by minute, by the name of the day."""
    wall = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
    minute, day, eve = wall.hour * 60 + wall.minute, wall.isoweekday() - 1, (wall.isoweekday() + 5) % 7
    if hours.start_minute < hours.end_minute:
        return day in hours.days and minute in range(hours.start_minute, hours.end_minute)
    return (day in hours.days and minute >= hours.start_minute) or (eve in hours.days and minute < hours.end_minute)


@pytest.mark.parametrize("hours", WALL_HOURS, ids=str)
@pytest.mark.parametrize(
    ("zone", "sunday"),
    [
        (BERLIN, "2026-03-29"), (BERLIN, "2026-10-25"), (NEW_YORK, "2026-03-08"), (NEW_YORK, "2026-11-01"),
        (LORD_HOWE, "2026-10-04"), (LORD_HOWE, "2026-04-05"), (HAVANA, "2026-03-08"), (HAVANA, "2026-11-01"),
    ],
)  # fmt: skip
def test_every_minute_around_a_change_of_the_clock(zone: tzinfo, sunday: str, hours: BusinessHours) -> None:
    begin = ms(f"{sunday} 12:00", zone) - 36 * HOUR
    changes = {datetime.fromtimestamp((begin + at) / 1000, zone).utcoffset() for at in (0, 3 * DAY)}
    assert len(changes) == 2, "the clock is not changed here"
    inside = [in_hours(hours, begin + minute * MINUTE, zone) for minute in range(72 * 60 + 28 * 60)]
    for minute in range(72 * 60):
        free = next(
            later for later in range(minute, minute + 27 * 60 + 1) if not inside[later] or later == minute + 27 * 60
        )
        asked = due_at(begin + minute * MINUTE, hours=hours, zone=zone)
        assert asked.next_ms == begin + free * MINUTE, minute
        assert asked.may_start is not inside[minute]


POLICIES = st.builds(
    VerifyPolicy,
    every_s=st.integers(1, 720).map(lambda hours: hours * 3600.0),
    in_business_hours=st.booleans(),
    force_after_s=st.floats(3600, 720 * 3600),
)
HOURS = st.builds(
    lambda days, start, length: BusinessHours(days, start, (start + length - 1) % 1440 + 1),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1439),
) | st.just(NEVER_FREE)
ZONES = st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, HAVANA, UTC])
MOMENTS = st.integers(ms("2026-01-01 00:00"), ms("2028-01-01 00:00"))


@settings(max_examples=300, deadline=None)
@given(policy=POLICIES, hours=HOURS, zone=ZONES, last=MOMENTS, later=st.integers(0, 60 * DAY))
def test_the_next_chance_is_when_it_may_begin_and_not_before(
    policy: VerifyPolicy, hours: BusinessHours, zone: tzinfo, last: int, later: int
) -> None:
    asked = ask(last + later, last_ms=last, policy=policy, hours=hours, zone=zone)
    assert asked.due_ms is not None
    assert asked.next_ms is not None
    assert asked.next_ms >= asked.due_ms == last + round(policy.every_s * 1000)
    if asked.may_start:
        assert asked.next_ms == last + later
        return
    assert asked.next_ms > last + later
    assert asked.next_ms <= asked.due_ms + round(policy.force_after_s * 1000)
    assert ask(asked.next_ms, last_ms=last, policy=policy, hours=hours, zone=zone).may_start
    just_before = ask(asked.next_ms - 1, last_ms=last, policy=policy, hours=hours, zone=zone)
    assert not just_before.may_start
    assert just_before.next_ms == asked.next_ms
    if policy.in_business_hours:
        assert asked.next_ms == asked.due_ms


@settings(max_examples=150, deadline=None)
@given(
    hours=HOURS,
    zone=ZONES,
    begin=MOMENTS,
    in_business_hours=st.booleans(),
    takes=st.lists(st.integers(1, 100 * HOUR), min_size=5, max_size=5),
)
def test_with_the_defaults_no_more_than_51_hours_lie_between_two_attempts_while_the_machine_is_on(
    hours: BusinessHours, zone: tzinfo, begin: int, in_business_hours: bool, takes: list[int]
) -> None:
    policy = VerifyPolicy(in_business_hours=in_business_hours)
    last = done = begin
    for duration in takes:
        asked = ask(done, last_ms=last, policy=policy, hours=hours, zone=zone)
        # The machine sleeps until the chance it was told of, or is at the end of one that took longer.
        assert asked.next_ms is not None
        now = asked.next_ms
        assert ask(now, last_ms=last, policy=policy, hours=hours, zone=zone).may_start
        assert now <= max(last + 51 * HOUR, done)
        if in_business_hours:
            assert now == max(last + 24 * HOUR, done)
        last, done = now, now + duration
