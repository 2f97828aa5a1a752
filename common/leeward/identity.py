"""Who somebody is: the roles, and the names that certificates carry.

A certificate's Common Name is `role:name`, e.g. `agent:host-a`. That one string is the whole identity: the API checks
the role, and etcd takes it as its user name. Servers also carry a DNS name of their role, and callers verify that name
whatever address they dialled, so that no server can pose as another.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from leeward.errors import InvalidArgument

INTERNAL_DOMAIN = "leeward.internal"

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
# RFC 5280, appendix A: ub-common-name.
_COMMON_NAME_MAX_LENGTH = 64


class Role(StrEnum):
    """What a certificate's holder may do."""

    ADMIN = "admin"  # An operator: every call of the public API.
    CLIENT = "client"  # A user or a platform service: calls on instances, images and the like.
    CONTROLLER = "controller"  # A replica of the control plane: serves the public API, calls agents and etcd.
    AGENT = "agent"  # A hypervisor host: serves controllers and other agents, writes its own keys in etcd.
    ETCD = "etcd"  # A member of etcd, both towards clients and towards its peers.


_SERVERS = frozenset({Role.CONTROLLER, Role.AGENT, Role.ETCD})


@dataclass(frozen=True, slots=True)
class Principal:
    """A holder of a certificate: a role and a name in it."""

    role: Role
    name: str

    @classmethod
    def of(cls, role: Role, name: str) -> "Principal":
        """The checked principal. Raises InvalidArgument when `name` cannot be in a certificate."""
        check_name(role, name)
        return cls(role, name)

    @classmethod
    def parse(cls, common_name: str) -> "Principal":
        """The principal that a Common Name stands for. Raises InvalidArgument when it stands for none."""
        prefix, separator, name = common_name.partition(":")
        if not separator or prefix not in {role.value for role in Role}:
            raise InvalidArgument.field(
                "common_name", f"{common_name!r} is not role:name with a role of {_role_list()}"
            )
        return cls.of(Role(prefix), name)

    @property
    def common_name(self) -> str:
        """`role:name`, as in the certificate's subject and as etcd's user name."""
        return f"{self.role}:{self.name}"

    @property
    def serves(self) -> bool:
        """Whether this role listens for calls, so that its certificate is also a server's."""
        return self.role in _SERVERS

    @property
    def server_name(self) -> str:
        """The DNS name that callers verify in this server's certificate. Raises InvalidArgument for a pure client."""
        match self.role:
            case Role.AGENT:
                return f"{self.name}.agent.{INTERNAL_DOMAIN}"
            case Role.CONTROLLER | Role.ETCD:
                return f"{self.role}.{INTERNAL_DOMAIN}"
            case Role.ADMIN | Role.CLIENT:
                raise InvalidArgument.field("role", f"{self.role} is not a server's role and has no server name")

    def __str__(self) -> str:
        return self.common_name


def agent_server_name(node: str) -> str:
    """The DNS name that the agent of `node` must prove. Raises InvalidArgument when `node` is no valid name."""
    return Principal.of(Role.AGENT, node).server_name


CONTROLLER_SERVER_NAME = f"{Role.CONTROLLER}.{INTERNAL_DOMAIN}"
ETCD_SERVER_NAME = f"{Role.ETCD}.{INTERNAL_DOMAIN}"


def parse_role(text: str) -> Role:
    """The role of that name. Raises InvalidArgument, naming the roles there are."""
    try:
        return Role(text)
    except ValueError as error:
        raise InvalidArgument.field("role", f"{text!r} is not one of {_role_list()}") from error


def check_name(role: Role, name: str) -> None:
    """Raises InvalidArgument unless `name` is a DNS label that starts with a letter and fits the Common Name."""
    longest = _COMMON_NAME_MAX_LENGTH - len(role) - 1
    if _NAME.fullmatch(name) is None or len(name) > longest:
        raise InvalidArgument.field(
            "name",
            f"{name!r} is not a name: a lower-case letter, then up to {longest - 1} lower-case letters, digits "
            "and hyphens, not ending in a hyphen",
        )


def _role_list() -> str:
    return ", ".join(role.value for role in Role)
