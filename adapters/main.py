"""The program `forebay`: finds the command, runs it, and turns how it ended into one sentence and an exit code.

Commands are imported when they run, so that `forebay --help` and `forebay status` answer at once: `COMMANDS` is the
list, `adapters/cli/<name>.py` is the place.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from adapters.cli import frame
from adapters.cli.streams import Streams
from adapters.version import VERSION
from engine.errors import ForebayError

COMMANDS: Final = {
    "init": "Create or join vault and cache, and enrol this system.",
    "check-config": "Say what is wrong with the configuration and the places it names.",
    "backup": "Back up the volumes now.",
    "upload": "Upload what waits in the spool, or pause that.",
    "points": "List restore points.",
    "restore": "Write a volume of a restore point to a file or device.",
    "verify": "Find out what the cache lacks; the next backup puts it there.",
    "trim": "Let the cache go of what no system saw for longest.",
    "status": "Show the last sessions and how things stand.",
    "completion": "Print the shell's completion script.",
}


def common_options() -> list[click.Parameter]:
    """Return the options that may stand before and after every command's name."""

    def keep(name: str) -> Any:
        def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
            if value not in (None, False):
                setattr(ctx.ensure_object(frame.Context), name, value)

        return callback

    def option(*names: str, keeps: str, **more: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=keep(keeps), **more)

    return [
        option(
            "--config",
            keeps="config_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The configuration file (or FOREBAY_CONFIG).",
        ),
        option("--json", keeps="json", is_flag=True, help="One JSON document on stdout, nothing else there."),
        option(
            "--progress",
            keeps="progress_mode",
            type=click.Choice(["auto", "bar", "lines", "none"]),
            help="How to show progress on stderr; auto: a bar on a terminal, else log lines, none with --json.",
        ),
        option("--verbose", "-v", keeps="verbose", is_flag=True, help="Log more, on stderr."),
        option("--log", keeps="log_format", type=click.Choice(["human", "json"]), help="The shape of log lines."),
    ]


class LazyGroup(click.Group):
    """The list of commands; a command's module is imported when the command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and give it the common options."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"adapters.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        command.name = cmd_name
        taken = {name for parameter in command.params for name in parameter.opts}
        command.params += [option for option in common_options() if not taken & set(option.opts)]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command where an unknown one was asked for."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], COMMANDS, n=1)
            meant = f", did you mean {close[0]!r}?" if close else ";"
            ctx.fail(f"there is no command {args[0]!r}{meant} commands: {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete command names without importing them."""
        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _group() -> LazyGroup:
    group = LazyGroup(
        name="forebay",
        params=common_options(),
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        help="Back up volumes: one read feeds a remote vault and a near cache.",
        epilog=frame.examples(
            "forebay --config forebay.toml check-config",
            "forebay --config forebay.toml init",
            "forebay --config forebay.toml backup",
            "forebay restore latest --volume data --to data.img",
        ),
    )
    return click.version_option(VERSION, prog_name="forebay", message="%(prog)s %(version)s")(group)


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments` (without the program's name) and return the exit code.

    An error becomes one sentence on stderr and, with --json, the document on stdout. What is no expected error is a
    bug: it is reported the same way and then propagates with its traceback.
    """
    context = frame.Context()
    # Told from the arguments too, because a mistake in them is found before they are read to the end.
    context.json = "--json" in arguments
    try:
        result = _group().main(list(arguments), prog_name="forebay", standalone_mode=False, obj=context)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _end(context, context.stopped, frame.FAILED)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return frame.USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "forebay"
        return _end(context, f"{error.format_message().rstrip('.')} (see {where} --help)", frame.USAGE)
    except click.ClickException as error:
        return _end(context, error.format_message(), frame.FAILED)
    except ForebayError as error:
        return _end(context, str(error), frame.exit_code_of(error))
    except Exception as error:
        _end(context, f"a bug in Forebay: {type(error).__name__}: {error}; please report it", frame.FAILED)
        raise
    return result if isinstance(result, int) else frame.DONE


def _end(context: frame.Context, sentence: str, code: int) -> int:
    """Tell how it ended: on stderr, and as the one document if none was given."""
    click.echo(f"forebay: {sentence}", err=True)
    if context.json and not context.emitted:
        click.echo(json.dumps({"error": sentence, "exit_code": code}, indent=2))
    return code


def main() -> None:
    """Run the program with the arguments of the process."""
    # numpy's linear algebra would start a thread a core that spins; nothing here uses it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What imports make lives until the end: looking for garbage in it finds none.
    # `frame.run_async` switches the collector on again, for the work itself.
    gc.disable()
    streams = Streams()
    code = streams.judge(run(sys.argv[1:]))
    sys.stderr.flush()
    # Everything that has to last was flushed where it was written. To take the interpreter apart costs some 15 ms, and
    # would wait for a thread whose call to a store hangs.
    os._exit(code)


if __name__ == "__main__":
    main()
