"""What a host has of guests that do not belong there, and that nothing is taken from one in quarantine."""

from dataclasses import replace
from datetime import UTC, datetime

from tests.unit.test_audit_findings import DB, DRIFTS, GONE, LOCAL, WEB, contents, guest, held, inventory

from leeward.agent.types import GuestState, Inventory, NodeReport, PoolInventory, PutAside
from leeward_controller.audit.findings import find
from leeward_controller.audit.leftovers import LeftoverKind, leftovers_on
from leeward_controller.audit.model import Contents, DeleteDisk, FindingKind, RemoveGuest
from leeward_controller.domain.node import Node, NodeCondition

K = LeftoverKind
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def found(a: Inventory, *, busy: frozenset[str] = frozenset()) -> list[tuple[LeftoverKind, str]]:
    """What is left on host a, beside `web`, which lives there; `db` lives on b, and `gone` is deleted."""
    there = leftovers_on("a", contents(inventories={"a": a}, busy=busy), own_pools=frozenset({LOCAL}))
    assert all(each.explanation and each.fate for each in there)
    return [(each.kind, each.instance_uid) for each in there]


def test_everything_of_guests_that_live_elsewhere_or_are_deleted_is_told() -> None:
    local = PoolInventory(LOCAL, (), (held(WEB), held(DB), held(GONE)))
    a = inventory(
        guest(WEB, GuestState.RUNNING),
        guest(DB, GuestState.STOPPED),
        guest(GONE, GuestState.PAUSED),
        folders=(held(WEB), held(DB), held(GONE)),
        local=local,
        sockets=(WEB.uid, DB.uid),
        logs=(WEB.uid, GONE.uid),
    )
    a = replace(a, put_aside=(PutAside(DB.uid, DB.name, 2, "b", NOON),))
    assert sorted(found(a)) == sorted(
        [
            (K.DEFINITION, DB.uid),
            (K.DEFINITION_PUT_ASIDE, DB.uid),
            (K.CONSOLE_SOCKET, DB.uid),
            (K.DISKS, DB.uid),
            (K.DISKS, WEB.uid),
            (K.DISKS, GONE.uid),
            (K.GUEST_IN_MEMORY, GONE.uid),
            (K.CONSOLE_LOG, GONE.uid),
        ]
    ), "in a pool that others share, folders are not this host's; web's copy in the local pool is not its disk"
    assert found(inventory(guest(WEB, GuestState.RUNNING), sockets=(WEB.uid,))) == []


def test_what_is_on_its_way_is_no_leftover() -> None:
    a = inventory(guest(DB, GuestState.RUNNING), sockets=(DB.uid,))
    assert found(a, busy=frozenset({DB.uid})) == []


def quarantined(drifted: Contents) -> Contents:
    report = NodeReport("a", "boot", "agent", "a:1", 8, 8192, (), "qemu", "8", "1", True, 5.0, 0.5)
    node = Node("a", "uid", NodeCondition.QUARANTINED, "it came back", report, NOON, NOON)
    return replace(drifted, nodes=(node,))


def test_an_audit_takes_nothing_from_a_node_in_quarantine() -> None:
    for kind in (
        FindingKind.DEFINITION_ON_WRONG_NODE,
        FindingKind.SOCKET_OF_NO_GUEST,
        FindingKind.CONSOLE_LOG_OF_NO_GUEST,
        FindingKind.DISK_IN_WRONG_POOL,
    ):
        drifted = DRIFTS[kind][0]
        assert [type(each.repair) for each in find(drifted)] in ([RemoveGuest], [DeleteDisk])
        (kept,) = find(quarantined(drifted))
        assert kept.repair is None
        assert "uncordon" in kept.remedy
    (running,) = find(quarantined(DRIFTS[FindingKind.GUEST_ON_WRONG_NODE][0]))
    assert running.repair is not None, "what runs where it may not is ended in quarantine too"
