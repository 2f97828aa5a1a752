"""How each operation is asked for through the public API's services, with arguments drawn by number."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from leeward.agent.types import CloudInit, Escalation, RebootMode
from leeward_controller.core import ControllerCore
from leeward_controller.domain.instance import Storage
from leeward_controller.domain.node_operation import DRAIN_LABEL, DrainPolicy
from leeward_controller.domain.operation import OperationType, PlainArguments
from leeward_controller.domain.transitions import Action, Immediate
from leeward_controller.operations.submit import Requester
from leeward_controller.records import Stored
from leeward_controller.services.creating import NewInstance
from leeward_controller.services.everything import Services
from leeward_controller.services.instance_moves import LiveMigrationWish
from leeward_controller.services.instances import InstanceChanges, Target
from leeward_controller.services.paging import PageRequest

PROJECT = "projects/p"
FLAVORS = ("small", "medium", "large")
IMAGES = ("plain", "other")
GROUPS = ("", "", "apart", "loosely-apart", "together")
_STORAGES = (Storage.SHARED, Storage.LOCAL, Storage.ANY)
_DATA_DISKS: tuple[tuple[int, ...], ...] = ((), (), (), (1,), (2, 1))


@dataclass(frozen=True, slots=True)
class Call:
    """One call to the API: through which replica, by whom, on what, and `number`, which decides its arguments."""

    services: Services
    core: ControllerCore
    target: Target
    requester: Requester
    number: int
    nodes: tuple[str, ...]

    def pick(self, choices: tuple[Any, ...], *, part: int = 0) -> Any:
        """One of the choices; another `part` of the number picks independently."""
        return choices[self.number // 7**part % len(choices)]

    @property
    def node(self) -> str:
        """A node asked for by name, or, mostly, none."""
        found = self.pick(("", "", *self.nodes))
        return f"nodes/{found}" if found else ""


async def create(call: Call) -> Any:
    """Launch an instance of whatever kind."""
    group = call.pick(GROUPS, part=3)
    new = NewInstance(
        parent=PROJECT,
        instance_id=call.target.name.rpartition("/")[2],
        flavor=f"flavors/{call.pick(('small', *FLAVORS), part=1)}",
        image=f"{PROJECT}/images/{call.pick(IMAGES, part=4)}",
        bridges=("",),
        labels={DRAIN_LABEL: call.pick(tuple(DrainPolicy)).value} if call.number % 2 else {},
        cloud_init=CloudInit(b"#cloud-config\n") if call.number % 3 == 0 else None,
        data_disks_gib=call.pick(_DATA_DISKS, part=2),
        storage=call.pick(_STORAGES),
        group=f"{PROJECT}/groups/{group}" if group else "",
        node=call.node,
    )
    return await call.services.instances.records.create(new, call.requester)


async def _start(call: Call) -> Any:
    return await call.services.instances.power.start(call.target, call.requester)


async def _stop(call: Call) -> Any:
    grace_s = call.pick((5.0, 0.0))
    return await call.services.instances.power.stop(call.target, call.requester, grace_period_s=grace_s)


async def _reboot(call: Call) -> Any:
    mode = RebootMode.SOFT if is_soft(call.number) else RebootMode.HARD
    return await call.services.instances.power.reboot(call.target, call.requester, mode=mode, timeout_s=5.0)


def is_soft(number: int) -> bool:
    """Whether a reboot with this number is a soft one."""
    return number % 2 == 1


async def _delete(call: Call) -> Any:
    return await call.services.instances.power.delete(call.target, call.requester, purge=call.number % 2 == 1)


def _plain(wanted: OperationType) -> Callable[[Call], Awaitable[Any]]:
    return lambda call: call.services.instances.power.plain(call.target, wanted, call.requester)


async def _resize(call: Call) -> Any:
    return await call.services.instances.moves.resize(
        call.target,
        call.requester,
        flavor=f"flavors/{call.pick(('medium', *FLAVORS), part=1)}",
        node=call.node,
        auto_confirm_after_s=call.pick((None, None, 30.0), part=2),
    )


async def _confirm_resize(call: Call) -> Any:
    return await call.services.instances.moves.confirm_resize(call.target, call.requester)


async def _revert_resize(call: Call) -> Any:
    return await call.services.instances.moves.revert_resize(call.target, call.requester)


async def _snapshot(call: Call) -> Any:
    image_id = f"snapshot-{call.number % 4}"
    return await call.services.instances.images.snapshot(call.target, call.requester, image_id=image_id, properties={})


async def _migrate(call: Call) -> Any:
    grace_s = call.pick((5.0, 0.0), part=1)
    return await call.services.instances.moves.migrate(
        call.target, call.requester, node=call.node, grace_period_s=grace_s
    )


async def _live_migrate(call: Call) -> Any:
    wish = LiveMigrationWish(node=call.node, timeout_s=120.0, escalation=call.pick(tuple(Escalation), part=1))
    return await call.services.instances.moves.live_migrate(call.target, call.requester, wish)


async def _shelve(call: Call) -> Any:
    delay_s = call.pick((0.0, 40.0, 600.0))
    return await call.services.instances.images.shelve(call.target, call.requester, offload_delay_s=delay_s)


async def _unshelve(call: Call) -> Any:
    return await call.services.instances.images.unshelve(call.target, call.requester, node=call.node)


async def _rescue(call: Call) -> Any:
    image = call.pick(("", f"{PROJECT}/images/rescue"))
    return await call.services.instances.images.rescue(call.target, call.requester, image=image)


async def _unrescue(call: Call) -> Any:
    return await call.services.instances.images.unrescue(call.target, call.requester)


async def _rebuild(call: Call) -> Any:
    image = call.pick(("", *(f"{PROJECT}/images/{each}" for each in IMAGES)))
    return await call.services.instances.images.rebuild(call.target, call.requester, image=image)


async def _evacuate(call: Call) -> Any:
    return await call.services.instances.moves.evacuate(
        call.target, call.requester, node=call.node, allow_rebuild=call.number % 2 == 1
    )


def _by_the_controllers(wanted: OperationType) -> Callable[[Call], Awaitable[Any]]:
    """What clients cannot ask for, as the leader does it."""

    async def submit(call: Call) -> Any:
        async def act(stored: Stored[Any]) -> Any:
            return await call.core.submitter.submit(stored, wanted, PlainArguments(), call.requester)

        return await call.services.instances.records.on_present(call.target, act)

    return submit


async def _update(call: Call) -> Any:
    changes = InstanceChanges(labels={DRAIN_LABEL: call.pick(tuple(DrainPolicy)).value})
    return await call.services.instances.records.update(call.target, changes, call.requester)


async def _lock(call: Call) -> Any:
    return await call.services.instances.locking.lock(call.target, call.requester, reason=lock_reason(call.number))


def lock_reason(number: int) -> str:
    """Why an instance is locked by a call with this number."""
    return f"reason {number % 2}"


async def _unlock(call: Call) -> Any:
    return await call.services.instances.locking.unlock(call.target, call.requester)


async def _console_log(call: Call) -> Any:
    return await call.services.instances.consoles.log(call.target.name, offset=0, limit_bytes=0)


async def _attach_console(call: Call) -> Any:
    async def typed() -> AsyncIterator[bytes]:
        yield b"echo hello\n"

    consoles = call.services.instances.consoles
    attached = consoles.attach(call.target.name, typed(), take_over=True, admin=call.requester.admin)
    async with aclosing(attached) as output:
        return await anext(output, b"")


async def _list_events(call: Call) -> Any:
    return await call.services.instances.history.events(call.target.name, PageRequest())


ASKING: dict[Action, Callable[[Call], Awaitable[Any]]] = {
    OperationType.CREATE: create,
    OperationType.START: _start,
    OperationType.STOP: _stop,
    OperationType.REBOOT: _reboot,
    OperationType.DELETE: _delete,
    OperationType.UNDELETE: _plain(OperationType.UNDELETE),
    OperationType.PAUSE: _plain(OperationType.PAUSE),
    OperationType.UNPAUSE: _plain(OperationType.UNPAUSE),
    OperationType.SUSPEND: _plain(OperationType.SUSPEND),
    OperationType.RESUME: _plain(OperationType.RESUME),
    OperationType.RESIZE: _resize,
    OperationType.CONFIRM_RESIZE: _confirm_resize,
    OperationType.REVERT_RESIZE: _revert_resize,
    OperationType.SNAPSHOT: _snapshot,
    OperationType.MIGRATE: _migrate,
    OperationType.LIVE_MIGRATE: _live_migrate,
    OperationType.SHELVE: _shelve,
    OperationType.OFFLOAD: _by_the_controllers(OperationType.OFFLOAD),
    OperationType.UNSHELVE: _unshelve,
    OperationType.RESCUE: _rescue,
    OperationType.UNRESCUE: _unrescue,
    OperationType.REBUILD: _rebuild,
    OperationType.EVACUATE: _evacuate,
    OperationType.CRASH_DUMP: _plain(OperationType.CRASH_DUMP),
    OperationType.RECOVER: _by_the_controllers(OperationType.RECOVER),
    Immediate.UPDATE: _update,
    Immediate.LOCK: _lock,
    Immediate.UNLOCK: _unlock,
    Immediate.GET_CONSOLE_LOG: _console_log,
    Immediate.ATTACH_CONSOLE: _attach_console,
    Immediate.LIST_EVENTS: _list_events,
}
