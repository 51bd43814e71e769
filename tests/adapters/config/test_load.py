from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.config import Config, ConfigProblems, load_config, load_vault, parse_config
from adapters.config.load import FILE_BYTES_MAX
from adapters.config.model import folder_of
from engine.errors import ConfigError
from engine.policy import BusinessHours, TrimPolicy, VerifyPolicy

MINIMAL = """
[system]
name = "web-01"
[[volume]]
name = "data"
path = "/dev/vg0/data"
[vault]
url = "file:///srv/vault"
"""
SOURCE = Path("/etc/forebay/forebay.toml")


def parsed(text: str) -> Config:
    return parse_config(text, SOURCE)


def problem(text: str) -> str:
    with pytest.raises(ConfigProblems) as caught:
        parsed(text)
    assert len(caught.value.problems) == 1, caught.value.problems
    sentence = caught.value.problems[0]
    assert sentence.startswith(f"{SOURCE}: ")
    return sentence.removeprefix(f"{SOURCE}: ")


def with_table(table: str, line: str) -> str:
    """Return MINIMAL with `line` added to `table`, which may be a new one."""
    heading = {"volume": "[[volume]]"}.get(table, f"[{table}]")
    if heading not in MINIMAL:
        extra = 'path = "/mnt/usb"\n' if table in ("cache", "spool") and not line.startswith("path") else ""
        return MINIMAL + f"{heading}\n{extra}{line}\n"
    return MINIMAL.replace(heading + "\n", f"{heading}\n{line}\n")


def test_three_settings_are_enough() -> None:
    config = parsed(MINIMAL)
    assert config.system.name == "web-01"
    assert config.vault.place == Path("/srv/vault")
    assert [(volume.name, volume.path) for volume in config.volumes] == [("data", Path("/dev/vg0/data"))]
    assert (config.cache, config.spool, config.vault.on_loss) == (None, None, "restart")
    assert config.queue.size_bytes == 64 << 20
    assert config.schedule.business_hours.policy == BusinessHours()
    assert parsed(with_table("cache", "")).active_cache.verify.policy == VerifyPolicy()  # type: ignore[union-attr]
    assert config.system.identity_file == config.system.state_dir / "identity"


def test_every_setting_arrives_with_its_value() -> None:
    config = parsed(
        """
        [system]
        name = "Büro PC 2"
        state_dir = "/s"
        identity_file = "/keys/identity"
        [[volume]]
        name = "a"
        path = "/a.img"
        hints = "/a.hints"
        on_read_error = "skip"
        [[volume]]
        name = "b"
        path = "b.img"
        [vault]
        url = "file:///v"
        connect_timeout = "2 s"
        retries_max = 1
        retry_within = "2 min"
        reconnect_window = "30 min"
        reconnect_total = "3 h"
        share = "own"
        compression = "lz4"
        pack_size = "4 MiB"
        on_loss = "resume"
        paranoid = true
        delta = false
        [cache]
        path = "/c"
        enabled = false
        retries_max = 3
        on_error = "fail"
        on_slow = "skip"
        skip_after = "1500 ms"
        verify = { every = "1 h", in_business_hours = false, force_after = "720 h", read = "2.5 %" }
        heal = "points"
        trim = { min_free = "20%", max_size = "500 GiB", max_age = "14.9 d" }
        [spool]
        path = "/spool"
        max_size = "50 GiB"
        upload_window = "20:30-06:15"
        [queue]
        size = "32 MiB"
        [schedule]
        business_hours = { days = "sat-mon,wed", start = "22:00", end = "06:30" }
        """
    )
    assert config.system.name == "Büro PC 2"
    assert (config.system.state_dir, config.system.identity_file) == (Path("/s"), Path("/keys/identity"))
    first, second = config.volumes
    assert (first.hints, first.on_read_error) == (Path("/a.hints"), "skip")
    assert (second.path, second.hints, second.on_read_error) == (Path("/etc/forebay/b.img"), None, "fail")
    vault = config.vault
    assert (vault.connect_timeout_s, vault.retries_max, vault.retry_within_s) == (2.0, 1, 120.0)
    assert (vault.reconnect_window_s, vault.reconnect_total_s) == (1800.0, 10_800.0)
    assert (vault.share, vault.compression, vault.pack_size_bytes, vault.paranoid) == ("own", "lz4", 4 << 20, True)
    assert (vault.delta, vault.on_loss) == (False, "resume")
    cache = config.cache
    assert cache is not None
    assert (cache.enabled, cache.retries_max, cache.on_error) == (False, 3, "fail")
    assert (cache.on_slow, cache.skip_after_s) == ("skip", 1.5)
    assert cache.verify.policy == VerifyPolicy(3600, False, 720 * 3600, 0.025)
    assert cache.heal == "points"
    assert cache.trim.policy == TrimPolicy(0.2, 500 << 30, 14)
    assert config.schedule.business_hours.policy == BusinessHours(frozenset({5, 6, 0, 2}), 22 * 60, 6 * 60 + 30)
    assert config.spool is not None
    assert (config.spool.path, config.spool.max_size_bytes) == (Path("/spool"), 50 << 30)
    assert config.spool.upload_window_minutes == (20 * 60 + 30, 6 * 60 + 15)
    assert config.queue.size_bytes == 32 << 20
    assert config.active_cache is None


