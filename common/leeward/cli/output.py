"""Results on standard output: tables for people, the API's own messages as JSON or YAML for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from leeward.cli import columns
from leeward.cli.context import Format
from leeward.cli.describe import describe

_GAP = "  "
_COLORS = {
    "ACTIVE": "green",
    "READY": "green",
    "RECOVERED": "green",
    "SUCCEEDED": "green",
    "ERROR": "red",
    "FAILED": "red",
    "FENCED": "red",
    "INCOMPLETE": "red",
    "FENCING": "red",
    "SUSPECT": "red",
    "QUARANTINED": "yellow",
    "ISOLATED": "yellow",
    "WAITING": "yellow",
    "CORDONED": "yellow",
    "DRAINING": "yellow",
    "MAINTENANCE": "yellow",
    "UNDOING": "yellow",
    "RUNNING": "cyan",
    "BUILDING": "cyan",
}


def as_dict(message: Message) -> dict[str, Any]:
    """The message in protobuf's JSON mapping, with the field names of the contract and empty fields too."""
    result: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return result


def show_list(items: Sequence[Message], format: Format, *, full_names: bool = False) -> None:
    """Write a list. Without items a table says so on standard error, so that a program reads nothing."""
    match format:
        case Format.JSON:
            print(json.dumps([as_dict(item) for item in items], indent=2))
        case Format.YAML:
            _print_yaml([as_dict(item) for item in items])
        case Format.NAME:
            for item in items:
                print(columns.name_of(item))
        case Format.TABLE if items:
            print("\n".join(table_lines(items, full_names=full_names)))
        case Format.TABLE:
            print("There are none.", file=sys.stderr)


def show_one(item: Message, format: Format) -> None:
    """Write one resource with all it says."""
    match format:
        case Format.JSON:
            print(json.dumps(as_dict(item), indent=2))
        case Format.YAML:
            _print_yaml(as_dict(item))
        case Format.NAME:
            print(columns.name_of(item))
        case Format.TABLE:
            print("\n".join(describe(item)))


def show_result(item: Message, format: Format) -> None:
    """Write what a command made or changed: one row of a table will do."""
    if format is Format.TABLE:
        show_list([item], format)
    else:
        show_one(item, format)


def show_event(kind: str, item: Message, format: Format, *, full_names: bool = False) -> None:
    """Write one change of a watch at once: a line of JSON, a YAML document, or a line for people."""
    document = {"type": kind, "resource": as_dict(item)}
    match format:
        case Format.JSON:
            print(json.dumps(document), flush=True)
        case Format.YAML:
            print("---")
            _print_yaml(document)
            sys.stdout.flush()
        case Format.NAME:
            print(columns.name_of(item), flush=True)
        case Format.TABLE:
            cells = columns.cells_of(item, full_names=full_names)
            shown = [cells[0]] if kind == "REMOVED" else [cell for cell in cells if cell]
            colored = [_colored(cell) if sys.stdout.isatty() else cell for cell in shown]
            print(_GAP.join([f"{kind:<8}", *colored]), flush=True)


def table_lines(items: Sequence[Message], *, full_names: bool = False, color: bool | None = None) -> list[str]:
    """A table's lines, its header first. Colours are for terminals only, unless told."""
    colored = sys.stdout.isatty() if color is None else color
    rows = [columns.headers_of(items[0]), *(columns.cells_of(item, full_names=full_names) for item in items)]
    # A column that is empty in every row only takes room.
    used = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
    widths = {index: max(len(row[index]) for row in rows) for index in used}
    lines = [_line((rows[0][index], widths[index], False) for index in used)]
    lines += [_line((row[index], widths[index], colored) for index in used) for row in rows[1:]]
    return lines


def _line(cells: Iterable[tuple[str, int, bool]]) -> str:
    parts = [(_colored(text) if color else text) + " " * (width - len(text)) for text, width, color in cells]
    return _GAP.join(parts).rstrip()


def _colored(text: str) -> str:
    return typer.style(text, fg=_COLORS[text]) if text in _COLORS else text


def _print_yaml(value: object) -> None:
    import yaml

    # Protobuf makes ordered dictionaries of packed messages, which YAML does not know.
    plain = json.loads(json.dumps(value))
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
