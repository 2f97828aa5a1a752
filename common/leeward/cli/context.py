"""Where to connect to and as whom: options, then the environment, then the configuration file.

`~/.config/leeward/config.toml` (`$XDG_CONFIG_HOME` where that is set) holds named contexts:

    current = "lab"

    [contexts.lab]
    endpoints = ["10.0.0.1:7443", "10.0.0.2:7443"]
    tls_dir = "~/pki/admin-alice"
    project = "default"
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from leeward.errors import FailedPrecondition, InvalidArgument

DEFAULT_ENDPOINT = "127.0.0.1:7443"
DEFAULT_PROJECT = "default"

_CONTEXT_KEYS = ("endpoints", "tls_dir", "project")
_TOP_KEYS = ("current", "contexts")


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"  # For people.
    JSON = "json"  # The API's own messages: an array for lists, an object for one.
    YAML = "yaml"  # The same as YAML.
    NAME = "name"  # Resource names only, one a line.


@dataclass(slots=True)
class Options:
    """The global options as they were given; None where they were not."""

    endpoint: list[str] | None = None
    tls_dir: Path | None = None
    project: str | None = None
    context: str | None = None
    output: Format | None = None

    @property
    def format(self) -> Format:
        """How to write results: a table unless told otherwise."""
        return self.output or Format.TABLE


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect to and as whom, once everything has been looked at."""

    endpoints: tuple[str, ...]
    tls_dir: Path | None
    project: str


@dataclass(frozen=True, slots=True)
class _Context:
    endpoints: tuple[str, ...] = ()
    tls_dir: Path | None = None
    project: str = ""


@dataclass(frozen=True, slots=True)
class _Config:
    current: str = ""
    contexts: Mapping[str, _Context] = field(default_factory=dict)


def resolve(options: Options, environment: Mapping[str, str] = os.environ) -> Settings:
    """What holds: an option wins over the environment, that over the context, that over the default.

    Raises InvalidArgument for a context that there is not or a file that cannot be understood.
    """
    path = config_path(environment)
    context = _chosen(_load(path), options.context or environment.get("LEEWARD_CONTEXT", ""), path)
    endpoints = tuple(options.endpoint or ()) or _split(environment.get("LEEWARD_ENDPOINT", ""))
    tls_dir = options.tls_dir or _path(environment.get("LEEWARD_TLS_DIR", ""))
    return Settings(
        endpoints=endpoints or context.endpoints or (DEFAULT_ENDPOINT,),
        tls_dir=tls_dir or context.tls_dir,
        project=options.project or environment.get("LEEWARD_PROJECT", "") or context.project or DEFAULT_PROJECT,
    )


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file is, or would be."""
    base = environment.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base else Path.home() / ".config") / "leeward" / "config.toml"


def _chosen(config: _Config, name: str, path: Path) -> _Context:
    name = name or config.current
    if not name:
        return _Context()
    if name not in config.contexts:
        known = ", ".join(sorted(config.contexts)) or "none"
        raise InvalidArgument.field("context", f"{name!r} is not in {path}; there is: {known}")
    return config.contexts[name]


def _load(path: Path) -> _Config:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return _Config()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"cannot read {path}: {error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from error
    _check_keys(document, _TOP_KEYS, str(path))
    tables = _typed(document, "contexts", dict, {}, str(path))
    contexts = {name: _context(table, f"{path}, context {name}") for name, table in tables.items()}
    return _Config(current=_typed(document, "current", str, "", str(path)), contexts=contexts)


def _context(table: Any, where: str) -> _Context:
    if not isinstance(table, dict):
        raise InvalidArgument(f"{where}: must be a table")
    _check_keys(table, _CONTEXT_KEYS, where)
    endpoints = _typed(table, "endpoints", list, [], where)
    if not all(isinstance(endpoint, str) for endpoint in endpoints):
        raise InvalidArgument(f"{where}: endpoints must be texts, each host:port")
    return _Context(
        endpoints=tuple(endpoints),
        tls_dir=_path(_typed(table, "tls_dir", str, "", where)),
        project=_typed(table, "project", str, "", where),
    )


def _check_keys(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise InvalidArgument(f"{where}: unknown key {key!r}; {hint}")


def _typed(table: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise InvalidArgument(f"{where}: {key} must be a {kind.__name__}, not {value!r}")
    return value


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None
