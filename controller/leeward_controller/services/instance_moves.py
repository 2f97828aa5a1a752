"""What gives an instance another place or another size."""

from dataclasses import dataclass, replace

from leeward import keys, names
from leeward.agent.types import Escalation
from leeward.errors import FailedPrecondition, InvalidArgument, NotFound, Violation
from leeward_controller.domain.catalog import Flavor
from leeward_controller.domain.instance import Instance, Resources
from leeward_controller.domain.operation import (
    EvacuateArguments,
    LiveMigrateArguments,
    MigrateArguments,
    OperationType,
    PlainArguments,
    ResizeArguments,
)
from leeward_controller.domain.transitions import check_node
from leeward_controller.operations.submit import Requester
from leeward_controller.records import FENCES, FLAVORS, NODES, Records
from leeward_controller.services.beginning import LONGEST_GRACE_S, Beginning, Prepared, bounded, node_id
from leeward_controller.services.checks import Checks
from leeward_controller.services.fitting import Fitting
from leeward_controller.services.instances import Target
from leeward_controller.services.shown import ShownOperation

LONGEST_MIGRATION_S = 86_400.0
LONGEST_AUTO_CONFIRM_S = 30 * 86_400.0
_MOST_MIB_S = 1_000_000


@dataclass(frozen=True, slots=True)
class LiveMigrationWish:
    """How to live-migrate, as it was asked for: None is the default, 0 MiB/s no limit, an empty node any."""

    node: str = ""
    bandwidth_mib_s: int = 0
    max_downtime_s: float | None = None
    timeout_s: float | None = None
    escalation: Escalation = Escalation.AUTO_CONVERGE


