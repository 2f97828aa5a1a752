"""What the members of a real cluster's etcd say of themselves."""

import json

from tests.support.hosts import Lab

from leeward.identity import Role
from leeward_lab.hosts.processes import run
from leeward_lab.hosts.waiting import until
from leeward_lab.real.layout import ADMIN


async def leader_of(lab: Lab) -> str:
    """The member that leads, by what each says of itself."""
    for member in lab.cluster.shape.etcd_names:
        (status,) = json.loads(await _etcdctl(lab, member, "endpoint", "status", "--write-out=json"))
        if status["Status"]["leader"] == status["Status"]["header"]["member_id"]:
            return member
    raise AssertionError("no member says that it leads")


async def until_healthy(lab: Lab) -> None:
    async def healthy() -> bool:
        found = [await _healthy(lab, member) for member in lab.cluster.shape.etcd_names]
        return all(found)

    await until(healthy, what="all members of etcd healthy", timeout_s=30, poll_s=0.2)


async def _healthy(lab: Lab, member: str) -> bool:
    told = json.loads(await _etcdctl(lab, member, "endpoint", "health", "--write-out=json", check=False) or "[{}]")
    return bool(told[0].get("health"))


async def _etcdctl(lab: Lab, member: str, *words: str, check: bool = True) -> str:
    keys = lab.cluster.certificate_directory(Role.ADMIN, ADMIN)
    number = lab.cluster.shape.etcd_names.index(member)
    files = [f"--cacert={keys}/ca.pem", f"--cert={keys}/cert.pem", f"--key={keys}/key.pem"]
    command = ["etcdctl", f"--endpoints=https://{lab.cluster.etcd_endpoints[number]}", "--command-timeout=2s", *files]
    done = await run([*command, *words], timeout_s=15, env={"ETCDCTL_API": "3"}, check=check)
    return done.stdout
