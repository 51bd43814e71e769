"""Reading the configuration file; every mistake in it becomes one sentence: table, key, and what is allowed."""

from __future__ import annotations

import json
import os
import re
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import NODEFAULT
from msgspec.structs import FieldInfo

from adapters.config.buckets import bucket_of, is_s3
from adapters.config.contradictions import contradictions, logins
from adapters.config.model import (
    LATER,
    Cache,
    Config,
    Queue,
    Schedule,
    Spool,
    System,
    Vault,
    Volume,
    folder_of,
)
from adapters.config.places import SmbUrl, is_smb, smb_of
from adapters.config.units import (
    MIB,
    parse_days,
    parse_duration,
    parse_percent,
    parse_size,
    parse_time,
    parse_window,
    show_duration,
    show_percent,
    show_size,
)
from adapters.smallfiles import read_small
from engine.errors import ConfigError

FILE_BYTES_MAX: Final = 1 * MIB
VOLUMES_MAX: Final = 256
TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "system": System,
    "volume": Volume,
    "vault": Vault,
    "cache": Cache,
    "spool": Spool,
    "queue": Queue,
    "schedule": Schedule,
}

_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "size": parse_size,
    "duration": parse_duration,
    "window": parse_window,
    "time": parse_time,
    "percent": parse_percent,
    "days": parse_days,
}


class ConfigProblems(ConfigError):
    """All that is wrong in one configuration file; `problems` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        more = f" (and {len(problems) - 1} more: see `forebay check-config`)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = tuple(problems)


def load_config(path: Path, *, places: bool = True) -> Config:
    """Read the configuration file at `path`; see `parse_config`. Raises: ConfigError."""
    return parse_config(_read(path), path, places=places)


def parse_config(text: str, source: Path, *, places: bool = True) -> Config:
    """Return the configuration that `text`, the content of the file `source`, says.

    Relative paths in it are meant from the folder of `source`. `places`: look, too, whether what it names is in each
    other's way. Raises: ConfigError.
    """
    reader = _Reader(source)
    raw = reader.toml(text)
    tables = reader.tables(raw)
    if reader.problems:
        raise ConfigProblems(reader.problems)
    config = Config(
        system=tables["system"],
        volumes=tables["volume"],
        vault=tables["vault"],
        cache=tables.get("cache"),
        spool=tables.get("spool"),
        queue=tables.get("queue", Queue()),
        schedule=tables.get("schedule", Schedule()),
        source=source,
    )
    problems = contradictions(config) if places else []
    if problems:
        raise ConfigProblems([f"{source}: {problem}" for problem in problems])
    return config


def load_vault(source: str) -> Vault:
    """Return the vault that a URL, or a TOML file with nothing but a [vault] table, names.

    Raises: ConfigError.
    """
    if "://" in source or is_smb(source):
        return _bare_vault(source)
    if not source or Path(source).is_dir():
        example = Path(os.path.abspath(source)).as_uri() if source else "file:///srv/vault"
        raise ConfigError(f"vault {source!r} is neither a URL nor a TOML file: write a folder as {example}")
    path = Path(source)
    reader = _Reader(path)
    raw = reader.toml(_read(path))
    others = [f"[{name}]" for name in raw if name != "vault"]
    if others:
        reader.problem(f"only a [vault] table is allowed here, not {', '.join(others)}: give the file with --config")
    if "vault" not in raw:
        reader.problem("the table [vault] is missing")
    vault = reader.table("vault", raw.get("vault", {}))
    if reader.problems:
        raise ConfigProblems(reader.problems)
    assert isinstance(vault, Vault)
    if problems := list(logins(vault, None)):
        raise ConfigProblems([f"{path}: {problem}" for problem in problems])
    return vault


def _bare_vault(url: str) -> Vault:
    """Return the vault of a URL on the command line; what takes a login takes it from the environment."""
    try:
        _check_url(url)
    except ValueError as error:
        raise ConfigError(f"vault {_masked(url)!r} cannot be used: {error}") from None
    return Vault(url=url, user=_user("FOREBAY_VAULT_USER", url) if is_smb(url) else None)


def _check_url(url: str) -> None:
    """Return if a vault's URL names a place there may be. Raises: ValueError, with the reason."""
    if is_smb(url):
        smb_of(url)
    elif is_s3(url):
        bucket_of(url)
    else:
        folder_of(url, windows=os.name == "nt")


