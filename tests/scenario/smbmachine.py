"""A machine whose vault and cache lie in shares of a real server."""

from __future__ import annotations

from pathlib import Path

from tests.samba import Samba
from tests.scenario.machine import Machine


def share_machine(
    root: Path, samba: Samba, folder: str, volume: Path, *, name: str = "web-01", spool: bool = False
) -> Machine:
    """Return a machine below `root`; its vault is `<folder>-v` of the share, its cache `<folder>-c`."""
    root.mkdir(parents=True, exist_ok=True)
    secret = root / "share-password"
    secret.write_text(samba.password)
    secret.chmod(0o600)
    login = f'user = "{samba.user}"\npassword_file = "{secret}"'
    return Machine(
        root,
        samba.path(f"{folder}-v"),
        samba.path(f"{folder}-c"),
        name=name,
        volumes={"data": volume},
        extra={"vault": f'{login}\nretries_max = 0\nconnect_timeout = "5 s"', "cache": f"{login}\nretries_max = 0"},
        spool=root / "spool" if spool else None,
        urls={"vault": samba.url(f"{folder}-v"), "cache": samba.url(f"{folder}-c")},
    )