def test_the_configuration_is_frozen() -> None:
    config = parsed(MINIMAL)
    with pytest.raises(AttributeError):
        config.vault.url = "file:///x"  # type: ignore[misc]


def test_relative_paths_are_meant_from_the_folder_of_the_file() -> None:
    config = parsed(MINIMAL.replace("/dev/vg0/data", "../disks/data.img"))
    assert config.volumes[0].path == Path("/etc/disks/data.img")


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ("vault", "retry_max = 3", "[vault] retry_max is unknown, did you mean retries_max? allowed here: url,"),
        ("vault", "colour = 3", "[vault] colour is unknown; allowed here: url,"),
        ("volume", "pth = 3", "[[volume]] 'data': pth is unknown, did you mean path? allowed here: name, path,"),
        ("vault", "retries_max = 101", "[vault] retries_max = 101; allowed: a whole number from 0 to 100"),
        ("vault", "retries_max = true", "[vault] retries_max = true; allowed: a whole number from 0 to 100"),
        ("vault", "retries_max = 1.5", "[vault] retries_max = 1.5; allowed: a whole number from 0 to 100"),
        ("vault", 'pack_size = "3 MiB"', '[vault] pack_size = "3 MiB"; allowed: 4 MiB to 64 MiB'),
        ("vault", "pack_size = 16", "pack_size = 16 cannot be used: it must be text with a unit; allowed: 4 MiB to"),
        ("vault", 'pack_size = "16 mb"', "unit 'mb' is unknown (units: B, kB, MB"),
        ("vault", 'connect_timeout = "0.5 s"', 'connect_timeout = "0.5 s"; allowed: 1 s to 5 min'),
        ("vault", 'share = "all"', '[vault] share = "all"; allowed: "vault" or "own"'),
        ("vault", "paranoid = 1", "[vault] paranoid = 1; allowed: true or false"),
        ("system", "state_dir = 5", "[system] state_dir = 5 cannot be used: it must be text; allowed: a path"),
        ("system", 'state_dir = "~/x"', "~ is not expanded: write the whole path"),
        ("system", 'state_dir = ""', "it is empty"),
        ("cache", 'path = "smb://nas/share"', "it names no folder in the share: write smb://server/share/folder"),
        ("cache", 'path = "file:///x"', "it must be a plain path, not a URL"),
        ("cache", "trim.min_free = '0.9%'", '[cache] trim: min_free = "0.9%"; allowed: 1% to 95%'),
        ("cache", "trim.min_free = '96%'", '[cache] trim: min_free = "96%"; allowed: 1% to 95%'),
        ("cache", "trim.max_size = '255 MiB'", '[cache] trim: max_size = "255 MiB"; allowed: 256 MiB to 1024 TiB'),
        (
            "cache",
            "trim.max_age = 30",
            "[cache] trim: max_age = 30 cannot be used: it must be text with a unit; allowed",
        ),
        ("cache", "trim = '15%'", '[cache] trim = "15%"; allowed: a table with any of min_free: 1% to 95%; max_size'),
        ("cache", "heal = 'all'", '[cache] heal = "all"; allowed: "current" or "points"'),
        ("cache", "verify.read = '101%'", '[cache] verify: read = "101%"; allowed: 0% to 100%'),
        ("cache", "verify.read = 0.05", "[cache] verify: read = 0.05 cannot be used: it must be text; allowed: 0% to"),
        ("cache", "verify.read = '5'", "'5' is no percentage such as 5%; allowed: 0% to 100%"),
        ("cache", "verify = '24 h'", '[cache] verify = "24 h"; allowed: a table with any of every: 1 h to 30 d; in_b'),
        ("cache", "verify.every = '59 min'", '[cache] verify: every = "59 min"; allowed: 1 h to 30 d'),
        ("cache", "verify.every = '721 h'", '[cache] verify: every = "721 h"; allowed: 1 h to 30 d'),
        ("cache", "verify = { every = 24 }", "[cache] verify: every = 24 cannot be used: it must be text with a unit"),
        ("cache", "verify.force_after = '59 min'", '[cache] verify: force_after = "59 min"; allowed: 1 h to 30 d'),
        ("cache", "verify.in_business_hours = 0", "in_business_hours = 0; allowed: true or false"),
        (
            "cache",
            "verify.evry = '2 h'",
            "[cache] verify: evry is unknown, did you mean every? allowed here: every, in",
        ),
        ("schedule", "business_hours = true", "[schedule] business_hours = true; allowed: a table with any of days: "),
        ("schedule", "business_hours.day = 'x'", "[schedule] business_hours: day is unknown, did you mean days?"),
        ("schedule", "business_hours.days = 'mo'", "'mo' is no day of the week (days: mon, tue, wed, thu, fri, sat"),
        ("schedule", "business_hours.days = 5", "days = 5 cannot be used: it must be text; allowed: days of the week"),
        ("schedule", "business_hours.start = '8'", "'8' is no time of day such as 18:00; allowed: a time of day"),
        ("schedule", "business_hours.start = '18:00'", "[schedule] business_hours: start and end are the same: write"),
        ("schedule", "business_hours.start = '24:00'", 'business_hours: start = "24:00" is no start: write "00:00"'),
        ("vault", 'reconnect_window = "25 h"', '[vault] reconnect_window = "25 h"; allowed: 0 s to 24 h'),
        (
            "vault",
            "reconnect_total = 5",
            "[vault] reconnect_total = 5 cannot be used: it must be text with a unit",
        ),
        ("vault", "delta = 0", "[vault] delta = 0; allowed: true or false"),
        ("vault", 'on_loss = "wait"', '[vault] on_loss = "wait"; allowed: "restart" or "resume"'),
        ("vault", "lock = 30", "[vault] lock = 30 cannot be used: it must be text with a unit"),
        ("vault", 'lock = "12 h"', '[vault] lock = "12 h"; allowed: 24 h to 3650 d'),
        ("vault", 'lock_mode = "strict"', '[vault] lock_mode = "strict"; allowed: "governance" or "compliance"'),
        ("spool", 'max_size = "255 MiB"', '[spool] max_size = "255 MiB"; allowed: 256 MiB to 1024 TiB'),
        ("spool", "max_size = 300", "[spool] max_size = 300 cannot be used: it must be text with a unit"),
        ("spool", "upload_window = 20", "[spool] upload_window = 20 cannot be used: it must be text; allowed: two"),
        ("spool", 'upload_window = "20-6"', "'20-6' is no window such as 20:00-06:00; allowed: two different times"),
        ("spool", 'upload_window = "20:00-24:00"', "'20:00-24:00' is no window such as 20:00-06:00"),
        ("spool", 'upload_window = "20:00-20:00"', "it ends when it begins: leave it out for the whole day"),
        ("schedule", 'backup = "x"', "[schedule] backup is not supported by this version yet: remove it"),
        ("bandwidth", 'limit = "x"', "[bandwidth] is not supported by this version yet: remove it"),
        ('"cache.verify"', "x = 1", "[cache.verify] is unknown"),
        ("queues", 'size = "8 MiB"', "[queues] is unknown, did you mean queue? allowed tables: system, volume,"),
        ("queue", 'size = "7 MiB"', '[queue] size = "7 MiB"; allowed: 8 MiB to 222 MiB'),
    ],
)
def test_a_bad_setting_is_named_with_its_table_and_what_is_allowed(table: str, line: str, words: str) -> None:
    assert words in problem(with_table(table, line))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "'' is no name of a bucket"),
        ("smb://nas/share", "it names no folder in the share: write smb://server/share/folder"),
        ("/srv/vault", "it is no file://, smb:// or s3:// URL; allowed: a file:// URL with an absolute path"),
        ("file://nas/share", "it names the host 'nas'"),
        ("file:///", "it names no folder"),
        ("file:///a?b", "%3F"),
    ],
)
def test_a_vault_url_that_is_no_folder_is_refused_with_the_reason(url: str, words: str) -> None:
    assert words in problem(MINIMAL.replace("file:///srv/vault", url))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ('name = "web-01"', "[system] name is missing; allowed: 1 to 64 letters"),
        ('url = "file:///srv/vault"', "[vault] url is missing; allowed: a file:// URL"),
        ('path = "/dev/vg0/data"', "[[volume]] 'data': path is missing; allowed: a path"),
        ('name = "data"', "[[volume]] number 1: name is missing"),
    ],
)
def test_a_missing_setting_is_named(missing: str, words: str) -> None:
    assert words in problem(MINIMAL.replace(missing, ""))


