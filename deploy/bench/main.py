"""Forebay beside its peers and the machine's limits, on the same volumes, in one run: what `make bench` does."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.bench import machine, steps
from deploy.bench.lines import lines_of
from deploy.bench.meter import Meter, Stop, load_peers
from deploy.bench.picture import picture
from deploy.bench.results import Results
from deploy.bench.table import markdown_table, text_table

PICTURE = Path("docs/bench.svg")


def main() -> int:
    """Run the bench, or only draw what is in the results; return the exit code."""
    arguments = parsed()
    try:
        if arguments.draw:
            return show(Results.load(arguments.dir / "results.json"), arguments.dir / "table.md")
        results = measure(arguments)
    except (Stop, OSError) as stop:
        print(f"bench: {stop}", file=sys.stderr)
        return 1
    if arguments.rows:
        results.save(arguments.dir / "rows.json")
        return show(results, None)
    results.save(arguments.dir / "results.json")
    return show(results, arguments.dir / "table.md")


def parsed() -> argparse.Namespace:
    """Return the arguments; the Makefile gives them."""
    parser = argparse.ArgumentParser(description="Measure Forebay beside its peers and the limits of this machine.")
    parser.add_argument("--size", choices=("2G", "8G"), default="8G", help="the volume (default: 8G)")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many runs (default: 3)")
    parser.add_argument("--dir", type=Path, default=Path("bench-data"), help="volumes, scratch space and results")
    parser.add_argument("--shared", type=Path, default=Path("../shared/bench"), help="gen.py, peers.py and limits.py")
    parser.add_argument("--services", type=Path, default=Path("../shared/services"), help="the scripts of the servers")
    parser.add_argument(
        "--rows", default="", metavar="NAME,…", help=f"only some work: {', '.join(steps.NAMES)}; no picture then"
    )
    parser.add_argument("--peers", default="", metavar="NAME,…", help="only these of peers.py beside Forebay")
    parser.add_argument("--index", action="store_true", help="also 160 million index entries: takes 5 GB of disk")
    parser.add_argument("--quiet", type=float, default=60, metavar="SECONDS", help="wait for a quiet machine (60)")
    parser.add_argument("--draw", action="store_true", help="measure nothing: table and picture of the last results")
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> Results:
    """Measure what is asked for.

    Raises: Stop if something needed is missing or fails.
    """
    plan = steps.plan_of(arguments.rows, arguments.peers, arguments.size, index=arguments.index)
    folder: Path = arguments.dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "bench.log"
    log.unlink(missing_ok=True)
    meter = Meter(load_peers(arguments.shared), log, arguments.quiet)
    tools = steps.Tools(arguments.shared.absolute(), arguments.services.absolute(), folder, meter)
    data = {size: tools.volume(size) for size in plan.volumes}
    volume = data.get(arguments.size, {})
    results = Results(
        date=datetime.now(UTC).date().isoformat(),
        size=volume.get("size", 0),
        runs=arguments.runs,
        machine=machine.describe(),
        programs=machine.versions(),
        data={key: volume[key] for key in ("days", "stats64k") if key in volume},
    )
    for row in steps.carry_out(plan, tools, results):
        results.rows.append(row)
        print(steps.told(row), flush=True)
    return results


def show(results: Results, table: Path | None) -> int:
    """Print the table; unless `table` is None, write it there too and draw the picture.

    Returns 1 if Forebay failed at something, or a restore did not give the same bytes.
    """
    lines = lines_of(results)
    what = results.machine
    print(
        f"\n{results.date}, {what['cpu']}, {what['cores']} cores, {what['memory_gib']} GiB, Linux {what['kernel']}; "
        f"{', '.join(f'{name} {version}' for name, version in results.programs.items())}; medians of {results.runs}\n"
    )
    print(text_table(lines))
    if table is not None:
        PICTURE.write_text(picture(results), encoding="utf-8")
        table.write_text(markdown_table(lines) + "\n", encoding="utf-8")
        print(f"\nThe picture is in {PICTURE}, the table for documents in {table}.")
    wrong = [row for row in results.rows if row.get("same") is False or ("rc" in row and steps.is_ours(row))]
    for row in wrong:
        print(f"bench: this went wrong: {steps.told(row)}", file=sys.stderr)
    missed = [line.title.strip() for line in lines if line.met is False]
    if missed:
        print(f"\nMissed: {'; '.join(missed)}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
