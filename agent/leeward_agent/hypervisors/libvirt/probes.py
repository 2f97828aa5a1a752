"""Looks once whether a guest answers: over its guest agent's channel, or at a TCP port."""

import asyncio
import os

import libvirt
import libvirt_qemu

from leeward_agent.hypervisors.libvirt.connection import VirConnect
from leeward_agent.hypervisors.libvirt.status import find

AGENT_TIMEOUT_S = 3
_CONNECT_TIMEOUT_S = 3.0
# It changes nothing, and every guest agent knows it.
_PING = '{"execute": "guest-ping"}'


def ping_agent(connection: VirConnect, uid: str) -> str:
    """Why the guest's agent does not answer, in libvirt's words; nothing when it does. Blocks."""
    domain = find(connection, uid)
    if domain is None:
        return "it is not known here"
    try:
        # Before each command libvirt synchronizes with the agent, for which it takes the time that is set here.
        domain.agentSetResponseTimeout(AGENT_TIMEOUT_S)
        libvirt_qemu.qemuAgentCommand(domain, _PING, AGENT_TIMEOUT_S, 0)
    except libvirt.libvirtError as error:
        return str(error)
    return ""


async def connect_tcp(host: str, port: int) -> str:
    """Why nobody takes a connection at that port; nothing when somebody does."""
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"{host} port {port} does not answer within {_CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        return f"{host} port {port}: {os.strerror(error.errno) if error.errno else error}"
    writer.close()
    return ""