def test_missing_tables_are_all_named_at_once() -> None:
    with pytest.raises(ConfigProblems) as caught:
        parsed("")
    assert [sentence.split(": ", 1)[1] for sentence in caught.value.problems] == [
        "the table [system] is missing",
        "the table [[volume]] is missing",
        "the table [vault] is missing",
    ]
    assert "(and 2 more: see `forebay check-config`)" in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "a" * 65, "-a", "..", "a\\n", "é"])
def test_a_volume_name_that_could_be_no_file_name_is_refused(name: str) -> None:
    assert "name = " in problem(MINIMAL.replace('"data"', f'"{name}"'))


@pytest.mark.parametrize("name", ["", " web", "web ", "a\\tb", "x" * 65, "a/b"])
def test_a_system_name_is_plain_text(name: str) -> None:
    assert "[system] name = " in problem(MINIMAL.replace('"web-01"', f'"{name}"'))


def test_two_volumes_need_two_names() -> None:
    again = '[[volume]]\nname = "{}"\npath = "/b"\n[vault]'
    assert "two [[volume]] tables have the name 'data'" in problem(MINIMAL.replace("[vault]", again.format("data")))
    assert "differs only in case" in problem(MINIMAL.replace("[vault]", again.format("Data")))


def test_a_single_volume_table_is_told_how_to_be_written() -> None:
    assert "written [[volume]]" in problem(MINIMAL.replace("[[volume]]", "[volume]"))
    assert "system must be a table" in problem("system = 5\n" + MINIMAL.replace('[system]\nname = "web-01"', ""))


