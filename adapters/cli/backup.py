"""`forebay backup`: one session now."""

from __future__ import annotations

from functools import partial
from typing import Final

import click

from adapters.cli import frame

STOPPED: Final = "stopped before it was done; nothing half-done counts, the next run goes on from what was finished"


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml backup",
        "forebay --config forebay.toml backup --volume data --json",
        "forebay --config forebay.toml backup --full",
    )
)
@click.option("--volume", "names", multiple=True, metavar="NAME", help="Only this volume; may be given several times.")
@click.option("--full", is_flag=True, help="Read everything and trust nothing that is kept locally.")
@frame.pass_context
def command(context: frame.Context, names: tuple[str, ...], full: bool) -> int:
    """Back up the volumes now: one restore point in the vault, and what changed in the cache.

    Only blocks that the vault, or the cache, does not have yet travel there. With the vault away the point goes into
    the spool, if there is one; what waits there is uploaded at the end, once the vault is back. Needs no passphrase.
    Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done, the new point is still in the spool, 4 done, but
    something asked for is missing (see problems), 5 another session runs.
    """
    context.stopped = STOPPED
    config = context.config  # a mistake in it is told before all that a session needs is imported

    from adapters.cli.session import run_session

    return context.run_async(partial(run_session, context, config, names, full))
