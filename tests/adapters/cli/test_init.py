from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.cli import frame, init
from engine.errors import StoreUnavailable
from engine.vault import slots
from engine.vault.slots import KdfCost
from tests.adapters.cli.enrolled import Machine, document, said, tree
from tests.engine.vault.fakes_vault import OTHER_PASSPHRASE, PASSPHRASE, shows

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _alone(nothing_from_outside: None) -> None:
    """No passphrase or configuration but those a test gives."""


def test_init_on_new_places_founds_a_domain_and_adopts_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Machine(tmp_path)
    assert one.init("--json") == 0
    found = document(capsys)
    identity = one.identity()
    assert found["founded"]
    assert not found["already_enrolled"]
    assert found["system"] == "web-01"
    assert found["system_id"] == identity.system.hex()
    assert found["vault"]["store"] == identity.vault.hex()
    assert found["cache"]["store"] == (identity.cache or b"").hex() != ""
    assert found["cache"]["adopted"]
    assert found["problems"] == []
    assert found["exit_code"] == 0
    for store in (one.vault, one.cache):
        assert (store / identity.certificate_name).read_bytes() == identity.certificate
        assert [(name, (store / name).read_bytes()) for name, _ in identity.slots] == identity.slots
    if os.name == "posix":
        assert stat.S_IMODE(one.identity_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(one.state.stat().st_mode) == 0o700


def test_a_passphrase_is_dear_to_guess(
    tmp_path: Path, cheap: type[KdfCost], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vars(slots), "KdfCost", cheap)
    one = Machine(tmp_path)
    assert one.init() == 0
    assert [slots.parse_slot_object(name, data).cost for name, data in one.identity().slots] == [cheap()]
    assert cheap() == cheap(256 * 1024, 3, 4)


def test_a_vault_that_goes_away_at_the_end_undoes_no_enrolment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> str | None:
        raise StoreUnavailable("the server went away")

    monkeypatch.setattr(init, "weakness_of", away)
    one = Machine(tmp_path)
    assert one.init("--json") == 4
    found = document(capsys)
    assert found["founded"]
    assert found["cache"]["adopted"]
    assert found["problems"] == ["the vault could not be asked what its server can do: the server went away"]
    assert found["system_id"] == one.identity().system.hex()


def test_init_again_says_so_and_changes_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(machine.shared)
    assert machine.init(passphrase=False) == 0
    assert "already enrolled" in capsys.readouterr().out
    assert machine.init("--json") == 0
    found = document(capsys)
    assert found["already_enrolled"]
    assert not found["founded"]
    assert not found["cache"]["adopted"]
    assert tree(machine.shared) == before


def test_another_machine_joins_vault_and_cache(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    other = Machine(machine.shared, "web-02")
    assert other.init("--json") == 0
    found = document(capsys)
    assert not found["founded"]
    assert found["cache"]["other_domains"] == 0
    assert other.identity().keys == machine.identity().keys
    assert other.identity().vault == machine.identity().vault
    assert other.identity().cache == machine.identity().cache
    assert (machine.cache / other.identity().certificate_name).is_file()


def test_a_machine_without_a_cache_is_enrolled_without(tmp_path: Path, machine: Machine) -> None:
    other = Machine(machine.shared, "web-02", cache=False)
    assert other.init() == 0
    assert other.identity().cache is None
    assert not (machine.cache / other.identity().certificate_name).exists()


def test_a_taken_name_is_refused_and_nothing_is_done(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(machine.shared)
    twin = Machine(machine.shared, folder="twin")
    added = tree(machine.shared)
    assert twin.init() == frame.USAGE
    assert "--replace" in said(capsys)
    assert tree(machine.shared) == added
    assert before.items() <= added.items()


def test_a_wrong_passphrase_is_refused_not_repeated_and_nothing_is_done(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Machine(machine.shared, "web-02")
    other.configure(cache=machine.shared / "another cache")
    other.give("wrong horse entirely")
    before = tree(machine.shared)
    assert other.init("--json") == frame.USAGE
    out, err = capsys.readouterr()
    assert "passphrase is wrong" in err
    assert "horse" not in out + err
    assert tree(machine.shared) == before


def test_replace_takes_the_place_and_keeps_what_opens_history(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    old = machine.identity()
    machine.restart()
    assert machine.init() == frame.USAGE
    assert "already has a system named 'web-01'" in said(capsys)
    assert machine.init("--replace", "--json") == 0
    assert document(capsys)["replaced"]
    new = machine.identity()
    assert (new.system, new.listing_key, new.certificate_number) == (old.system, old.listing_key, 2)
    assert new.signing_private != old.signing_private
    assert new.cache == old.cache
    assert (machine.cache / new.certificate_name).is_file()


def test_replace_also_works_on_a_damaged_identity(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.identity_file.write_bytes(machine.identity_file.read_bytes()[:-1])
    assert machine.init() == frame.USAGE
    assert "is damaged" in said(capsys)
    assert machine.init("--replace") == 0
    assert machine.identity().certificate_number == 2


def test_replace_on_an_empty_place_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Machine(tmp_path)
    one.vault.mkdir()  # the mount point of a disk that is not there
    before = tree(tmp_path)
    assert one.init("--replace") == frame.USAGE
    assert "mount its disk" in said(capsys)
    assert tree(tmp_path) == before


def test_without_a_passphrase_and_a_terminal_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Machine(tmp_path)
    before = tree(tmp_path)
    assert one.init(passphrase=False) == frame.USAGE
    assert "--passphrase-file" in said(capsys)
    assert tree(tmp_path) == before


def test_a_weak_passphrase_founds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Machine(tmp_path)
    one.give("hunter2hunter2")
    before = tree(tmp_path)
    assert one.init() == frame.USAGE
    err = said(capsys)
    assert "too weak" in err
    assert "hunter2" not in err
    assert tree(tmp_path) == before


def test_a_generated_passphrase_goes_to_a_new_file_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Machine(tmp_path)
    assert one.init("--generate") == frame.USAGE
    assert "exists" in said(capsys)
    one.passphrase.unlink()
    assert one.init("--generate", passphrase=False) == frame.USAGE
    assert "needs --passphrase-file" in said(capsys)
    assert not one.vault.exists()
    assert one.init("--generate", "--json") == 0
    out, err = capsys.readouterr()
    words = one.passphrase.read_text().strip()
    assert len(words.split()) == 7
    assert words not in out + err
    if os.name == "posix":
        assert stat.S_IMODE(one.passphrase.stat().st_mode) == 0o600
    other = Machine(tmp_path, "web-02")
    other.give(words)
    assert other.init("--generate") == frame.USAGE
    assert "has a passphrase already" in said(capsys)
    assert other.init() == 0


def missing_parent(one: Machine) -> None:
    one.configure(vault=one.shared / "no" / "vault")


def vault_is_a_file(one: Machine) -> None:
    one.vault.write_bytes(b"")


def vault_holds_something_else(one: Machine) -> None:
    one.vault.mkdir()
    (one.vault / "holiday.jpg").write_bytes(b"picture")


def vault_is_a_cache(one: Machine) -> None:
    from engine.vault.formatobject import new_store

    one.vault.mkdir()
    (one.vault / "format").write_bytes(new_store("cache").encode())


def vault_is_too_new(one: Machine) -> None:
    from engine.vault.formatobject import FormatObject

    one.vault.mkdir()
    (one.vault / "format").write_bytes(FormatObject("vault", bytes(16), flags_write=8).encode())


def vault_marker_is_damaged(one: Machine) -> None:
    one.vault.mkdir()
    (one.vault / "format").write_bytes(b"FOREBAY\n" + bytes(48))


def cache_parent_is_missing(one: Machine) -> None:
    one.configure(cache=one.shared / "no" / "cache")


def cache_holds_something_else(one: Machine) -> None:
    one.cache.mkdir()
    (one.cache / "holiday.jpg").write_bytes(b"picture")


def cache_is_a_vault(one: Machine) -> None:
    from engine.vault.formatobject import new_store

    one.cache.mkdir()
    (one.cache / "format").write_bytes(new_store("vault").encode())


@pytest.mark.parametrize(
    ("spoil", "sentence", "code"),
    [
        (missing_parent, "mount its disk, or make it", 2),
        (vault_is_a_file, "is not a folder", 2),
        (vault_holds_something_else, "not empty", 2),
        (vault_is_a_cache, "is a cache, not a vault", 1),
        (vault_is_too_new, "install a newer forebay", 1),
        (vault_marker_is_damaged, "object format is damaged", 1),
        (cache_parent_is_missing, "mount its disk, or make it", 2),
        (cache_holds_something_else, "not empty", 2),
        (cache_is_a_vault, "is a vault, not a cache", 1),
    ],
)
def test_a_wrong_place_is_refused_with_nothing_half_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Machine], None], sentence: str, code: int
) -> None:
    one = Machine(tmp_path)
    spoil(one)
    before = tree(tmp_path)
    assert one.init() == code
    err = said(capsys)
    assert sentence in err
    assert err.count("\n") == 0
    assert tree(tmp_path) == before


def test_a_new_cache_is_adopted_by_init_cache_alone(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    old = machine.identity()
    machine.configure(cache=machine.shared / "cache2")
    assert machine.init(passphrase=False) == frame.SOMETHING_MISSING
    assert not (machine.shared / "cache2").exists()
    capsys.readouterr()
    assert machine.init("--cache", "--json", passphrase=False) == 0
    found = document(capsys)
    new = machine.identity()
    assert found["cache"]["adopted"]
    assert new.cache is not None
    assert new.cache != old.cache
    assert (machine.shared / "cache2" / new.certificate_name).is_file()
    machine.configure(cache=machine.shared / "cache")
    assert machine.init("--json", passphrase=False) == frame.SOMETHING_MISSING
    assert "init --cache" in document(capsys)["problems"][0]
    assert machine.identity() == new


def test_a_cache_that_is_away_is_named_and_its_mount_point_stays_empty(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(machine.cache)
    machine.cache.mkdir()
    assert machine.init("--json") == frame.SOMETHING_MISSING
    assert str(machine.cache) in document(capsys)["problems"][0]
    assert os.listdir(machine.cache) == []


def test_init_cache_needs_an_identity_and_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Machine(tmp_path)
    assert one.init("--cache", passphrase=False) == frame.USAGE
    assert "not enrolled yet" in said(capsys)
    assert one.init("--cache", "--replace") == frame.USAGE
    assert "leave --replace" in said(capsys)
    assert sorted(os.listdir(tmp_path)) == ["web-01"]


def test_init_cache_without_a_cache_in_the_configuration_says_so(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.configure(cache=False)
    assert machine.init("--cache", passphrase=False) == frame.USAGE
    assert "no [cache] table" in said(capsys)


def test_a_vault_that_is_away_is_said_and_its_mount_point_stays_empty(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(machine.vault)
    machine.vault.mkdir()
    assert machine.init() == frame.FAILED
    assert str(machine.vault) in said(capsys)
    assert os.listdir(machine.vault) == []


def test_another_vault_in_the_place_of_the_own_one_is_refused(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = Machine(tmp_path / "elsewhere")
    assert other.init() == 0
    machine.configure(vault=other.vault)
    before = tree(tmp_path)
    capsys.readouterr()
    for more in ((), ("--replace",)):
        assert machine.init(*more) == frame.USAGE
        assert "is enrolled in vault" in said(capsys)
    assert tree(tmp_path) == before


def test_another_name_in_the_configuration_is_refused(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.configure(name="web-09")
    assert machine.init() == frame.USAGE
    assert "enrolled as 'web-01'" in said(capsys)


def test_an_identity_that_others_may_read_is_refused(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.identity_file.chmod(0o644)
    assert machine.init() == frame.USAGE
    assert "chmod 600" in said(capsys)


def test_a_certificate_that_was_tampered_with_is_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    name = machine.identity().certificate_name
    path = machine.vault / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert machine.init() == frame.FAILED
    assert name in said(capsys)


def test_a_domain_with_a_key_file_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = Machine(tmp_path), Machine(tmp_path, "web-02")
    key = tmp_path / "key"
    assert one.init("--key-file", str(key)) == frame.USAGE
    assert "cannot be read" in said(capsys)
    key.write_bytes(b"")
    assert one.init("--key-file", str(key)) == frame.USAGE
    assert "is open to every user: run chmod o= on it" in said(capsys)
    key.chmod(0o600)
    assert one.init("--key-file", str(key)) == frame.USAGE
    assert "is empty" in said(capsys)
    key.write_bytes(b"a second factor")
    assert one.init("--key-file", str(key)) == 0
    assert other.init() == frame.USAGE
    assert "--key-file" in said(capsys)
    assert other.init("--key-file", str(key)) == 0


def test_two_domains_share_a_cache_and_init_says_so(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    other = Machine(machine.shared, "db-01")
    other.configure(vault=machine.shared / "vault2")
    other.give(OTHER_PASSPHRASE)
    assert other.init() == 0
    assert "1 other domain" in capsys.readouterr().out
    assert other.identity().domain != machine.identity().domain


def command(one: Machine, *more: str) -> list[str]:
    return [sys.executable, "-m", "adapters.main", *one.arguments(*more)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_real_program_shows_no_secret_in_output_logs_or_arguments(tmp_path: Path) -> None:
    one = Machine(tmp_path)
    texts = []
    for more in ((), (), ("--replace",)):
        line = command(one, "--verbose", "--log", "json", "--json", *more)
        done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
        texts += [done.stdout, done.stderr, " ".join(line)]
    identity = one.identity()
    for text in texts:
        assert PASSPHRASE not in text
        for secret in (identity.domain_secret, identity.signing_private, identity.listing_key):
            assert not shows(text, secret)
    for store in (one.vault, one.cache):
        for content in tree(store).values():
            assert b"web-01" not in content
            for secret in (identity.domain_secret, identity.signing_private, identity.listing_key):
                assert secret not in content


# The program, but for the cost of a slot: what is killed is to be killed between its steps, not while it guesses.
CHEAP = """
import sys
from adapters.main import run
from engine.vault import slots
real = slots.KdfCost
slots.KdfCost = lambda *cost: real(*cost) if cost else real.cheapest()
sys.exit(run(sys.argv[1:]))
"""
MOMENTS = {
    "the cache is made": "cache/format",
    "the vault is made": "vault/format",
    "the slot is put": "vault/key",
    "the identity is staged": "web-01/state/identity.enrolling",
    "the certificate is put": "vault/cert",
    "the identity is written": "web-01/state/identity",
    "the cache gets its copies": "cache/key",
    "the cache gets the certificate": "cache/cert",
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_killed_at_any_moment_and_repeated_it_is_done(
    tmp_path: Path, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Machine(tmp_path)
    appears = tmp_path / moment
    line = [sys.executable, "-c", CHEAP, *one.arguments()]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not appears.exists():
        pass
    process.kill()
    process.wait()
    assert appears.exists()
    assert one.init() == 0, said(capsys)
    assert one.init("--json") == 0
    identity = one.identity()
    for store in (one.vault, one.cache):
        names = {name for name, content in tree(store).items() if content != b"<folder>"}
        assert names == {"format", identity.certificate_name, identity.slots[0][0]}
    assert os.listdir(one.state) == ["identity"]


class Terminal:
    """The real program on a terminal of its own."""

    def __init__(self, one: Machine, *more: str) -> None:
        line = [sys.executable, "-m", "adapters.main", *one.arguments(*more, passphrase=False)]
        code = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *line],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.seen = ""

    def until(self, text: str) -> str:
        """Read until `text` appears; return what was read for it."""
        assert self.process.stdout is not None
        start = len(self.seen)
        while text not in self.seen[start:]:
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"{text!r} did not appear in {self.seen!r}"
            self.seen += piece.decode().replace("\r\n", "\n")
        return self.seen[start:]

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.process.stdout, self.process.stdin:
            while piece := os.read(self.process.stdout.fileno(), 4096):
                self.seen += piece.decode()
            return self.process.wait()


def offered(terminal: Terminal) -> str:
    shown = terminal.until("type one of your own")
    [words] = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert len(words.split()) == 7
    return words


def test_on_a_terminal_a_passphrase_is_offered_shown_once_and_asked_back(tmp_path: Path) -> None:
    one = Machine(tmp_path)
    terminal = Terminal(one)
    words = offered(terminal)
    terminal.type("")
    terminal.until("last two words")
    terminal.type("not these")
    terminal.until("last two words")
    terminal.type(" ".join(words.split()[-2:]).upper())
    assert terminal.end() == 0, terminal.seen
    assert terminal.seen.count(words) == 1
    one.give(words)
    one.restart()
    assert one.init("--replace") == 0


def test_on_a_terminal_an_own_passphrase_is_typed_twice_and_never_shown(tmp_path: Path) -> None:
    one = Machine(tmp_path)
    terminal = Terminal(one)
    offered(terminal)
    terminal.type(PASSPHRASE)
    terminal.until("again")
    terminal.type(PASSPHRASE)
    assert terminal.end() == 0, terminal.seen
    assert PASSPHRASE not in terminal.seen
    one.restart()
    assert one.init("--replace") == 0


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["", "a b", "c d", "e f"], "not its last two words"),
        ([PASSPHRASE, PASSPHRASE + "s"], "differ"),
        (["hunter2hunter2"], "too weak"),
    ],
    ids=["not written down", "mistyped", "weak"],
)
def test_on_a_terminal_what_is_not_kept_founds_nothing(tmp_path: Path, typed: list[str], sentence: str) -> None:
    one = Machine(tmp_path)
    before = tree(tmp_path)
    terminal = Terminal(one)
    terminal.until("type one of your own")
    for answer in typed:
        terminal.type(answer)
        if answer is not typed[-1]:
            terminal.until(":")
    assert terminal.end() == frame.USAGE, terminal.seen
    assert sentence in terminal.seen
    assert tree(tmp_path) == before