@pytest.mark.parametrize(
    ("vault", "cache", "state"),
    [
        ("/srv/vault", "/srv/vault/cache", "/s"),
        ("/srv/cache/vault", "/srv/cache", "/s"),
        ("/srv/x", "/srv/y/../x", "/s"),
        ("/srv/vault", "/c", "/srv/vault/state"),
        ("/s/vault", "/c", "/s"),
        ("/srv/vault", "/s/cache", "/s"),
    ],
)
def test_stores_and_state_inside_each_other_are_refused(vault: str, cache: str, state: str) -> None:
    text = MINIMAL.replace("/srv/vault", vault).replace("[system]", f'[system]\nstate_dir = "{state}"')
    assert "must not lie inside each other" in problem(text + f'[cache]\npath = "{cache}"\n')


@pytest.mark.parametrize("spool", ["/srv/vault/spool", "/srv", "/srv/vault", "/c", "/c/x", "/s"])
def test_a_spool_in_another_store_or_around_the_state_is_refused(spool: str) -> None:
    text = MINIMAL.replace("[system]", '[system]\nstate_dir = "/s"\nidentity_file = "/keys/identity"')
    sentence = problem(text + f'[cache]\npath = "/c"\n[spool]\npath = "{spool}"\n')
    assert f"[spool] path ({spool})" in sentence
    assert "must not lie inside each other" in sentence


@pytest.mark.parametrize("spool", ["/s/volumes", "/s/index/spool", "/s/journal"])
def test_a_spool_may_lie_in_the_state_directory_but_not_where_state_is_kept(spool: str) -> None:
    text = MINIMAL.replace("[system]", '[system]\nstate_dir = "/s"')
    found = parsed(text + '[spool]\npath = "/s/spool"\n').spool
    assert found is not None
    assert (found.path, found.max_size_bytes, found.upload_window_minutes) == (Path("/s/spool"), None, None)
    sentence = problem(text + f'[spool]\npath = "{spool}"\n')
    assert f"[spool] path ({spool}) is where [system] state_dir keeps its own files" in sentence
    assert "such as /s/spool" in sentence


