"""The laboratory's network: one bridge a cluster, one veth pair a host.

Names start with `lw` and a cluster's id, so that leftovers are recognisable and clusters do not meet.
"""

import ipaddress
import json
from dataclasses import dataclass

from leeward_lab.guest.commands import LabError
from leeward_lab.hosts.processes import run

_FIRST_HOST = 10


@dataclass(frozen=True, slots=True)
class Network:
    """One cluster's network: 10.213.N.0/24, of which the machine itself has the first address."""

    cluster_id: str
    number: int

    @property
    def bridge(self) -> str:
        return f"lw{self.cluster_id}"

    @property
    def gateway(self) -> str:
        """The address of the machine itself, where tests and the CLI run."""
        return f"10.213.{self.number}.1"

    def address(self, index: int) -> str:
        """The address of the host with this index, from 0."""
        return f"10.213.{self.number}.{_FIRST_HOST + index}"

    def link(self, index: int) -> str:
        """The name of the bridge's end of a host's cable; at most 15 characters, as the kernel demands."""
        return f"lw{self.cluster_id}h{index}"


async def free_number(cluster_id: str) -> int:
    """A subnet number that no address on this machine uses, starting at one that the id decides."""
    links = json.loads((await run(["ip", "-j", "-4", "address"])).stdout)
    taken = {ipaddress.ip_address(each["local"]) for link in links for each in link.get("addr_info", ())}
    start = int(cluster_id, 16)
    for step in range(254):
        number = (start + step) % 254 + 1
        subnet = ipaddress.ip_network(f"10.213.{number}.0/24")
        if not any(address in subnet for address in taken):
            return number
    raise LabError("every subnet of 10.213.0.0/16 is taken; `ip link` shows by whom")


async def create_bridge(network: Network) -> None:
    """Make the bridge and give the machine its address on it."""
    bridge = network.bridge
    await run(["ip", "link", "add", bridge, "type", "bridge", "forward_delay", "0", "stp_state", "0"])
    await run(["ip", "address", "add", f"{network.gateway}/24", "dev", bridge])
    await run(["ip", "link", "set", bridge, "up"])


async def plug_in(network: Network, index: int, *, pid: int) -> None:
    """Lay a cable from the bridge into the network namespace of `pid`, where it is called eth0."""
    link = network.link(index)
    await run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
    await run(["ip", "link", "set", link, "master", network.bridge, "up"])


async def set_link(link: str, *, up: bool) -> None:
    """Connect or cut one cable at the bridge."""
    await run(["ip", "link", "set", link, "up" if up else "down"])


async def remove_link(link: str) -> None:
    """Remove a link if it exists."""
    done = await run(["ip", "link", "delete", link], check=False)
    if done.returncode != 0 and "Cannot find device" not in done.stderr:
        raise LabError(f"cannot remove link {link}: {done.stderr.strip()}")


async def links_of(cluster_id: str) -> list[str]:
    """Every link on this machine that belongs to the cluster, bridge included."""
    links = json.loads((await run(["ip", "-j", "link"])).stdout)
    return [link["ifname"] for link in links if link["ifname"].startswith(f"lw{cluster_id}")]
