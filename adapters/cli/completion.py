"""`forebay completion`: the script that teaches a shell to complete Forebay's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from adapters.cli import frame
from engine.errors import ConfigError

VARIABLE = "_FOREBAY_COMPLETE"


@click.command(
    epilog=frame.examples(
        "forebay completion bash > ~/.local/share/bash-completion/completions/forebay",
        "forebay completion zsh > ~/.zfunc/_forebay",
        "forebay completion fish > ~/.config/fish/completions/forebay.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> int:
    """Print the completion script for SHELL.

    The script asks `forebay` itself for completions, so it never goes out of date.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"no completion is known for the shell {shell!r}")
    root = ctx.find_root()
    script = kind(root.command, {}, root.info_name or "forebay", VARIABLE).source()
    context = ctx.ensure_object(frame.Context)
    context.emit({"shell": shell, "script": script}, script)
    return frame.DONE
