"""The bench's arithmetic: medians, ratios, floors, limits; and which rows are measured for what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.bench.limit import limits_of
from deploy.bench.lines import WORKS, Floor, Line, Rule, lines_of, most, share, times
from deploy.bench.machine import processor, version_in
from deploy.bench.meter import Stop
from deploy.bench.results import Results
from deploy.bench.steps import NAMES, plan_of, read_manifest
from deploy.bench.table import amount, markdown_table, text_table
from tests.house.bench_example import LIMITS, SIZE, example


def line(name: str, results: Results | None = None) -> Line:
    (found,) = [line for line in lines_of(results or example()) if line.name == name]
    return found


def test_all_work_of_the_issue_has_a_line() -> None:
    names = {line.name for line in lines_of(example())}
    assert {work.name for work in WORKS} <= names
    assert {"days-1", "days-10", "days-30", "contiguous", "restore-days", "restore-own", "status", "reading"} <= names
    assert {"index-memory", "index-warm-64", "index-cold-4096"} <= names
    assert {f"memory-{size}" for size in (2 << 30, SIZE, 10 << 40)} <= names


def test_medians_are_compared_and_the_sync_afterwards_counts() -> None:
    first = line("first-lz4")
    assert first.ours == pytest.approx(10.0)
    assert first.against == pytest.approx(19.0)
    assert first.which == "borg-fixed64k"
    assert first.ratio == pytest.approx(1.9)
    assert first.met is True


@pytest.mark.parametrize(
    ("name", "ratio", "met"),
    [
        ("first-zstd", 3.0, True),
        ("first-zstd-all", 19 / 11, True),
        ("nochange", 2.25, True),
        ("random", 2.8, True),
        ("random-bytes", 90 / 1142, True),
        ("hints", 5.0, None),
        ("restore", 1.75, True),
        ("restore-days", 14 / 9, None),
        ("restore-own", 9 / 8, True),
        ("restore-plain", 7.5 / 9, None),
        ("cache", 1.25, True),
        ("contiguous", 0.24, False),
        ("fallback", 1.05, True),
        ("upload", 3.0 / 3.6, True),
        ("s3-put", 0.8, True),
        ("s3-get", 0.6, False),
        ("smb-put", 8 / 9, True),
        ("smb-get", 0.75, False),
        ("line-s3", 0.96, True),
    ],
)
def test_ratios_stand_the_way_round_their_floor_is_meant(name: str, ratio: float, met: bool | None) -> None:
    assert line(name).ratio == pytest.approx(ratio)

    assert line(name).met is met


def test_figures_with_a_bound_of_their_own_need_nobody_beside_them() -> None:
    assert line("status").ours == pytest.approx(0.31)
    assert line("status").met is True
    assert line("reading").met is False
    assert line("memory-10995116277760").met is False
    assert line(f"memory-{SIZE}").met is True
    assert line("index-memory").ours == 17
    assert line("index-cold-4096").ours == pytest.approx(4096 * 2.5e-6)


def test_bytes_added_are_summed_over_the_days_of_the_shortest_history_that_has_them() -> None:
    assert line("days-1").ours == pytest.approx(1.12)
    assert line("days-10").ours == pytest.approx(1.21)
    assert line("days-30").ours == pytest.approx(1.41)
    assert line("days-10").met is True
    without = example()
    without.rows = [row for row in without.rows if row.get("days") != 30]
    assert "days-30" not in {line.name for line in lines_of(without)}


@pytest.mark.parametrize(
    ("floor", "ours", "against", "met"),
    [
        (times(2), 1.0, 2.0, True),
        (times(2), 1.0, 1.99, False),
        (share(0.5), 1.0, 2.0, True),
        (share(0.5), 1.01, 2.0, False),
        (most(3), 3.0, None, True),
        (most(3), 3.01, None, False),
        (times(2), 1.0, None, None),
        (None, 1.0, 2.0, None),
    ],
)
def test_a_floor_is_met_or_missed_or_cannot_be_told(
    floor: Floor | None, ours: float, against: float | None, met: bool | None
) -> None:
    assert Line("x", "x", "s", ours, against, "other", floor).met is met


def test_what_failed_counts_for_nothing_and_cp_is_no_peer() -> None:
    results = example()
    results.rows = [row for row in results.rows if row.get("peer") != "borg-fixed64k"]
    results.rows += [{"peer": "borg-fixed64k", "step": "full", "run": 0, "size": SIZE, "rc": 2}]
    results.rows += [{"peer": "cp", "step": "full", "run": 0, "size": SIZE, "wall": 1.0, "rss_mib": 5000}]
    assert line("first-lz4", results).which == "borg-fixed4m"
    assert line(f"memory-{SIZE}", results).ours == 300


def test_nobody_beside_it_leaves_a_line_without_verdict() -> None:
    results = example()
    results.rows = [row for row in results.rows if str(row.get("peer", "forebay")).startswith("forebay")]
    first = line("first-lz4", results)
    assert (first.against, first.ratio, first.met) == (None, None, None)
    assert "first backup, lz4" in text_table([first])


def test_limits_are_worked_out_from_the_stages() -> None:
    results = example()
    limits = limits_of(results.limits, results.data)
    assert limits["first-lz4"] == 7.5
    assert limits["first-zstd"] == 9.5
    assert limits["cache"] == 9.0
    assert limits["nochange"] == 1.5
    a_byte = 6.0 / (98304 * 65536)
    assert limits["random"] == pytest.approx(1.5 + 80e6 * a_byte)
    assert limits["hints"] == pytest.approx(1.5 * 13107 / 131072 + 80e6 * a_byte)
    # Twelve times the decoded sample, and writing: 10 s of processor for two cores beat 5 s of writing, by nothing.
    assert limits["restore"] == pytest.approx(5.0)
    assert line("first-lz4").reached == pytest.approx(0.75)
    assert line("random-bytes").reached == pytest.approx(80 / 90)


def test_without_limits_there_is_still_a_table() -> None:
    results = example()
    results.limits = {}
    assert line("first-lz4", results).reached is None
    assert LIMITS


def test_the_tables_show_every_line_with_its_verdict() -> None:
    lines = lines_of(example())
    shown, marked = text_table(lines), markdown_table(lines)
    assert "MISSED" in shown
    for each in lines:
        assert each.title in shown
        assert each.title.strip() in marked
    (row,) = [row for row in marked.splitlines() if row.startswith("| first backup, lz4 |")]
    assert row == "| first backup, lz4 | 10.0 s | 19.0 s borg-fixed64k | 1.90 | ≥ 1.4 met | 7.50 s | 75 % |"
    assert len({row.count("|") for row in marked.splitlines()}) == 1


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (9.876, "s", "9.88 s"),
        (12.34, "s", "12.3 s"),
        (0.01024, "s", "10.2 ms"),
        (23.4e6, "B", "23.4 MB"),
        (1.1424e9, "B", "1,142 MB"),
        (311.6, "MiB", "312 MiB"),
        (1.084, "×", "1.08"),
    ],
)
def test_figures_are_shown_with_three_digits(value: float, unit: str, shown: str) -> None:
    assert amount(value, unit) == shown


def test_results_survive_their_file(tmp_path: Path) -> None:
    results = example()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["machine"]["cores"] == 2


def test_a_full_bench_plans_everybody_and_everything() -> None:
    plan = plan_of("", "", "8G")
    assert plan.steps == ("full", "nochange", "a", "b", "c", "restore")
    assert {"forebay-lz4", "forebay-zstd", "forebay-lz4-hints", "forebay-lz4-cache", "cp", "restic"} <= set(plan.peers)
    assert plan.volumes == ("8G", "2G")
    assert plan_of("", "", "2G").volumes == ("2G",)
    assert plan_of("s3,smb,line", "", "8G").volumes == ()
    assert plan_of("days30", "", "8G").volumes == ("2G",)
    assert plan_of("latency,line", "", "8G").volumes == ("8G",)
    assert "index" not in plan.own
    assert plan_of("", "", "8G", index=True).own[-1] == "index"
    assert plan_of("index", "", "8G").own == ("index",)
    assert plan_of("", "restic", "8G").peers[-1] == "restic"
    assert "borg" not in plan_of("", "restic", "8G").peers


def test_a_row_takes_only_the_steps_before_it_and_the_fastest_peers() -> None:
    plan = plan_of("nochange", "", "8G")
    assert (plan.peers, plan.steps, plan.own) == (("forebay-lz4", "borg-fixed4m"), ("full", "nochange"), ())
    assert plan_of("restore", "", "8G").steps == ("full", "a", "b", "c", "restore")
    assert plan_of("hints", "", "8G").peers == ("forebay-lz4", "forebay-lz4-hints")
    alone = plan_of("days10", "", "8G")
    assert (alone.peers, alone.steps, alone.own) == ((), (), ("days10",))
    assert all(plan_of(name, "", "2G") for name in NAMES)
    with pytest.raises(Stop, match="there is no row 'first'; rows: first-lz4, "):
        plan_of("first", "", "8G")


def test_a_volume_that_was_cut_short_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text('{"size": 5, "stats64k": {}}', encoding="utf-8")
    assert read_manifest(tmp_path) is None
    (tmp_path / "base.img").write_bytes(b"1234")
    assert read_manifest(tmp_path) is None
    (tmp_path / "base.img").write_bytes(b"12345")
    assert read_manifest(tmp_path) is not None
    (tmp_path / "manifest.json").write_text('{"size": 5', encoding="utf-8")
    assert read_manifest(tmp_path) is None


def test_machine_and_programs_are_named_briefly() -> None:
    assert processor("model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz\n") == "Intel Xeon Platinum 8375C"
    assert processor("Features : fp\n")
    assert version_in("restic 0.14.0 compiled with go1.19.8 on linux/amd64") == "0.14.0"
    assert version_in("forebay, version 0.1.0\n") == "0.1.0"
    assert {rule.name for rule in Rule} == {"TIMES", "SHARE", "MOST"}
