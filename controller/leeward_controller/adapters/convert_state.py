"""Records to the bytes that etcd keeps, and back."""

from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from leeward.agent.convert import decode_node_report
from leeward.agent.types import NodeReport
from leeward.errors import DataLoss, InternalError, InvalidArgument
from leeward.mapping import from_message, to_message
from leeward.state.v1 import state_pb2 as pb
from leeward_controller.domain.backup import BackupPolicy, BackupRun
from leeward_controller.domain.catalog import Flavor, Image
from leeward_controller.domain.cluster import Brake, Controller, Disarm, InstanceEvent
from leeward_controller.domain.failover import FailoverRecord
from leeward_controller.domain.group import Group
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.node import FenceProof, Node, NodeAllocation
from leeward_controller.domain.operation import Operation
from leeward_controller.domain.project import Admission, Project

T = TypeVar("T")

MESSAGES: dict[type[Any], type[Message]] = {
    Admission: pb.Admission,
    BackupPolicy: pb.BackupPolicy,
    BackupRun: pb.BackupRun,
    Brake: pb.Brake,
    Controller: pb.Controller,
    Disarm: pb.Disarm,
    FailoverRecord: pb.FailoverRecord,
    FenceProof: pb.FenceProof,
    Flavor: pb.Flavor,
    Group: pb.Group,
    Image: pb.Image,
    Instance: pb.Instance,
    InstanceEvent: pb.InstanceEvent,
    Node: pb.Node,
    NodeAllocation: pb.NodeAllocation,
    Operation: pb.Operation,
    Project: pb.Project,
}
"""The message that each kind of record is kept as. Its parts are found by their names."""


class StateCodec:
    """The `Codec` of `leeward.state.v1`: each record in a `Stored` envelope that bears the id of its write."""

    def encode(self, value: object, *, write_id: str) -> bytes:
        """The bytes of a record, the same for the same record. Raises InternalError for what is no record."""
        kind = MESSAGES.get(type(value))
        if kind is None:
            raise InternalError(f"{type(value).__name__} is not a kind of record")
        message = kind()
        to_message(value, message)
        stored = pb.Stored(write_id=write_id, value=message.SerializeToString(deterministic=True))
        return stored.SerializeToString(deterministic=True)

    def decode(self, kind: type[T], data: bytes) -> T:
        """The record in these bytes. Raises DataLoss when they are not one of `kind`, or hold a word not known."""
        message = MESSAGES[kind]()
        try:
            message.ParseFromString(_envelope(data).value)
            return from_message(kind, message)
        except (DecodeError, ValueError) as error:
            raise DataLoss(f"a stored {kind.__name__} cannot be read: {error}") from error

    def write_id(self, data: bytes) -> str:
        """The id of the write that made these bytes. Raises DataLoss when they are not a record."""
        return _envelope(data).write_id

    def decode_report(self, data: bytes) -> NodeReport:
        """The value of a heartbeat key, which agents write themselves. Raises DataLoss."""
        try:
            return decode_node_report(data)
        except InvalidArgument as error:
            raise DataLoss(f"a heartbeat cannot be read: {error.message}") from error


def _envelope(data: bytes) -> pb.Stored:
    try:
        return pb.Stored.FromString(data)
    except DecodeError as error:
        raise DataLoss(f"a stored record's envelope cannot be read: {error}") from error
