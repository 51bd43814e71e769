"""Shares in the configuration: how they are written, who logs in, and which places are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.config import ConfigProblems, Share, load_cache, load_vault, parse_config
from adapters.config.login import password_of
from adapters.config.places import SmbUrl, is_smb, mapped_drive, smb_of
from engine.errors import ConfigError, StoreRejected

SOURCE = Path("/etc/forebay.toml")
VAULT = 'url = "smb://nas/backup/forebay"\nuser = "agent"\n'


def text(vault: str = VAULT, rest: str = "") -> str:
    return f'[system]\nname = "web-01"\n[[volume]]\nname = "d"\npath = "/dev/sda"\n[vault]\n{vault}\n{rest}'


def problems(vault: str = VAULT, rest: str = "") -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        parse_config(text(vault, rest), SOURCE)
    return [problem.removeprefix(f"{SOURCE}: ") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("written", "expected", "shown"),
    [
        ("smb://nas/share/folder", SmbUrl("nas", "share", "folder"), "smb://nas/share/folder"),
        (r"\\nas\share\folder", SmbUrl("nas", "share", "folder"), "smb://nas/share/folder"),
        (r"\\NAS.example.org\Share$\a b\c" + "\\", SmbUrl("nas.example.org", "Share$", "a b/c"), None),
        ("SMB://nas:1445/share/a/b/", SmbUrl("nas", "share", "a/b", 1445), "smb://nas:1445/share/a/b"),
        ("smb://[fd00::1]:445/s/%C3%A4%20b", SmbUrl("fd00::1", "s", "ä b"), "smb://[fd00::1]/s/ä b"),
    ],
)
def test_a_share_is_written_as_a_url_or_as_windows_writes_it(written: str, expected: SmbUrl, shown: str | None) -> None:
    assert is_smb(written)
    found = smb_of(written)
    assert found == expected
    assert shown is None or str(found) == shown
    assert smb_of(str(found).replace(" ", "%20")) == found


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("smb:nas/share/x", "two slashes"),
        ("smb://", "no server"),
        ("smb:///share/folder", "no server"),
        ("smb://nas", "no share"),
        ("smb://nas/share/", "no folder in the share"),
        (r"\\nas\share", "no folder in the share"),
        ("smb://nas:0/share/x", "0 is no port"),
        ("smb://nas:70000/share/x", "a port, a number"),
        ("smb://nas:x/share/x", "a port, a number"),
        ("smb://agent:secret@nas/share/x", "a user does not belong in the URL"),
        ("smb://nas/share/../x", "are no folders"),
        ("smb://nas/share/a//b", "are no folders"),
        ("smb://nas/share/a:b", "is no name on a share"),
        ("smb://nas/share/con", "is no name on a share"),
        ("smb://nas/share/a%5Cb", "is no name on a share"),
        ("smb://nas/share/end.", "is no name on a share"),
        ("smb://nas/share/x?y", "%3F"),
        ("smb://nas/share/" + "x" * 256, "longer than 255"),
    ],
)
def test_what_is_no_folder_in_a_share_is_refused_with_the_reason(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        smb_of(written)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/mnt/nas/x", "smbdir/x", r"C:\x", r"\\?\C:\x", r"\\.\PhysicalDrive0", "nas/share"])
def test_other_paths_are_no_shares(path: str) -> None:
    assert not is_smb(path)


@pytest.mark.parametrize("user", ["agent", r"OFFICE\\agent", "agent@office.example"])
def test_every_form_of_a_user_is_taken(user: str) -> None:
    config = parse_config(text(f'url = "smb://nas/b/f"\nuser = "{user}"\npassword_file = "secrets/nas"\n'), SOURCE)
    place = config.vault.place
    assert isinstance(place, Share)
    assert (place.user, place.password_file) == (user.replace("\\\\", "\\"), Path("/etc/secrets/nas"))
    assert place.encrypt
    assert (config.vault.on_loss, config.vault.reconnect_window_s) == ("restart", 0)


@pytest.mark.parametrize("user", ["", "a/b", r"A\\B\\c", r"\\agent", "a\\u0007"])
def test_a_user_of_another_form_is_refused(user: str) -> None:
    assert r"user or DOMAIN\user or user@domain" in problems(f'url = "smb://nas/b/f"\nuser = "{user}"\n')[0]


def test_a_share_needs_a_user_and_a_folder_takes_none() -> None:
    assert problems('url = "smb://nas/b/f"\n') == [
        "[vault] user is missing: smb://nas/b/f takes a login, user and password_file"
    ]
    assert problems(rest='[cache]\npath = "smb://nas/cache/f"\n') == [
        "[cache] user is missing: smb://nas/cache/f takes a login, user and password_file"
    ]
    assert (
        "[cache] user is for a share, and /mnt/usb is a folder"
        in problems(rest='[cache]\npath = "/mnt/usb"\nuser = "x"')[0]
    )


@pytest.mark.parametrize(
    "cache", ["smb://NAS/Backup/forebay", "smb://nas/backup/forebay/cache", "smb://nas:445/backup/FOREBAY"]
)
def test_vault_and_cache_in_one_folder_of_a_share_are_refused(cache: str) -> None:
    assert "must not lie inside each other" in problems(rest=f'[cache]\npath = "{cache}"\nuser = "x"\n')[0]


def test_vault_and_cache_may_be_neighbours() -> None:
    config = parse_config(text(rest='[cache]\npath = "smb://nas/backup/forebay2"\nuser = "x"\n'), SOURCE)
    assert config.cache is not None
    assert str(config.cache.place) == "smb://nas/backup/forebay2"


def test_a_mapped_drive_is_refused_with_the_reason() -> None:
    asked: list[str] = []

    def remote(root: str) -> int:
        asked.append(root)
        return 4

    reason = mapped_drive(r"Z:\cache", remote)
    assert reason is not None
    assert "Z: is a mapped network drive" in reason
    assert "smb://server/share/folder" in reason
    assert asked == ["Z:\\"]


@pytest.mark.parametrize(("path", "kind"), [(r"C:\cache", 3), (r"E:\cache", 2), ("/mnt/cache", 4), (r"\\?\Z:\x", 4)])
def test_local_drives_are_taken(path: str, kind: int) -> None:
    assert mapped_drive(path, lambda root: kind) is None


class TestPassword:
    @pytest.fixture(autouse=True)
    def _nothing_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("CREDENTIALS_DIRECTORY", "FOREBAY_VAULT_PASSWORD", "FOREBAY_CACHE_PASSWORD"):
            monkeypatch.delenv(name, raising=False)

    def test_a_file_comes_before_a_credential_and_that_before_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        share = Share(SmbUrl("nas", "s", "f"), "vault", "agent", tmp_path / "file")
        bare = Share(SmbUrl("nas", "s", "f"), "vault", "agent")
        monkeypatch.setenv("FOREBAY_VAULT_PASSWORD", "of the environment")
        assert password_of(bare) == "of the environment"
        (tmp_path / "forebay-vault-password").write_text("of systemd\n")
        (tmp_path / "forebay-vault-password").chmod(0o440)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert password_of(bare) == "of systemd"
        (tmp_path / "file").write_text("of the file\r\n")
        (tmp_path / "file").chmod(0o600)
        assert password_of(share) == "of the file"
        (tmp_path / "file").write_text("a new one")
        assert password_of(share) == "a new one"

    def test_a_vault_may_do_with_a_ticket_and_a_cache_may_not(self) -> None:
        assert password_of(Share(SmbUrl("nas", "s", "f"), "vault", "agent")) is None
        with pytest.raises(StoreRejected, match=r"set \[cache\] password_file"):
            password_of(Share(SmbUrl("nas", "s", "f"), "cache", "agent"))

    def test_a_file_that_cannot_be_used_is_named_without_its_content(self, tmp_path: Path) -> None:
        share = Share(SmbUrl("nas", "s", "f"), "vault", "agent", tmp_path / "file")
        with pytest.raises(StoreRejected, match="cannot be read"):
            password_of(share)
        (tmp_path / "file").write_text("tell nobody")
        (tmp_path / "file").chmod(0o644)
        with pytest.raises(StoreRejected, match="open to every user") as caught:
            password_of(share)
        assert "tell nobody" not in str(caught.value)


def test_a_bare_url_takes_its_login_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_VAULT_USER", raising=False)
    with pytest.raises(ConfigError, match="set FOREBAY_VAULT_USER and FOREBAY_VAULT_PASSWORD"):
        load_vault("smb://nas/s/f")
    monkeypatch.setenv("FOREBAY_VAULT_USER", r"OFFICE\agent")
    assert load_vault(r"\\nas\s\f").user == r"OFFICE\agent"
    monkeypatch.setenv("FOREBAY_CACHE_USER", "other")
    assert load_cache("smb://nas/s/f").user == "other"
    assert load_cache("cache").place == Path.cwd() / "cache"
    with pytest.raises(ConfigError, match="cache 'smb://nas/s' cannot be used: it names no folder"):
        load_cache("smb://nas/s")
    with pytest.raises(ConfigError, match="a user does not belong in the URL") as caught:
        load_cache("smb://agent:verysecret@nas/s/f")
    assert "verysecret" not in str(caught.value)


def test_a_file_with_a_vault_table_must_say_who_logs_in(tmp_path: Path) -> None:
    file = tmp_path / "vault.toml"
    file.write_text('[vault]\nurl = "smb://nas/s/f"\n')
    with pytest.raises(ConfigError, match=r"\[vault\] user is missing"):
        load_vault(str(file))
