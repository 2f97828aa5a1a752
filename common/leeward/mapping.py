"""Frozen dataclasses to protobuf messages and back, by field name.

A dataclass and its message have the same field names; this module reads the dataclass's types and does the rest:

* `StrEnum` is text, or an enum whose values have the members' names behind its own (`Color.RED`: `COLOR_RED`);
* `datetime` is `google.protobuf.Timestamp`, `timedelta` is `google.protobuf.Duration`;
* a dataclass is a message, a tuple is repeated, a dict is a map, `X | None` is a field that may be absent;
* a union of dataclasses is a oneof of the field's name, whose members are found by their message's name.

`check` compares a whole pair of types, so that a test can tell a field that exists on one side only.
"""

import re
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

T = TypeVar("T")

_PLAIN = (bool, int, float, str, bytes)
"""What is the same in a dataclass and in a message."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 86400


def to_message(value: Any, message: Message) -> None:
    """Fill `message` from the dataclass `value`."""
    kind: Any = type(value)
    for put, get in _writers(kind):
        put(message, get(value))


def write_time(message: Timestamp, value: datetime) -> None:
    """Fill `message` with a time that knows its zone: as its own method does, but not by way of a calendar."""
    since = value - _EPOCH
    message.seconds = since.days * _DAY_S + since.seconds
    message.nanos = since.microseconds * 1000


def from_message(kind: type[T], message: Message) -> T:
    """The dataclass of type `kind` that `message` holds.

    Raises ValueError for an enum value that is unspecified or not known, and for a oneof that is not set.
    """
    key: Any = kind
    return kind(**{name: read(message) for name, read in _readers(key)})


def check(kind: type[Any], message: type[Message]) -> list[str]:
    """Every difference between the fields of `kind` and those of `message`, in words; empty when they agree."""
    names = {f.name for f in fields(kind)}
    descriptor = message.DESCRIPTOR
    members = {f.name for f in descriptor.fields if f.containing_oneof is None or (f.has_presence and _synthetic(f))}
    members |= {o.name for o in descriptor.oneofs if not o.name.startswith("_")}
    title = f"{kind.__name__} and {descriptor.full_name}"
    return [f"{title}: {name} stands on one side only" for name in sorted(names ^ members)]


def _synthetic(field: Any) -> bool:
    return bool(field.containing_oneof is None or field.containing_oneof.name == f"_{field.name}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _union(hint: Any) -> tuple[Any, ...] | None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return None


@cache
def _writers(kind: Any) -> tuple[tuple[Callable[[Message, Any], None], Callable[[Any], Any]], ...]:
    return tuple((_writer(f.name, _hints(kind)[f.name]), attrgetter(f.name)) for f in fields(kind))


def _writer(name: str, hint: Any) -> Callable[[Message, Any], None]:
    members = _union(hint)
    if members is not None and type(None) in members:
        (inner,) = [m for m in members if m is not type(None)]
        write = _writer(name, inner)
        return lambda message, value: None if value is None else write(message, value)
    if members is not None:
        return lambda message, value: to_message(value, getattr(message, _oneof_member(message, name, type(value))))
    if typing.get_origin(hint) is tuple:
        return _tuple_writer(name, typing.get_args(hint)[0])
    if typing.get_origin(hint) is dict:
        return lambda message, value: getattr(message, name).update(value)
    if hint is datetime:
        return lambda message, value: write_time(getattr(message, name), value)
    if is_dataclass(hint):
        return lambda message, value: _write_nested(getattr(message, name), value)
    if _is_enum(hint):
        return lambda message, value: setattr(message, name, _wire_enum(message.DESCRIPTOR, name, value))
    return lambda message, value: setattr(message, name, value)


def _write_nested(message: Message, value: Any) -> None:
    message.SetInParent()
    to_message(value, message)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, StrEnum)


def _wire_enum(descriptor: Any, name: str, value: StrEnum) -> int | str:
    enum = descriptor.fields_by_name[name].enum_type
    return value.value if enum is None else int(enum.values_by_name[_enum_prefix(enum) + value.name].number)


@cache
def _enum_prefix(enum: EnumDescriptor) -> str:
    """`DiskFormat`: `DISK_FORMAT_`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", enum.name).upper() + "_"


def _enum_reader(name: str, kind: type[StrEnum]) -> Callable[[Message], Any]:
    def read(message: Message) -> Any:
        enum, value = message.DESCRIPTOR.fields_by_name[name].enum_type, getattr(message, name)
        if enum is None:
            return kind(value)
        known = enum.values_by_number.get(value)
        member = known.name.removeprefix(_enum_prefix(enum)) if known is not None else ""
        if member not in kind.__members__:
            raise ValueError(f"{name}: {value} is unspecified or not known as a {kind.__name__}")
        return kind[member]

    return read


def _tuple_writer(name: str, item: Any) -> Callable[[Message, Any], None]:
    if is_dataclass(item):

        def write(message: Message, value: Any) -> None:
            target = getattr(message, name)
            for element in value:
                to_message(element, target.add())

        return write
    return lambda message, value: getattr(message, name).extend(value)


def _oneof_member(message: Message, oneof: str, kind: type[Any]) -> str:
    for member in message.DESCRIPTOR.oneofs_by_name[oneof].fields:
        if member.message_type is not None and member.message_type.name == kind.__name__:
            getattr(message, member.name).SetInParent()
            return str(member.name)
    raise TypeError(f"{message.DESCRIPTOR.full_name}.{oneof} has no member for {kind.__name__}")


@cache
def _readers(kind: Any) -> tuple[tuple[str, Callable[[Message], Any]], ...]:
    return tuple((f.name, _reader(f.name, _hints(kind)[f.name])) for f in fields(kind))


def _reader(name: str, hint: Any) -> Callable[[Message], Any]:
    members = _union(hint)
    if members is not None and type(None) in members:
        (inner,) = [m for m in members if m is not type(None)]
        read = _reader(name, inner)
        return lambda message: read(message) if message.HasField(name) else None
    if members is not None:
        return _oneof_reader(name, members)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if item in _PLAIN:
            return lambda message: tuple(getattr(message, name))
        convert = _converter(item)
        return lambda message: tuple([convert(element) for element in getattr(message, name)])
    if typing.get_origin(hint) is dict:
        return lambda message: dict(getattr(message, name))
    if _is_enum(hint):
        return _enum_reader(name, hint)
    if hint in _PLAIN:
        return attrgetter(name)
    convert = _converter(hint)
    return lambda message: convert(getattr(message, name))


def _oneof_reader(name: str, kinds: tuple[Any, ...]) -> Callable[[Message], Any]:
    by_name = {kind.__name__: kind for kind in kinds}

    def read(message: Message) -> Any:
        member = message.WhichOneof(name)
        if member is None:
            raise ValueError(f"{message.DESCRIPTOR.full_name}.{name} is not set")
        chosen = getattr(message, member)
        return from_message(by_name[type(chosen).__name__], chosen)

    return read


def _converter(hint: Any) -> Callable[[Any], Any]:
    if hint is datetime:
        return lambda message: message.ToDatetime(tzinfo=UTC)
    if is_dataclass(hint):
        kind: Any = hint
        return lambda message: from_message(kind, message)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint
    return lambda value: value
