from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from adapters import main
from adapters.cli import frame
from adapters.version import VERSION
from engine.errors import ConfigError, SessionAborted, SessionRunning

ROOT = Path(__file__).parents[2]


@pytest.fixture
def as_backup(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[frame.Context], int]], None]:
    """Put a function in the place of the backup command."""

    def put(body: Callable[[frame.Context], int]) -> None:
        @click.command(help="Stand in.")
        @frame.pass_context
        def command(context: frame.Context) -> int:
            return body(context)

        module = types.ModuleType("adapters.cli.backup")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "adapters.cli.backup", module)

    return put


Put = Callable[[Callable[[frame.Context], int]], None]


def test_the_exit_code_is_what_the_command_returns(as_backup: Put) -> None:
    as_backup(lambda context: 4)
    assert main.run(["backup"]) == 4


@pytest.mark.parametrize("order", [["--json", "--config", "/c", "backup"], ["backup", "--config", "/c", "--json"]])
def test_global_options_stand_before_or_after_the_command(as_backup: Put, order: list[str]) -> None:
    seen: list[frame.Context] = []

    def body(context: frame.Context) -> int:
        seen.append(context)
        return 0

    as_backup(body)
    assert (
        main.run([*order, "--verbose", "--log", "json", "--progress", "none"] if order[0] == "backup" else order) == 0
    )
    assert seen[0].json
    assert seen[0].config_file == Path("/c")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("key x is wrong"), 2, "key x is wrong"),
        (SessionRunning("another session runs"), 5, "another session runs"),
        (SessionAborted("the vault is away"), 1, "the vault is away"),
        (KeyboardInterrupt(), 1, frame.STOPPED),
    ],
)
def test_an_expected_error_is_one_sentence_and_with_json_one_document(
    as_backup: Put, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, sentence: str
) -> None:
    def body(context: frame.Context) -> int:
        raise error

    as_backup(body)
    assert main.run(["backup"]) == code
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", f"forebay: {sentence}")
    assert main.run(["backup", "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": sentence, "exit_code": code}
    assert err.strip() == f"forebay: {sentence}"


def test_an_error_after_the_document_adds_no_second_one(as_backup: Put, capsys: pytest.CaptureFixture[str]) -> None:
    def body(context: frame.Context) -> int:
        context.emit({"point": None})
        raise SessionAborted("late")

    as_backup(body)
    assert main.run(["backup", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"point": None}


def test_a_bug_keeps_its_traceback_and_still_gives_the_document(
    as_backup: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    as_backup(lambda context: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main.run(["backup", "--json"])
    assert "a bug in Forebay: ZeroDivisionError" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bakup"], "there is no command 'bakup', did you mean 'backup'? commands: init, check-config"),
        (["frobnicate"], "there is no command 'frobnicate'; commands: init"),
        (["--confg", "x"], "--config"),
        (["backup", "--bogus"], "(see forebay backup --help)"),
        (["backup", "extra"], "(see forebay backup --help)"),
        (["--progress", "much", "backup"], "'auto', 'bar', 'lines', 'none'"),
        (["--config"], "requires an argument"),
    ],
)
def test_a_mistyped_command_line_is_told_in_one_sentence(
    as_backup: Put, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    as_backup(lambda context: 0)
    assert main.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
    assert main.run([*arguments, "--json"] if arguments != ["--config"] else ["--json", "--config"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert "Commands:" in capsys.readouterr().out


def test_help_and_version_load_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["--version"]):
        assert main.run(arguments) == 0
    out = capsys.readouterr().out
    assert f"forebay {VERSION}\n" in out
    for name, text in main.COMMANDS.items():
        assert name in out
        assert text.split()[0] in out


def test_help_starts_without_the_heavy_libraries() -> None:
    code = "import sys, adapters.main as m; m.run(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("\n")[0].split()) | set(done.stdout.split())
    assert "click" in loaded
    for heavy in ("numpy", "rich", "structlog", "cryptography", "anyio", "msgspec", "asyncio", "blake3"):
        assert heavy not in loaded


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_each_shell_is_printed(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main.run(["completion", shell]) == 0
    assert f"_FOREBAY_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_the_shell_completes_commands_and_their_options() -> None:
    def complete(words: str, number: int) -> list[str]:
        environment = {"_FOREBAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(number)}
        code = "import sys; sys.argv[0] = 'forebay'; from adapters.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        return [line.split(",")[1] for line in done.stdout.splitlines()]

    assert complete("forebay c", 1) == ["check-config", "completion"]
    assert "--json" in complete("forebay check-config --", 2)
    assert complete("forebay completion ", 2) == ["bash", "zsh", "fish"]
