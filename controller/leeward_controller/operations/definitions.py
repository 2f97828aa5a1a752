"""Every operation there is, by its type."""

from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.crash_dump import CRASH_DUMP
from leeward_controller.operations.create import CREATE
from leeward_controller.operations.delete import DELETE, UNDELETE
from leeward_controller.operations.drain import BRING_BACK, DRAIN_NODE
from leeward_controller.operations.drill import DRILL_NODE
from leeward_controller.operations.evacuate import EVACUATE
from leeward_controller.operations.fence_node import FENCE_NODE
from leeward_controller.operations.live_migrate import LIVE_MIGRATE
from leeward_controller.operations.migrate import MIGRATE
from leeward_controller.operations.pause import PAUSE, UNPAUSE
from leeward_controller.operations.power import REBOOT, START, STOP
from leeward_controller.operations.rebuild import REBUILD
from leeward_controller.operations.recover import RECOVER
from leeward_controller.operations.remove_node import REMOVE_NODE
from leeward_controller.operations.rescue import RESCUE, UNRESCUE
from leeward_controller.operations.resize import RESIZE
from leeward_controller.operations.resize_end import CONFIRM_RESIZE, REVERT_RESIZE
from leeward_controller.operations.shelve import OFFLOAD, SHELVE, UNSHELVE
from leeward_controller.operations.snapshot import SNAPSHOT
from leeward_controller.operations.step import Definition
from leeward_controller.operations.suspend import RESUME, SUSPEND

_ALL = (
    CREATE,
    START,
    STOP,
    REBOOT,
    PAUSE,
    UNPAUSE,
    SUSPEND,
    RESUME,
    RESIZE,
    CONFIRM_RESIZE,
    REVERT_RESIZE,
    SNAPSHOT,
    MIGRATE,
    LIVE_MIGRATE,
    SHELVE,
    OFFLOAD,
    UNSHELVE,
    RESCUE,
    UNRESCUE,
    REBUILD,
    EVACUATE,
    DELETE,
    UNDELETE,
    CRASH_DUMP,
    RECOVER,
    DRAIN_NODE,
    BRING_BACK,
    DRILL_NODE,
    FENCE_NODE,
    REMOVE_NODE,
)

DEFINITIONS: dict[OperationType, Definition] = {definition.type: definition for definition in _ALL}
