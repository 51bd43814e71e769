"""A machine whose vault and cache lie in shares of a real server."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from adapters.main import run
from tests.samba import Samba
from tests.scenario.machine import Done, Machine, finish


class NearMachine(Machine):
    """A machine whose commands run in this process: a second less each."""

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, expect: int | None = 0) -> Done:
        if env or "--vault" in arguments:
            return super().run(*arguments, env=env, expect=expect)
        self.write_config()
        command = self.command(*arguments, "--json")[3:]
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = run(command)
        return finish(subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue()), expect)


def share_machine(
    root: Path,
    samba: Samba,
    folder: str,
    volume: Path,
    *,
    name: str = "web-01",
    spool: bool = False,
    kind: type[Machine] = NearMachine,
) -> Machine:
    """Return a machine below `root`; its vault is `<folder>-v` of the share, its cache `<folder>-c`."""
    root.mkdir(parents=True, exist_ok=True)
    secret = root / "share-password"
    secret.write_text(samba.password)
    secret.chmod(0o600)
    login = f'user = "{samba.user}"\npassword_file = "{secret}"'
    return kind(
        root,
        samba.path(f"{folder}-v"),
        samba.path(f"{folder}-c"),
        name=name,
        volumes={"data": volume},
        extra={"vault": f'{login}\nretries_max = 0\nconnect_timeout = "5 s"', "cache": f"{login}\nretries_max = 0"},
        spool=root / "spool" if spool else None,
        urls={"vault": samba.url(f"{folder}-v"), "cache": samba.url(f"{folder}-c")},
    )