def test_keys_and_volumes_in_the_spool_are_refused() -> None:
    text = MINIMAL + '[spool]\npath = "/var/lib/forebay/spool"\n'
    keys = text.replace("[system]", '[system]\nidentity_file = "/var/lib/forebay/spool/identity"')
    assert "keys must not lie where the backups are" in problem(keys)
    volume = MINIMAL.replace("/dev/vg0/data", "/spool/data.img") + '[spool]\npath = "/spool"\n'
    assert "lies in [spool] path (/spool), where Forebay keeps its own files" in problem(volume)


def test_a_name_that_only_begins_alike_is_not_inside() -> None:
    assert parsed(MINIMAL + '[cache]\npath = "/srv/vault2"\n').cache is not None


def test_memory_beyond_the_bound_is_refused_with_the_size_that_fits() -> None:
    queue = '[queue]\nsize = "95 MiB"\n'
    sentence = problem(MINIMAL + queue + '[cache]\npath = "/c"\n')
    assert "351 MiB of memory; allowed: 350 MiB" in sentence
    assert "a [queue] size of at most 94 MiB" in sentence
    assert parsed(MINIMAL + queue).memory_bytes == 223 << 20
    assert parsed(MINIMAL + queue + '[cache]\npath = "/c"\nenabled = false\n').memory_bytes == 223 << 20
    assert parsed(MINIMAL + queue.replace("95", "94") + '[cache]\npath = "/c"\n').memory_bytes == 350 << 20


def test_bad_toml_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[system]\nname = \n")
    with pytest.raises(ConfigError, match=r"f\.toml is not valid TOML: .*line 2"):
        load_config(file)
    file.write_text('[system]\nstate_dir = "C:\\ProgramData"\n')
    with pytest.raises(ConfigError, match="write Windows paths in 'single quotes'"):
        load_config(file)
    file.write_bytes(b"[system]\nname = '\xff'\n")
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        load_config(file)
    file.write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(file)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(file).source == file


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "big.toml").write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        load_config(tmp_path / "big.toml")


def test_a_vault_is_named_by_url_or_by_a_file_with_just_its_table(tmp_path: Path) -> None:
    assert load_vault("file:///srv/vault").place == Path("/srv/vault")
    with pytest.raises(ConfigError, match="it is no file://, smb:// or s3:// URL"):
        load_vault("http://bucket")
    file = tmp_path / "vault.toml"
    file.write_text('[vault]\nurl = "file:///srv/v%20w"\n')
    assert load_vault(str(file)).place == Path("/srv/v w")
    file.write_text(MINIMAL)
    with pytest.raises(ConfigError, match=r"only a .vault. table is allowed here"):
        load_vault(str(file))
    file.write_text("")
    with pytest.raises(ConfigError, match=r"the table \[vault\] is missing"):
        load_vault(str(file))


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///C:/vault", "C:\\vault"),
        ("file:///c:/a%20b/c", "c:\\a b\\c"),
        ("FILE://localhost/D:/x", "D:\\x"),
    ],
)
def test_a_file_url_names_a_folder_on_a_windows_drive(url: str, folder: str) -> None:
    assert folder_of(url, windows=True) == folder


@pytest.mark.parametrize("url", ["file:///vault", "file:///C:", "file:///C:/", "file:///1:/x", "file://srv/C:/x"])
def test_a_file_url_without_a_drive_is_refused_on_windows(url: str) -> None:
    with pytest.raises(ValueError, match="it names"):
        folder_of(url, windows=True)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_configuration_or_gets_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError):
        parsed(text)


@given(
    st.sampled_from(["system", "vault", "cache", "spool", "queue"]),
    st.sampled_from(
        ["name", "state_dir", "path", "size", "retries_max", "pack_size", "enabled", "share", "verify", "upload_window"]
    ),
    st.one_of(st.integers(), st.text(max_size=12), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_any_value_is_taken_within_its_bounds_or_gets_a_sentence(table: str, key: str, value: object) -> None:
    if table == "system" and key == "name":
        return  # a second one is no TOML at all
    sentence = ""
    memory = 0
    try:
        config = parsed(with_table(table, f"{key} = {json.dumps(value)}"))
    except ConfigError as error:
        sentence = str(error)
    else:
        memory = config.memory_bytes
    assert sentence.startswith(str(SOURCE)) or 0 < memory <= 350 << 20
