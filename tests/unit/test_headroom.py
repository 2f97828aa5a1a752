"""Whether the loss of any node could be made good, computed; and how long that takes for a large cluster."""

import time

from leeward_controller.failover.headroom import Guest, Room, shortfalls

ALL = frozenset({"host-a", "host-b", "host-c"})


def _guests(node: str, count: int, memory_mib: int = 1024, **more: str) -> list[Guest]:
    return [Guest(f"{node}-{number}", node, memory_mib, 1, ALL, **more) for number in range(count)]


def _rooms(**free_mib: int) -> list[Room]:
    return [Room(f"host-{letter}", memory_mib, 8) for letter, memory_mib in free_mib.items()]


def test_what_fits_elsewhere_is_no_shortfall() -> None:
    guests = _guests("host-a", 4) + _guests("host-b", 2)
    assert shortfalls(_rooms(a=0, b=2048, c=2048), guests) == ()


def test_the_node_that_cannot_be_lost_is_named_with_what_is_lacking() -> None:
    guests = _guests("host-a", 5) + _guests("host-b", 2)
    (short,) = shortfalls(_rooms(a=0, b=2048, c=2048), guests)
    assert (short.node, len(short.instances), short.memory_mib, short.vcpus) == ("host-a", 1, 1024, 1)
    assert "1024 MiB of memory and 1 vCPUs are lacking" in short.told


def test_room_in_pieces_that_are_too_small_is_no_room() -> None:
    assert shortfalls(_rooms(a=0, b=3000, c=3000), _guests("host-a", 1, memory_mib=4096))
    assert not shortfalls(_rooms(a=0, b=3000, c=4096), _guests("host-a", 1, memory_mib=4096))


def test_the_largest_are_placed_first() -> None:
    guests = [*_guests("host-a", 2, memory_mib=1024), Guest("big", "host-a", 2048, 1, ALL)]
    assert shortfalls(_rooms(a=0, b=2048, c=2048), guests) == ()


def test_rules_count() -> None:
    tied = [Guest("tied", "host-a", 1024, 1, frozenset({"host-a", "host-b"}))]
    assert shortfalls(_rooms(a=0, b=0, c=8192), tied)
    members = _guests("host-a", 1, apart="group") + _guests("host-b", 1, apart="group")
    assert [each.node for each in shortfalls(_rooms(a=8192, b=8192), members)] == ["host-a", "host-b"]
    assert shortfalls(_rooms(a=8192, b=8192, c=8192), members) == ()


def test_two_losses_at_once_need_room_for_both() -> None:
    guests = _guests("host-a", 2) + _guests("host-b", 2)
    rooms = _rooms(a=4096, b=4096, c=3072)
    assert shortfalls(rooms, guests, losses=1) == ()
    assert [each.node for each in shortfalls(rooms, guests, losses=2)] == ["host-a", "host-b"]


def test_a_hundred_nodes_take_milliseconds() -> None:
    nodes = [f"host-{number:03}" for number in range(100)]
    allowed = frozenset(nodes)
    guests = [Guest(f"vm-{number}", nodes[number % 100], 4096, 1, allowed) for number in range(1000)]
    rooms = [Room(node, 8192, 64) for node in nodes]
    began_s = time.process_time()
    assert shortfalls(rooms, guests) == ()
    assert time.process_time() - began_s < 0.5, "about 0.01 s on a free machine"
