"""What every command shares: the configuration, the one JSON document, exit codes, the event loop, the passphrase.

A command lives in `adapters/cli/<name>.py` as a click command object called `command`:

    @click.command(epilog=examples("forebay points", "forebay points --json"))
    @frame.pass_context
    def command(context: frame.Context) -> int:
        context.emit({"points": [...]}, "3 restore points")
        return frame.DONE

It returns its exit code. `--config`, `--json`, `--progress`, `--verbose` and `--log` are added to it by the group in
adapters/main.py, so they may stand before or after the command's name. Errors are raised, never printed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from adapters.lifetime import lifetime
from engine import events
from engine.errors import ConfigError, ForebayError
from engine.exitcodes import DONE as DONE
from engine.exitcodes import FAILED as FAILED
from engine.exitcodes import IN_SPOOL as IN_SPOOL
from engine.exitcodes import RUNNING as RUNNING
from engine.exitcodes import SOMETHING_MISSING as SOMETHING_MISSING
from engine.exitcodes import USAGE as USAGE
from engine.exitcodes import of_error

if TYPE_CHECKING:
    from adapters.cli.progress import Progress
    from adapters.config import Config, Secret
    from adapters.logfile import ComponentFile

T = TypeVar("T")

_PRECEDENCE: Final = (USAGE, RUNNING, FAILED, SOMETHING_MISSING, IN_SPOOL, DONE)

STOPPED: Final = "stopped before it was done: run it again"


class Context:
    """What the command line and its global options said; one for a run of the program."""

    def __init__(self) -> None:
        self.config_file: Path | None = None
        self.json = False
        self.progress_mode = "auto"
        self.verbose = False
        self.log_format = "human"
        self.log_file: ComponentFile | None = None  # gets the events of its component as well
        self.emitted = False
        self.stopped = STOPPED  # what to tell after Ctrl-C or SIGTERM; a command may say more of what that leaves
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        """The configuration, read when it is first asked for. Raises: ConfigError."""
        if self._config is None:
            from adapters.config import load_config

            self._config = load_config(self.require_config_file())
        return self._config

    def config_as_written(self) -> Config:
        """Return the configuration without a look at the places it names, which may hang. Raises: ConfigError."""
        from adapters.config import load_config

        return load_config(self.require_config_file(), places=False)

    def require_config_file(self) -> Path:
        """Return where the configuration file is. Raises: ConfigError."""
        named = self.config_file or os.environ.get("FOREBAY_CONFIG")
        if not named:
            raise ConfigError("no configuration file: name it with --config FILE or in FOREBAY_CONFIG")
        return Path(named)

    def emit(self, document: Any, text: str = "") -> None:
        """Give the command's result, once: `document` as JSON with --json, else `text` for people, on stdout."""
        assert not self.emitted, "a command gives one document"
        self.emitted = True
        if self.json:
            click.echo(json.dumps(document, indent=2, default=_plain))
        elif text:
            click.echo(text)

    def note(self, text: str) -> None:
        """Tell a person something on the way, on stderr; nothing with --json."""
        if not self.json:
            click.echo(text, err=True)

    def progress(self, what: str) -> Progress:
        """Return a progress display for `what` ("backup"), to be used as a context manager."""
        from adapters.cli.progress import Progress, display

        mode = self.progress_mode
        if mode == "auto":
            mode = "none" if self.json else "bar" if sys.stderr.isatty() else "lines"
        return Progress(what, display(mode, what))

    @property
    def quiet(self) -> bool:
        """Whether log lines are not what a user follows the command by: on a terminal, and with --json."""
        return (self.json or sys.stderr.isatty()) and self.progress_mode != "lines"

    def start_logs(self) -> None:
        """Send log events to stderr: all that matters where no terminal shows progress, else warnings only."""
        level = "debug" if self.verbose else "warning" if self.quiet else "info"
        also = None if self.log_file is None else self.log_file.write

        def prepare() -> None:
            from adapters import logs

            shape: logs.Format = "json" if self.log_format == "json" else "human"
            # How a session failed is what the command itself tells where its log is not followed.
            logs.configure(level, shape, left_out=frozenset({"session_failed"} if self.quiet else ()), also=also)

        # A log file gets what stderr leaves out.
        events.tell_from(level if also is None or level == "debug" else "info", prepare)

    def run_async(self, main: Callable[[], Awaitable[int]]) -> int:
        """Start logging, run `main` on an event loop and return its exit code."""
        self.start_logs()
        return run_async(main)


pass_context = click.make_pass_decorator(Context, ensure=True)


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` on asyncio; SIGTERM and SIGHUP (a terminal that went away) end it as Ctrl-C does.

    Tasks are cancelled, then KeyboardInterrupt is raised. A signal that was being ignored stays ignored: SIGHUP under
    nohup, SIGINT in what a script starts in the background.

    Raises: what `main` raises, an exception group as its weightiest member (see `sole_error`).
    """
    import anyio

    if not gc.isenabled():  # as `adapters.main` leaves it until everything is imported
        gc.freeze()
        gc.enable()

    async def guarded() -> T:
        interrupt = signal.getsignal(signal.SIGINT)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if callable(interrupt):
            for number in ends:
                signal.signal(number, interrupt)
        async with lifetime():
            return await main()

    # By name: Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ends = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in ends}
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if deaf:
        # Only in place of this one does asyncio put the handler that the other signals are to have.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return anyio.run(guarded, backend="asyncio")
    except BaseExceptionGroup as group:
        raise sole_error(group) from group
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def sole_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error of a group that a user is to see: the weightiest expected one, if all are expected."""
    leaves = list(_leaves(group))
    if not all(isinstance(leaf, ForebayError | KeyboardInterrupt) for leaf in leaves):
        return group if len(leaves) > 1 else leaves[0]
    return min(leaves, key=lambda leaf: _PRECEDENCE.index(exit_code_of(leaf)))


def _leaves(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def exit_code_of(error: BaseException) -> int:
    """Return the exit code an error stands for."""
    return USAGE if isinstance(error, click.UsageError) else of_error(error)


def weightiest(codes: Iterable[int]) -> int:
    """Return the exit code that counts where several apply (DESIGN.md §8: 2, 5, 1, 4, 3, 0)."""
    return min(codes, key=_PRECEDENCE.index, default=DONE)


def examples(*lines: str) -> str:
    """Return a help text's closing block of examples."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def passphrase_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add `--passphrase-file FILE` to a command, as the argument `passphrase_file`."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the passphrase, readable by its owner only. Without it: FOREBAY_PASSPHRASE, or a question.",
    )(function)


def read_passphrase(file: Path | None, *, confirm: bool = False) -> Secret:
    """Return the passphrase from `file`, else from FOREBAY_PASSPHRASE, else asked for on the terminal.

    `confirm`: ask twice, for a passphrase that is being chosen. Raises: ConfigError.
    """
    from adapters.config.secret import Secret, read_secret

    if file is not None:
        return read_secret("passphrase", file)
    value = os.environ.get("FOREBAY_PASSPHRASE", "")
    if not value and sys.stdin.isatty() and sys.stderr.isatty():
        value = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    if not value:
        raise ConfigError("a passphrase is needed: give --passphrase-file FILE or set FOREBAY_PASSPHRASE")
    return Secret(value)


def _plain(value: Any) -> Any:
    """Return what JSON has no word for as something it has."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if hasattr(value, "item"):  # a numpy number
        return value.item()
    import msgspec

    return msgspec.to_builtins(value)