class InstanceMoves:
    """Migrations, evacuation, resize."""

    def __init__(self, *, records: Records, beginning: Beginning, fitting: Fitting) -> None:
        self._records = records
        self._fitting = fitting
        self._begin = beginning.begin

    async def migrate(
        self, target: Target, requester: Requester, *, node: str, grace_period_s: float | None
    ) -> ShownOperation:
        """Move an instance by stopping it here and starting it there.

        Raises what `Beginning.begin` does, NodeUnfit, NoNodeFits.
        """
        checks, usual_s = Checks(), MigrateArguments().grace_period_s
        named = node_id(checks, node)
        grace_s = bounded(checks, grace_period_s, usual_s, longest_s=LONGEST_GRACE_S, field="grace_period")

        async def prepare(instance: Instance) -> Prepared:
            self._fitting.check(instance, named=named, leaving=True)
            return Prepared(MigrateArguments(named, grace_s))

        return await self._begin(target, OperationType.MIGRATE, prepare, requester, checks)

    async def live_migrate(self, target: Target, requester: Requester, wish: LiveMigrationWish) -> ShownOperation:
        """Move an instance while it runs. Raises what `Beginning.begin` does, NodeUnfit, NoNodeFits."""
        checks, usual = Checks(), LiveMigrateArguments()
        named = node_id(checks, wish.node)
        checks.between(wish.bandwidth_mib_s, 0, _MOST_MIB_S, "max_bandwidth_mib_per_second", " MiB/s")
        downtime_s = usual.max_downtime_ms / 1000 if wish.max_downtime_s is None else wish.max_downtime_s
        checks.between(downtime_s, 0.001, 60, "max_downtime", " s")
        bound_s = usual.timeout_s if wish.timeout_s is None else wish.timeout_s
        checks.between(bound_s, 1, LONGEST_MIGRATION_S, "timeout", " s")
        chosen = LiveMigrateArguments(
            node=named,
            bandwidth_mib_s=wish.bandwidth_mib_s,
            max_downtime_ms=round(downtime_s * 1000),
            timeout_s=bound_s,
            escalation=wish.escalation,
        )

        async def prepare(instance: Instance) -> Prepared:
            self._fitting.check(instance, named=named, leaving=True, for_live=True)
            return Prepared(chosen)

        return await self._begin(target, OperationType.LIVE_MIGRATE, prepare, requester, checks)

    async def evacuate(self, target: Target, requester: Requester, *, node: str, allow_rebuild: bool) -> ShownOperation:
        """Restart an instance elsewhere. Raises what `Beginning.begin` does, FailedPrecondition without a fence proof.

        With `allow_rebuild` one whose disk was on the lost node is made anew.
        """
        checks = Checks()
        wish = EvacuateArguments(node_id(checks, node), allow_rebuild=allow_rebuild)

        async def prepare(instance: Instance) -> Prepared:
            proved = await self._with_proof(instance, wish)
            if proved.node and not proved.allow_rebuild:
                self._fitting.check(instance, named=proved.node, leaving=True)
            return Prepared(proved)

        return await self._begin(target, OperationType.EVACUATE, prepare, requester, checks)

    async def resize(
        self, target: Target, requester: Requester, *, flavor: str, node: str, auto_confirm_after_s: float | None
    ) -> ShownOperation:
        """Give an instance another flavor.

        Raises what `Beginning.begin` does, NotFound (flavor), InvalidArgument (the flavor is the one it has, or has a
        smaller disk), NodeUnfit, NoNodeFits.
        """
        checks = Checks()
        flavor_id = checks.parsed(lambda: names.flavor(flavor, field="flavor"), "")
        named = node_id(checks, node)
        if auto_confirm_after_s is not None:
            checks.between(auto_confirm_after_s, 1, LONGEST_AUTO_CONFIRM_S, "auto_confirm_after", " s")

        async def prepare(instance: Instance) -> Prepared:
            wanted = await self._flavor(flavor_id)
            _check_new_flavor(instance, wanted)
            resources = Resources(wanted.vcpus, wanted.memory_mib, wanted.disk_gib)
            warnings = self._fitting.check(instance, named=named, resources=resources)
            return Prepared(ResizeArguments(wanted.flavor, resources, named, auto_confirm_after_s or 0.0), warnings)

        return await self._begin(target, OperationType.RESIZE, prepare, requester, checks)

    async def confirm_resize(self, target: Target, requester: Requester) -> ShownOperation:
        """Keep the new flavor. Raises what `Beginning.begin` does."""
        return await self._begin(target, OperationType.CONFIRM_RESIZE, PlainArguments(), requester)

    async def revert_resize(self, target: Target, requester: Requester) -> ShownOperation:
        """Go back to all that was before. Raises what `Beginning.begin` does."""
        return await self._begin(target, OperationType.REVERT_RESIZE, PlainArguments(), requester)

    async def _flavor(self, flavor_id: str) -> Flavor:
        stored = await self._records.get(FLAVORS, keys.flavor(flavor_id))
        if stored is None:
            raise NotFound.named(f"flavors/{flavor_id}")
        return stored.value

    async def _with_proof(self, instance: Instance, wish: EvacuateArguments) -> EvacuateArguments:
        """The boot of the instance's node that is proved to be over. Raises FailedPrecondition."""
        check_node(instance, OperationType.EVACUATE)
        node = await self._records.get(NODES, keys.node(instance.node))
        boot_id = node.value.report.boot_id if node else ""
        if node is None or await self._records.get(FENCES, keys.fence(instance.node, boot_id)) is None:
            name = f"nodes/{instance.node}"
            raise FailedPrecondition(
                f"{instance.name} is on {name}, of which there is no fence proof: it may still run there",
                reason="NOT_FENCED",
                violations=[Violation("FENCE_PROOF", name, "has no fence proof; fence it, or attest that it is off")],
                resource=name,
            )
        return replace(wish, fenced_node=instance.node, fenced_boot_id=boot_id)


def _check_new_flavor(instance: Instance, wanted: Flavor) -> None:
    """Raises InvalidArgument for a flavor that changes nothing, or would cut the disk."""
    had = instance.resources
    if (wanted.vcpus, wanted.memory_mib, wanted.disk_gib) == (had.vcpus, had.memory_mib, had.disk_gib):
        raise InvalidArgument.field(
            "flavor", f"{wanted.name} gives what {instance.name} has already; name one that differs"
        )
    if wanted.disk_gib < had.disk_gib:
        raise InvalidArgument.field(
            "flavor",
            f"{wanted.name} has a disk of {wanted.disk_gib} GiB, {instance.name} has one of {had.disk_gib} GiB, and "
            "disks never shrink",
        )
