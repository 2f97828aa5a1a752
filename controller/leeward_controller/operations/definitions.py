"""Every operation there is, by its type."""

from leeward_controller.domain.operation import OperationType
from leeward_controller.operations.create import CREATE
from leeward_controller.operations.delete import DELETE
from leeward_controller.operations.evacuate import EVACUATE
from leeward_controller.operations.live_migrate import LIVE_MIGRATE
from leeward_controller.operations.power import REBOOT, START, STOP
from leeward_controller.operations.step import Definition

DEFINITIONS: dict[OperationType, Definition] = {
    definition.type: definition for definition in (CREATE, START, STOP, REBOOT, DELETE, LIVE_MIGRATE, EVACUATE)
}