def load_cache(source: str) -> Cache:
    """Return the cache that a path or an smb:// URL on the command line names. Raises: ConfigError."""
    if not is_smb(source):
        return Cache(path=Path(os.path.abspath(source)))
    try:
        return Cache(path=smb_of(source), user=_user("FOREBAY_CACHE_USER", source))
    except ValueError as error:
        raise ConfigError(f"cache {_masked(source)!r} cannot be used: {error}") from None


def _user(variable: str, where: str) -> str:
    user = os.environ.get(variable)
    if not user:
        raise ConfigError(f"{where} needs a login: set {variable} and {variable.replace('_USER', '_PASSWORD')}")
    return user


def settings(struct: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    """Return the settings of a table by the name they have in the file."""
    return {field.encode_name: field for field in msgspec.structs.fields(struct)}


def allowed(field: FieldInfo) -> str:
    """Say which values a setting takes, as it stands in messages and in deploy/forebay.toml."""
    kind, meta = _kind(field)
    if _is_table(kind):
        inner = (f"{key}: {allowed(each)}" for key, each in settings(kind).items())
        return f"a table with any of {'; '.join(inner)}"
    if typing.get_origin(kind) is Literal:
        return " or ".join(json.dumps(choice) for choice in typing.get_args(kind))
    if kind is bool:
        return "true or false"
    if kind is Path:
        return "a path"
    if meta is not None and meta.extra is not None and "allowed" in meta.extra:
        return str(meta.extra["allowed"])
    assert meta is not None, field
    assert meta.ge is not None, field
    assert meta.le is not None, field
    match _unit_of(meta):
        case "size":
            return f"{show_size(int(meta.ge))} to {show_size(int(meta.le))}"
        case "duration":
            return f"{show_duration(meta.ge)} to {show_duration(meta.le)}"
        case "percent":
            return f"{show_percent(meta.ge)} to {show_percent(meta.le)}"
    return f"a whole number from {meta.ge} to {meta.le}"


class _Reader:
    """Collects what is wrong with one file while its tables are read."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.base = Path(os.path.abspath(source)).parent
        self.problems: list[str] = []

    def problem(self, sentence: str) -> None:
        self.problems.append(f"{self.source}: {sentence}")

    def toml(self, text: str) -> dict[str, Any]:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            windows = "\\" in str(error) or "hex value" in str(error)  # "\users" begins like a character's number
            hint = "; write Windows paths in 'single quotes'" if windows else ""
            raise ConfigError(f"{self.source} is not valid TOML: {error}{hint}") from None
        except RecursionError:
            raise ConfigError(f"{self.source} is not valid TOML: it is nested too deeply") from None

    def tables(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return the structs of the tables in `raw`; those with problems are left out."""
        found: dict[str, Any] = {}
        for name, value in raw.items():
            if name not in TABLES:
                self._unknown("", name, list(TABLES))
            elif name == "volume":
                found[name] = self._volumes(value)
            else:
                found[name] = self.table(name, value)
        for name in ("system", "volume", "vault"):
            if name not in raw:
                shown = "[[volume]]" if name == "volume" else f"[{name}]"
                self.problem(f"the table {shown} is missing")
        return found

    def table(self, name: str, raw: Any, shown: str = "", inner: type[msgspec.Struct] | None = None) -> Any:
        """Return one table (or one in a table) as its struct, or None with the problems noted."""
        shown = shown or f"[{name}]"
        if not isinstance(raw, dict):
            return self.problem(f"{name} must be a table, written {shown}")
        struct = inner or TABLES[name]
        fields = settings(struct)
        for key in raw:
            if key not in fields:
                self._unknown(name, key, list(fields), shown)
        values: dict[str, Any] = {}
        before = len(self.problems)
        for key, field in fields.items():
            if key in raw and _is_table(field.type):
                values[field.name] = self._inner(name, key, raw[key], shown, field)
            elif key in raw:
                values[field.name] = self._value(shown, key, raw[key], field)
            elif field.default is NODEFAULT and field.default_factory is NODEFAULT:
                self.problem(f"{shown} {key} is missing; allowed: {allowed(field)}")
        if len(self.problems) > before:
            return None
        try:
            return struct(**values)
        except ValueError as error:
            return self.problem(f"{shown} {error}")

    def _inner(self, table: str, key: str, raw: Any, shown: str, field: FieldInfo) -> Any:
        """Return a table in a table as its struct, or None with the problems noted."""
        if not isinstance(raw, dict):
            return self.problem(f"{shown} {key} = {_as_written(raw)}; allowed: {allowed(field)}")
        return self.table(f"{table}.{key}", raw, f"{shown} {key}:", field.type)

    def _volumes(self, raw: Any) -> tuple[Volume, ...]:
        if not isinstance(raw, list) or not raw:
            self.problem("each volume must be a table of its own, written [[volume]]")
            return ()
        if len(raw) > VOLUMES_MAX:
            self.problem(f"{len(raw)} [[volume]] tables; allowed: up to {VOLUMES_MAX}")
            return ()
        found: list[Volume] = []
        for number, entry in enumerate(raw, 1):
            name = entry.get("name") if isinstance(entry, dict) else None
            shown = f"[[volume]] {name!r}:" if isinstance(name, str) else f"[[volume]] number {number}:"
            volume = self.table("volume", entry, shown)
            if volume is None:
                continue
            twin = next((other for other in found if other.name.lower() == volume.name.lower()), None)
            if twin is not None:
                self.problem(
                    f"two [[volume]] tables have the name {volume.name!r}"
                    + ("" if twin.name == volume.name else f" ({twin.name!r} differs only in case)")
                    + "; each volume needs a name of its own"
                )
            found.append(volume)
        return tuple(found)

    def _value(self, shown: str, key: str, raw: Any, field: FieldInfo) -> Any:
        try:
            return self._convert(raw, field)
        except ValueError as error:  # msgspec.ValidationError is one
            reason = "" if isinstance(error, msgspec.ValidationError) else f" cannot be used: {error}"
            self.problem(f"{shown} {key} = {_as_written(raw)}{reason}; allowed: {allowed(field)}")
            return None

    def _convert(self, raw: Any, field: FieldInfo) -> Any:
        kind, meta = _kind(field)
        if kind is Path:
            return self._path(raw)
        unit = _unit_of(meta)
        if unit == "place":
            return self._place(raw)
        if unit and not isinstance(raw, str):
            raise ValueError("it must be text" + (" with a unit" if unit in ("size", "duration") else ""))
        if unit:
            raw = _PARSERS[unit](raw)
        if field.name == "url" and isinstance(raw, str):
            _check_url(raw)
        return msgspec.convert(raw, field.type)

    def _place(self, raw: Any) -> Path | SmbUrl:
        if isinstance(raw, str) and is_smb(raw):
            return smb_of(raw)
        return self._path(raw)

    def _path(self, raw: Any) -> Path:
        if not isinstance(raw, str):
            raise ValueError("it must be text")
        if is_s3(raw):
            raise ValueError("only a vault may be a bucket")
        if "://" in raw:
            raise ValueError("it must be a plain path, not a URL")
        if not raw or "\0" in raw:
            raise ValueError("it is empty" if not raw else "it holds a zero byte")
        if raw.startswith("~"):
            raise ValueError("~ is not expanded: write the whole path")
        return Path(os.path.abspath(self.base / raw))

    def _unknown(self, table: str, key: str, known: list[str], shown: str = "") -> None:
        what = f"{shown} {key}" if table else f"[{key}]"
        if key in LATER[table]:
            self.problem(f"{what} is not supported by this version yet: remove it")
            return
        from difflib import get_close_matches

        close = get_close_matches(key, known, n=1)
        meant = f", did you mean {close[0]}?" if close else ";"
        self.problem(f"{what} is unknown{meant} allowed {'here' if table else 'tables'}: {', '.join(known)}")


def _read(path: Path) -> str:
    data = read_small("configuration file", path, FILE_BYTES_MAX)
    try:
        return data.decode("utf-8-sig")  # Windows editors like to put a byte order mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is not valid TOML: line {line} is not UTF-8") from None


def _kind(field: FieldInfo) -> tuple[Any, msgspec.Meta | None]:
    """Return the bare type of a setting (`Path | None` counts as Path) and its bounds."""
    kind: Any = field.type
    meta: msgspec.Meta | None = None
    options = typing.get_args(kind)
    if type(None) in options:
        (kind,) = (option for option in options if option is not type(None))
    if typing.get_origin(kind) is typing.Annotated:
        kind, meta = typing.get_args(kind)[:2]
    return kind, meta


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unit_of(meta: msgspec.Meta | None) -> str:
    return str((meta.extra or {}).get("unit", "")) if meta is not None else ""


def _as_written(value: Any) -> str:
    """Return `value` as TOML would write it, cut short."""
    text = _masked(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else text[:77] + "..."


def _masked(text: str) -> str:
    """Return `text` without the logins of URLs in it, which do not belong there and must not be shown."""
    # A password may hold anything, and a mistyped URL may lack its slashes; a drive's letter is no scheme.
    scheme = re.search(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]+:/*", text)
    at = text.rfind("@")
    return text if scheme is None or at < scheme.end() else f"{text[: scheme.end()]}***{text[at:]}"
