"""The documents against the code: bytes, names, tests, commands and settings they name are those there are."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from adapters import main
from adapters.config import parse_config
from adapters.config.load import TABLES, settings
from engine import names
from engine.block import BLOCK_BYTES, PART_BYTES, ref_of
from engine.fragment import FRAGMENT_READ_MAX, INDEX_HEADER_BYTES
from engine.note import NOTE_KINDS
from engine.opener import RECORDS_MAX
from engine.pack import FOOTER_BYTES_MIN, PACK_HEADER_BYTES, PACK_READ_MAX, PACK_SIZE_MIN, PACK_TAIL_BYTES
from engine.packtable import PACK_ROW_BYTES
from engine.page import ADDRESS_BYTES, CHILD, INNER_CHILDREN, LEAF_ENTRIES, LEAF_EXTENTS, LEVEL_MAX, TABLE_ROWS
from engine.pipeline.reliance import PACKS_OF_WRITER_MAX, READ_BYTES_MAX
from engine.removal import REMOVAL_HEADER_BYTES, REMOVAL_READ_MAX
from engine.report import REPORT_BYTES_MAX
from engine.reportbody import (
    SESSIONS_MAX,
    SHORT_MAX,
    TEXT_MAX,
    WARNINGS_MAX,
    WORD_MAX,
    AttemptLine,
    BacklogLine,
    CacheLine,
    PointsLine,
    ReportBody,
    RoomLine,
    SessionLine,
    VaultLine,
)
from engine.reporting import KEPT
from engine.root import KIND as ROOT_KIND
from engine.root import RUNS_MAX, RootBody, RunDescriptor, VolumePoint
from engine.seal import HEADER_BYTES, RECORD_BYTES_MAX, RECORD_BYTES_MIN, ZSTD_WINDOW_MAX, Codec, build_header
from engine.subkeys import DomainKeys, derive, record_keys
from engine.trailer import TRAILER_BYTES
from engine.vault import hpke
from engine.vault.certificate import CERTIFICATE_BYTES_MAX, CERTIFICATES_MAX
from engine.vault.framing import SLOT_BYTES_MAX, SLOTS_MAX
from engine.vault.passphrase import LENGTH_MAX
from engine.vault.slots import KdfCost

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "docs/FORMAT.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "docs/SECURITY.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8")
DOCUMENTS = {"FORMAT.md": FORMAT, "SECURITY.md": SECURITY, "OPERATIONS.md": OPERATIONS}
# What only local state has, which is no part of the format.
LOCAL = ("engine/mirror.py", "engine/vault/identity.py")
BYTES = re.compile(r'b("(?:FB|FOREBAY|forebay)[^"]*")')


def grouped(number: int) -> str:
    return f"{number:,}"


def stored_constants() -> dict[str, bytes]:
    """Return every magic and label of the engine by how the document writes it."""
    found: dict[str, bytes] = {}
    for file in sorted((ROOT / "engine").rglob("*.py")):
        if file.relative_to(ROOT).as_posix() not in LOCAL:
            for literal in BYTES.findall(file.read_text(encoding="utf-8")):
                value = ast.literal_eval("b" + literal)
                shown = value.decode().replace("\0", "\\0").replace("\1", "\\1").replace("\n", "\\n")
                found[shown] = value
    return found


CONSTANTS = stored_constants()


def test_there_are_constants_to_look_for() -> None:
    assert {"FOREBAY\\n", "FBPACK\\0\\1", "FBINDEX\\1", "forebay root v1\\0", "forebay listing v1\\0"} <= set(CONSTANTS)


@pytest.mark.parametrize("shown", CONSTANTS)
def test_the_format_names_every_magic_and_label(shown: str) -> None:
    quoted = f'"{shown}"' if shown.startswith("forebay") else f"`{shown}`"
    assert quoted in FORMAT


def test_the_format_names_every_subkey_and_how_it_is_derived() -> None:
    uses: set[str] = set()
    for file in (ROOT / "engine").rglob("*.py"):
        uses |= set(re.findall(r'\bderive\("([a-z]+)"', file.read_text(encoding="utf-8")))
    assert len(uses) >= 7
    for use in uses:
        assert f'derive("{use}", ' in FORMAT, use
    assert '"forebay 2026 v1 " + use' in FORMAT


@pytest.mark.parametrize(
    "stated",
    [
        f"A part is one of the up to sixteen 4 KiB ({grouped(PART_BYTES)} bytes)".replace("A part", "A *part*"),
        f"64 KiB ({grouped(BLOCK_BYTES)} bytes)",
        f"a header of {HEADER_BYTES} bytes and a body",
        f"No record is shorter than {RECORD_BYTES_MIN} bytes or longer than {grouped(RECORD_BYTES_MAX)}.",
        f"a window over 128 KiB ({grouped(ZSTD_WINDOW_MAX)} bytes)",
        f"Forebay reads at most {RECORDS_MAX} records for one block",
        f"at offset ≥ {PACK_HEADER_BYTES} and ends at least {FOOTER_BYTES_MIN} bytes before its pack's end",
        f"(a pack: {PACK_TAIL_BYTES} bytes before its end) with {TRAILER_BYTES} bytes",
        f"No pack is smaller than {PACK_SIZE_MIN} bytes or larger than {PACK_READ_MAX >> 20} MiB",
        f"1 to {PACK_READ_MAX >> 20} MiB ({grouped(PACK_READ_MAX)})",
        f"| *offset {INDEX_HEADER_BYTES}* |",
        f"| pack of blocks | {PACK_READ_MAX >> 20} MiB |",
        f"| {FRAGMENT_READ_MAX >> 20} MiB |",
        f"| *offset {REMOVAL_HEADER_BYTES}* |",
        f"in caches only, sequences from 1 | {REMOVAL_READ_MAX >> 20} MiB |",
        f"have rows of {PACK_ROW_BYTES} bytes",
        f"A **page address** is {ADDRESS_BYTES} bytes",
        f"1 to {INNER_CHILDREN} children, {CHILD.itemsize} bytes each",
        f"`count` ≤ {LEAF_ENTRIES} blocks, z ≤ {LEAF_EXTENTS} zero extents",
        f"`count` 1 to {TABLE_ROWS} pack rows",
        f"Trees are at most {LEVEL_MAX + 1} pages deep",
        f"is at most {RUNS_MAX} runs, oldest first",
        f"| {grouped(SLOT_BYTES_MAX)} bytes, {SLOTS_MAX} in a store |",
        f"| {grouped(CERTIFICATE_BYTES_MAX)} bytes, {grouped(CERTIFICATES_MAX)} in a domain |",
        f"1 to {grouped(LENGTH_MAX)} characters",
        f"New slots have {KdfCost().memory_kib} KiB, {KdfCost().iterations} iterations, {KdfCost().lanes} lanes",
        f"private key, {hpke.PRIVATE_BYTES}",
        f"public key, {hpke.PUBLIC_BYTES}",
        f"sealed, plaintext + {hpke.OVERHEAD_BYTES}",
        f"all such packs up to {grouped(PACKS_OF_WRITER_MAX)} of one writer",
        f"at most {READ_BYTES_MAX >> 20} MiB of reading a session",
        f"No report is larger than {grouped(REPORT_BYTES_MAX)} bytes.",
        f"The newest {KEPT} are kept",
        f"a *sentence* has at most {TEXT_MAX} characters, a *word* {WORD_MAX}",
        f"sentence of at most {SHORT_MAX} characters",
        f"list of at most {SESSIONS_MAX} maps",
        f"list of at most {WARNINGS_MAX} sentences",
        f"AES-GCM(roots subkey, nonce, body map, associated data = the {ROOT_KIND.overhead_bytes - 80} bytes before)",
    ],
)
def test_the_format_states_the_sizes_and_bounds_of_the_code(stated: str) -> None:
    assert stated in re.sub(r"\[([^\]]+)\]\(#[^)]+\)", r"\1", re.sub(r"\s+", " ", FORMAT))


def test_the_format_names_every_field_of_signed_and_sealed_bodies() -> None:
    reports = (ReportBody, SessionLine, CacheLine, AttemptLine, PointsLine, RoomLine, BacklogLine, VaultLine)
    for struct in (RootBody, VolumePoint, RunDescriptor, *reports):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in FORMAT, f"{struct.__name__}.{field}"
    for kind in NOTE_KINDS:
        assert f"`{kind}`" in FORMAT, kind
    for prefix in names.RESERVED:
        assert f"`{prefix}`" in FORMAT, prefix


def vector(what: str) -> str:
    """Return the value of one row of the test vectors, without marks."""
    (value,) = re.findall(rf"^\| {re.escape(what)} \| (.*) \|$", FORMAT, re.MULTILINE)
    return str(value).replace("`", "")


def test_the_vectors_of_the_format_are_what_the_code_computes() -> None:
    secret, content, nonce = bytes(range(32)), b"ForebayForebayForebay", bytes(range(12))
    for use in ("blocks", "pages", "names", "macs", "roots", "slot"):
        assert vector(f'`derive("{use}", secret)`') == derive(use, secret).hex()
    keys = DomainKeys.of(bytes(16), secret)
    ref = ref_of(keys.blocks, content)
    assert vector("its ref, id ‖ key") == f"{ref[:16].hex()} ‖ {ref[16:].hex()}"
    parts, links = record_keys(ref[16:])
    assert (vector("parts key"), vector("links key")) == (parts.hex(), links.hex())
    header = build_header(ref[:16], 0, Codec.NONE, len(content), len(content) + 16, nonce)
    record = header + AESGCM(parts).encrypt(nonce, content, header)
    assert vector("its record, stored, nonce `00 01 … 0b`") == record.hex()
    mac = keys.mac(b"forebay pack v1\0", bytes(32))
    assert vector("MAC under the label of packs, checksum 32 zero bytes") == mac.hex()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings_that_are_there(document: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[document]):
        file, _, heading = link.partition("#")
        target = ROOT / "docs" / file if file else ROOT / "docs" / document
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
            assert heading in slugs, link


def cited_tests() -> list[str]:
    """Return the tests SECURITY.md names, as file::test."""
    prefixes = dict(re.findall(r"`([A-Z])`\s=\s`(tests/[a-z_/]+)`", SECURITY))
    found = [
        f"{prefixes[letter]}/{rest}" if letter else whole
        for whole, letter, rest in re.findall(
            r"`(tests/[a-z0-9_/]+\.py::test_\w+|([A-Z])/([a-z0-9_/]+\.py::test_\w+))`", SECURITY
        )
    ]
    return sorted(set(found))


def test_security_shows_its_claims_by_tests() -> None:
    assert len(cited_tests()) >= 40
    # Nothing that looks like a test escapes the pattern above.
    assert len(re.findall(r"::test_", SECURITY)) == len(re.findall(r"`[A-Za-z0-9_/]+\.py::test_\w+`", SECURITY))


@pytest.mark.parametrize("test", cited_tests())
def test_the_tests_security_names_are_there(test: str) -> None:
    file, name = test.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def options_of(command: str) -> set[str]:
    module = importlib.import_module(f"adapters.cli.{command.replace('-', '_')}")
    return {option for each in module.command.params for option in each.opts}


def test_operations_names_only_commands_and_options_that_are_there() -> None:
    everywhere = {"--config", "--json", "--progress", "--verbose", "--log", "--help", "--version"}
    lines = re.findall(r"^\s*(?:sudo )?(?:\S*/)?forebay ([^\n|&;]+)$", OPERATIONS, re.MULTILINE)
    assert len(lines) >= 15
    for line in lines:
        words = line.split()
        command = next((word for word in words if word in main.COMMANDS), None)
        assert command or words == ["--version"], line
        known = everywhere | (options_of(command) if command else set())
        assert {word for word in words if word.startswith("--")} <= known, line


def sentences() -> str:
    """Return every text in the code, one a line, with … where a value stands."""
    found: list[str] = []
    for folder in ("engine", "adapters"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values]
                    found.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_the_messages_operations_explains_are_those_of_the_code() -> None:
    table = OPERATIONS.split("\n## Messages\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    quoted = [fragment for cell in cells for fragment in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 40
    text = sentences()
    for fragment in quoted:
        for piece in re.split(r"…|\b\d+\b", fragment):
            assert piece.strip() in text, fragment


def test_operations_shows_configurations_that_are_some() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)
    assert blocks
    for block in blocks:
        raw = tomllib.loads(block)
        for table, content in raw.items():
            for row in content if isinstance(content, list) else [content]:
                assert set(row) <= set(settings(TABLES[table])), block
        if {"system", "volume", "vault"} <= set(raw):
            parse_config(block, Path("/etc/forebay/forebay.toml"))


def test_operations_explains_every_exit_code() -> None:
    for code in range(6):
        assert re.search(rf"^\| {code} \|", OPERATIONS, re.MULTILINE), code


@pytest.mark.parametrize(
    ("name", "command"), [("forebay-backup", "backup"), ("forebay-verify", "verify --deep --if-due")]
)
def test_the_tasks_for_windows_are_well_formed_and_run_the_command(name: str, command: str) -> None:
    task = tree.parse(ROOT / f"deploy/windows/{name}.xml").getroot()
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.tag == f"{space}Task"
    assert (task.findtext(f".//{space}Arguments") or "").endswith(f"lines {command}")
    assert task.findtext(f".//{space}MultipleInstancesPolicy") == "IgnoreNew"


UNITS = sorted(path.name for path in (ROOT / "deploy/systemd").iterdir())


@pytest.mark.parametrize("unit", UNITS)
def test_units_have_sections_settings_and_comments_only(unit: str) -> None:
    text = (ROOT / "deploy/systemd" / unit).read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"(#.*|\[[A-Z][A-Za-z]+\]|[A-Z][A-Za-z]+=.*|)", line), line
    assert ("[Timer]" in text) == unit.endswith(".timer")


def test_every_service_has_a_timer_and_is_shut_in_like_the_others() -> None:
    services = [name for name in UNITS if name.endswith(".service")]
    assert [name.replace(".service", ".timer") for name in services] == [name for name in UNITS if name not in services]
    sandboxes = []
    for name in services:
        lines = (ROOT / "deploy/systemd" / name).read_text(encoding="utf-8").splitlines()
        sandboxes.append([line for line in lines[lines.index("StateDirectory=forebay") :] if not line.startswith("#")])
    backup, *others = sandboxes
    assert all(other == [line for line in backup if line != "DeviceAllow=block-* r"] for other in others)
