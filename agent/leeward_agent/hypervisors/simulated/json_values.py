"""A guest's spec and files as JSON, for simulated hosts in different processes."""

from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from leeward.agent import convert
from leeward.agent.types import GuestSpec
from leeward.agent.v1 import agent_pb2 as pb
from leeward_agent.domain.guest_files import ConsoleFiles, GuestDisks


def encode_spec(spec: GuestSpec) -> dict[str, Any]:
    """As the agent API has it."""
    return MessageToDict(convert.spec_to_wire(spec))


def decode_spec(fields: dict[str, Any]) -> GuestSpec:
    """Raises InvalidArgument when it is of another version."""
    return convert.spec_of(pb.CreateDiskRequest(spec=ParseDict(fields, pb.GuestSpec())))


def encode_files(disks: GuestDisks, console: ConsoleFiles) -> dict[str, Any]:
    """Paths as text."""
    return {
        "root": str(disks.root),
        "data": [str(path) for path in disks.data],
        **{name: str(path) for name in _OPTIONAL if (path := getattr(disks, name)) is not None},
        "log": str(console.log),
        "socket": str(console.socket),
    }


_OPTIONAL = ("seed", "rescue", "firmware_vars")


def decode_files(fields: dict[str, Any]) -> tuple[GuestDisks, ConsoleFiles]:
    """The same paths."""
    optional = {name: Path(fields[name]) for name in _OPTIONAL if name in fields}
    disks = GuestDisks(root=Path(fields["root"]), data=tuple(Path(path) for path in fields["data"]), **optional)
    return disks, ConsoleFiles(log=Path(fields["log"]), socket=Path(fields["socket"]))
