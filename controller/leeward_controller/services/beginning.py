"""The one way in which operations on instances that exist are begun for clients."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from leeward import names
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Arguments, OperationType, PlainArguments
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import Stored
from leeward_controller.services.checks import Checks
from leeward_controller.services.instances import InstanceService, Target
from leeward_controller.services.shown import Presenter, ShownOperation

LONGEST_GRACE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation's arguments, and what whoever asks should know though it is allowed, a sentence each."""

    arguments: Arguments
    warnings: tuple[str, ...] = ()


Prepare = Callable[[Instance], Awaitable[Prepared]]
"""Prepares an operation for the instance as it is; raises what makes the request impossible."""


class Beginning:
    """Checks a request against the instance as it is, and begins the operation."""

    def __init__(self, *, instances: InstanceService, submitter: Submitter, presenter: Presenter) -> None:
        self._instances = instances
        self._submitter = submitter
        self._presenter = presenter

    async def begin(
        self,
        target: Target,
        wanted: OperationType,
        arguments: Arguments | Prepare,
        requester: Requester,
        checks: Checks | None = None,
    ) -> ShownOperation:
        """Begin `wanted`, or with `validate_only` only find out whether it could be. A repeated request answers again.

        `checks` holds what is wrong with the rest of the request. Raises InvalidArgument, NotFound, Locked, WrongState,
        OperationRunning, Conflict (etag), and what preparing the arguments raises.
        """
        checks = checks or Checks()
        checks.parsed(lambda: names.project_instance(target.name), ("", ""))
        checks.request_id(requester.request_id)
        checks.done()
        if (earlier := await self._submitter.repeated(requester)) is not None:
            return await self._presenter.show(earlier)

        async def act(stored: Stored[Instance]) -> ShownOperation:
            if callable(arguments):
                # What cannot be done in this state is refused for that, whatever else is wrong.
                await self._submitter.check(stored.value, wanted, PlainArguments(), admin=requester.admin)
                prepared = await arguments(stored.value)
            else:
                prepared = Prepared(arguments)
            chosen, warnings = prepared.arguments, prepared.warnings
            if target.validate_only:
                await self._submitter.check(stored.value, wanted, chosen, admin=requester.admin)
                return self._presenter.only_checked(stored.value, wanted, chosen, requester.principal, warnings)
            begun = await self._submitter.submit(stored, wanted, chosen, requester, warnings=warnings)
            return await self._presenter.show(begun)

        return await self._instances.on_present(target, act)


def node_id(checks: Checks, name: str, field: str = "node") -> str:
    """The id in a node's resource name, empty for an empty one; a wrong one is noted."""
    return checks.parsed(lambda: names.node(name, field=field), "") if name else ""


def bounded(checks: Checks, given_s: float | None, usual_s: float, *, longest_s: float, field: str) -> float:
    """A span in seconds, `usual_s` when it was not given; one that is out of bounds is noted."""
    span_s = usual_s if given_s is None else given_s
    checks.between(span_s, 0, longest_s, field, " s")
    return span_s
