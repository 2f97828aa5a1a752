"""Settings from a TOML file, the environment and the command line, in rising order of precedence.

A key that does not exist is an error that names the nearest one that does; so is a value of the wrong kind.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from leeward.errors import FieldViolation, InvalidArgument

S = TypeVar("S", bound=BaseModel)


def load_settings(
    kind: type[S],
    *,
    file: Path | None = None,
    environment_prefix: str = "",
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> S:
    """The settings of `kind`. Raises InvalidArgument with one violation a wrong or unknown key."""
    values: dict[str, Any] = {}
    if file is not None:
        values.update(_read(file))
    values.update(_from_environment(kind, environment_prefix, os.environ if environment is None else environment))
    values.update({key: value for key, value in (overrides or {}).items() if value is not None})
    _check_known(kind, values, file)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        violations = [FieldViolation(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
        words = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgument(f"settings are wrong: {words}", fields=violations) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidArgument.field("config", f"{file} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument.field("config", f"{file} is not TOML: {error}") from error


def _from_environment(kind: type[BaseModel], prefix: str, environment: Mapping[str, str]) -> dict[str, Any]:
    if not prefix:
        return {}
    found = {}
    for name in kind.model_fields:
        text = environment.get(f"{prefix}{name.upper()}")
        if text is not None:
            found[name] = text.split(",") if _is_list(kind, name) else text
    return found


def _is_list(kind: type[BaseModel], name: str) -> bool:
    annotation = str(kind.model_fields[name].annotation)
    return annotation.startswith(("list", "tuple"))


def _check_known(kind: type[BaseModel], values: Mapping[str, Any], file: Path | None) -> None:
    known = list(kind.model_fields)
    violations = []
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            violations.append(FieldViolation(key, f"is not a setting; {hint}"))
    if violations:
        where = f" in {file}" if file else ""
        words = "; ".join(f"{v.field} {v.description}" for v in violations)
        raise InvalidArgument(f"unknown settings{where}: {words}", fields=violations)
