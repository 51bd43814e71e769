"""Policies refuse what is out of bounds, and say what the bounds are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.errors import ConfigError
from engine.policy import (
    MIB,
    BusinessHours,
    CacheErrorPolicy,
    LanePolicy,
    QueuePolicy,
    RetryPolicy,
    SlowPolicy,
    TrimPolicy,
    VerifyPolicy,
)


def test_the_defaults_are_those_the_documents_promise() -> None:
    assert (RetryPolicy().retries_max, RetryPolicy().retry_within_s, RetryPolicy().stall_s) == (5, 60, 30)
    assert CacheErrorPolicy() == CacheErrorPolicy("warn", 20)
    assert SlowPolicy() == SlowPolicy("wait", 10)
    assert VerifyPolicy() == VerifyPolicy(24 * 3600, True, 27 * 3600, 0.05)
    assert BusinessHours() == BusinessHours(frozenset({0, 1, 2, 3, 4}), 8 * 60, 18 * 60)
    assert QueuePolicy().bytes_max == 64 * MIB
    assert (LanePolicy().pack_bytes, LanePolicy().in_flight_bytes_max) == (16 * MIB, 128 * MIB)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: VerifyPolicy(every_s=3599), "every in hours is 0.999722; it must lie between 1 and 720"),
        (lambda: VerifyPolicy(every_s=720 * 3600 + 1), "every in hours"),
        (lambda: VerifyPolicy(force_after_s=3599), "force_after in hours"),
        (lambda: VerifyPolicy(force_after_s=float("nan")), "force_after in hours"),
        (lambda: VerifyPolicy(read_share=-0.01), "read"),
        (lambda: VerifyPolicy(read_share=1.01), "read"),
        (lambda: BusinessHours(frozenset()), "at least one day"),
        (lambda: BusinessHours(frozenset({7})), "at least one day"),
        (lambda: BusinessHours(start_minute=-1), "start of the business hours"),
        (lambda: BusinessHours(start_minute=1440), "start of the business hours"),
        (lambda: BusinessHours(end_minute=0), "end of the business hours"),
        (lambda: BusinessHours(end_minute=1441), "end of the business hours"),
        (lambda: BusinessHours(start_minute=60, end_minute=60), "end when they begin"),
        (lambda: RetryPolicy(retries_max=-1), "retries_max is -1; it must lie between 0 and 1000"),
        (lambda: RetryPolicy(retries_max=1001), "retries_max"),
        (lambda: RetryPolicy(retry_within_s=-1), "retry_within"),
        (lambda: RetryPolicy(retry_within_s=86_401), "retry_within"),
        (lambda: RetryPolicy(retry_within_s=float("nan")), "retry_within"),
        (lambda: RetryPolicy(session_retries_max=-1), "retries_max of a session"),
        (lambda: RetryPolicy(stall_s=0), "stall"),
        (lambda: RetryPolicy(flush_stall_s=0), "flush stall"),
        (lambda: RetryPolicy(backoff_s=-0.1), "backoff"),
        (lambda: RetryPolicy(backoff_s=2, backoff_max_s=1), "longest backoff"),
        (lambda: CacheErrorPolicy(retries_max=-1), "retries_max"),
        (lambda: CacheErrorPolicy("ignore"), "on_error is 'ignore'; it must be one of: warn, error, fail"),  # type: ignore[arg-type]
        (lambda: SlowPolicy("hurry"), "on_slow is 'hurry'; it must be one of: wait, skip"),  # type: ignore[arg-type]
        (lambda: SlowPolicy(skip_after_s=0), "skip_after"),
        (lambda: QueuePolicy(8 * MIB - 1), "queue size in MiB"),
        (lambda: QueuePolicy(222 * MIB + 1), "queue size in MiB"),
        (lambda: LanePolicy(4 * MIB - 1), "pack_size in MiB"),
        (lambda: LanePolicy(64 * MIB + 1), "pack_size in MiB"),
        (lambda: LanePolicy(16 * MIB, 16 * MIB - 1), "packs in flight"),
        (lambda: LanePolicy(16 * MIB, 128 * MIB + 1), "packs in flight"),
        (lambda: LanePolicy(puts_bound=17), "puts at once"),
        (lambda: LanePolicy(unflushed_records_max=0), "records between two flushes"),
        (lambda: TrimPolicy(min_free_share=0.009), "min_free in percent"),
        (lambda: TrimPolicy(min_free_share=0.951), "min_free in percent"),
        (lambda: TrimPolicy(size_bytes_max=64 * MIB - 1), "max_size in MiB"),
        (lambda: TrimPolicy(age_days_max=-1), "max_age in days"),
    ],
)
def test_a_value_out_of_bounds_is_refused_and_named(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("pack_mib", "packs", "puts"), [(4, 32, 16), (8, 16, 16), (16, 8, 8), (24, 5, 5), (64, 2, 2)])
def test_packs_and_puts_follow_from_bytes(pack_mib: int, packs: int, puts: int) -> None:
    policy = LanePolicy(pack_mib * MIB)
    assert (policy.packs_max, policy.puts_max) == (packs, puts)


def test_the_largest_queue_and_two_lanes_stay_within_350_mib() -> None:
    assert QueuePolicy(94 * MIB).bytes_max + 2 * LanePolicy().in_flight_bytes_max == 350 * MIB


def test_backoff_doubles_to_its_bound_and_never_overflows() -> None:
    policy = RetryPolicy(backoff_s=0.5, backoff_max_s=16)
    assert [policy.backoff_bound_s(retry) for retry in (1, 2, 3, 6, 7, 1000)] == [0.5, 1, 2, 16, 16, 16]
    assert RetryPolicy(retries_max=1000, backoff_s=0, backoff_max_s=0).backoff_bound_s(1000) == 0


def test_a_cache_that_is_gone_costs_the_session_less_than_two_minutes() -> None:
    policy = CacheErrorPolicy().retry()
    assert policy.session_retries_max == policy.retries_max == 20
    assert sum(policy.backoff_bound_s(retry) for retry in range(1, 21)) < 120


def test_only_fail_does_not_give_the_cache_up() -> None:
    assert [CacheErrorPolicy(choice).gives_up for choice in ("warn", "error", "fail")] == [True, True, False]


@pytest.mark.parametrize(("days", "in_force", "warns"), [(None, None, False), (14, None, True), (15, 15, False)])
def test_an_age_below_fifteen_days_warns_and_is_off(days: int | None, in_force: int | None, warns: bool) -> None:
    policy = TrimPolicy(age_days_max=days)
    assert policy.age_days_in_force == in_force
    assert (policy.warning is not None) == warns
    assert policy.warning is None or "max_age is 14 days and is off" in policy.warning
