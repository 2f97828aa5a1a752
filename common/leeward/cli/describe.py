"""One message in full, for people: a line a field, without what is empty."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from leeward.cli.units import duration_text, size_text

_INDENT = "  "


def describe(message: Message) -> list[str]:
    """The lines."""
    fields = [(field, value) for field, value in message.ListFields() if not _is_empty(value)]
    width = max((len(field.name) for field, _ in fields), default=0) + 1
    return [line for field, value in fields for line in _field_lines(field, value, width)]


def enum_text(enum: EnumDescriptor, number: int) -> str:
    """A value's name without the prefix that all values of its enum share; empty for the unspecified one."""
    value = enum.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join("_" + letter if letter.isupper() and at else letter for at, letter in enumerate(enum.name))
    return "" if number == 0 else value.name.removeprefix(prefix.upper() + "_")


def time_text(timestamp: Timestamp) -> str:
    """The time in UTC, to the second; empty when it is unset."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    return f"{datetime.fromtimestamp(timestamp.seconds, UTC):%Y-%m-%d %H:%M:%S}Z"


def seconds_of(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def _field_lines(field: FieldDescriptor, value: Any, width: int) -> Iterator[str]:
    label = f"{field.name}:".ljust(width)
    if _is_map(field):
        yield f"{label} {', '.join(f'{key}={value[key]}' for key in sorted(value))}"
        return
    values = list(value) if field.is_repeated else [value]
    if field.message_type is None or all(_scalar(field, each) is not None for each in values):
        yield f"{label} {', '.join(_scalar(field, each) or '' for each in values)}"
        return
    yield f"{field.name}:"
    for each in values:
        yield from _nested(each, listed=field.is_repeated)


def _nested(message: Message, *, listed: bool) -> Iterator[str]:
    inner = _unpacked(message) if isinstance(message, AnyMessage) else message
    for index, line in enumerate(describe(inner)):
        yield f"{_INDENT}{'- ' if listed and index == 0 else _INDENT if listed else ''}{line}"


def _scalar(field: FieldDescriptor, value: Any) -> str | None:
    """The value in one line, or None when it is a message that needs several."""
    if isinstance(value, Timestamp):
        return time_text(value)
    if isinstance(value, Duration):
        return duration_text(seconds_of(value))
    if isinstance(value, Message):
        return None
    if field.enum_type is not None:
        return enum_text(field.enum_type, value)
    if field.name.endswith("size_bytes"):
        return f"{size_text(value)} ({value} bytes)"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _unpacked(packed: AnyMessage) -> Message:
    """What an Any holds, where its type is known here."""
    from google.protobuf import descriptor_pool, message_factory

    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    except KeyError:
        return packed
    message = message_factory.GetMessageClass(descriptor)()
    packed.Unpack(message)
    return message


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_empty(value: Any) -> bool:
    return isinstance(value, Message) and not isinstance(value, Duration) and value.ByteSize() == 0
