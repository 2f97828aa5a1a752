"""Operations as clients see them: look, list, wait, watch, cancel, forget."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from leeward import keys, names
from leeward.clock import Clock
from leeward.errors import FailedPrecondition, LeewardError, NotFound, Violation
from leeward_controller.domain.node_operation import DrainProgress
from leeward_controller.domain.operation import Operation, OperationType
from leeward_controller.operations.context import Progress
from leeward_controller.operations.runner import OperationRunner
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import OPERATIONS, Commit, Records, Stored
from leeward_controller.services.checks import Checks
from leeward_controller.services.drain import Drain
from leeward_controller.services.filters import Fields, parse_filter
from leeward_controller.services.paging import Listing, PageRequest, list_page
from leeward_controller.services.shown import Presenter, ShownOperation
from leeward_controller.services.shown_nodes import NodeReader, ShownNode
from leeward_controller.view import ClusterView

log = structlog.get_logger()

LONGEST_WAIT_S = 60.0
_WITH_PROGRESS = frozenset(
    {OperationType.LIVE_MIGRATE, OperationType.DRAIN_NODE, OperationType.BRING_BACK, OperationType.DRILL_NODE}
)

_FIELDS: Fields[Operation] = {
    "done": lambda operation: "true" if operation.phase.ended else "false",
    "instance": lambda operation: operation.instance,
    "node": lambda operation: f"nodes/{operation.node}" if operation.node else "",
    "parent_operation": lambda operation: operation.parent,
    "instance_uid": lambda operation: operation.instance_uid,
    "type": lambda operation: operation.type,
    "phase": lambda operation: operation.phase,
    "requested_by": lambda operation: operation.requested_by,
}


class Peers(Protocol):
    """The other replicas of the control plane."""

    def progress(self, *, address: str, operation_id: str) -> AsyncIterator[Progress]:
        """What the replica at `address` tells of an operation that it drives, until it ends. Raises Unavailable."""
        ...


class NoPeers:
    """A control plane of one replica: nobody to ask."""

    async def progress(self, *, address: str, operation_id: str) -> AsyncGenerator[Progress, None]:
        """Nothing."""
        nothing: tuple[Progress, ...] = ()
        for each in nothing:
            yield each


class OperationService:
    """What can be done with operations, whatever they do."""

    def __init__(
        self,
        *,
        records: Records,
        view: ClusterView,
        runner: OperationRunner,
        submitter: Submitter,
        presenter: Presenter,
        nodes: NodeReader,
        peers: Peers,
        drain: Drain,
        clock: Clock,
    ) -> None:
        self._records = records
        self._view = view
        self._runner = runner
        self._submitter = submitter
        self._presenter = presenter
        self._nodes = nodes
        self._peers = peers
        self._drain = drain
        self._clock = clock

    async def get(self, name: str) -> ShownOperation:
        """One operation, as it is now. Raises InvalidArgument, NotFound."""
        return await self._presenter.get(names.operation(name))

    async def list(self, parent: str, page: PageRequest) -> tuple[list[ShownOperation], Listing[Operation]]:
        """One page of all operations, by id; instances and progress are as this replica last heard.

        Raises InvalidArgument.
        """
        checks = Checks()
        checks.that(parent in ("", "operations"), "name", f"{parent!r} is not empty and not operations")
        page.check(checks)
        keep = checks.parsed(lambda: parse_filter(page.filter, _FIELDS), lambda _: True)
        checks.done()
        listing = await list_page(self._records, OPERATIONS, page, keep=keep)
        return [self._at_hand(stored) for stored in listing.items], listing

    async def wait(self, name: str, *, timeout_s: float) -> ShownOperation:
        """The operation when it has ended, or as it is after `timeout_s` (at most LONGEST_WAIT_S), or when stopping.

        Raises InvalidArgument, NotFound.
        """
        key = keys.operation(names.operation(name))
        shown = await self.get(name)
        deadline_s = self._clock.monotonic_s() + min(timeout_s, LONGEST_WAIT_S)
        while not shown.operation.phase.ended and not self._drain.begun:
            revision = shown.revision

            def changed(revision: int = revision) -> bool:
                seen = self._view.operations.get(key)
                return self._drain.begun or (seen is not None and seen.revision > revision)

            remaining_s = deadline_s - self._clock.monotonic_s()
            # Asking again now and then shows an operation that was forgotten, and a server that is stopping.
            news = remaining_s > 0 and await self._view.wait_for(changed, timeout_s=min(remaining_s, 1.0))
            if not news and self._clock.monotonic_s() >= deadline_s:
                break
            shown = await self.get(name)
        return shown

    async def cancel(self, name: str, requester: Requester) -> None:
        """Ask an operation to stop; how it ends tells whether it could. No error when it has ended.

        Raises InvalidArgument, NotFound, FailedPrecondition (past its commit point).
        """
        await self._submitter.cancel(names.operation(name), requester)

    async def delete(self, name: str) -> None:
        """Forget an operation that has ended. Raises InvalidArgument, NotFound, FailedPrecondition (it runs)."""
        stored = await self._records.get(OPERATIONS, keys.operation(names.operation(name)))
        if stored is None:
            raise NotFound.named(name)
        if not stored.value.phase.ended:
            raise FailedPrecondition(
                f"{name} is still running; cancel it or wait for it",
                violations=[Violation("OPERATION", name, f"is {stored.value.phase}; it must have ended")],
                resource=name,
            )
        await self._records.commit(Commit().remove(stored))

    async def watch(self, name: str, *, from_peer: bool = False) -> AsyncGenerator[ShownOperation, None]:
        """The operation now, and again at each change of its record or progress, until it has ended.

        Progress of an operation that another replica drives comes from there, unless the one who asks is a replica
        itself (`from_peer`). Raises InvalidArgument, NotFound, StoreUnavailable, Draining.
        """
        operation_id = names.operation(name)
        news = _News()
        with self._view.following(keys.operation(operation_id), news.changed):
            shown = await self._presenter.get(operation_id)
            yield shown
            if shown.operation.phase.ended:
                return
            forwarded = shown.operation.type in _WITH_PROGRESS and not from_peer
            async with (
                self._progress_of(shown.operation, news, forwarded=forwarded),
                aclosing(self._merged(shown, news)) as updates,
            ):
                async for update in updates:
                    yield update

    @asynccontextmanager
    async def _progress_of(self, operation: Operation, news: "_News", *, forwarded: bool) -> AsyncIterator[None]:
        """Let `news` have the progress of an operation that is driven here or, when `forwarded`, elsewhere."""

        def heard(operation_id: str, progress: Progress) -> None:
            if operation_id == operation.id:
                news.progressed(progress)

        stop_listening = self._runner.listen(heard)
        task = asyncio.ensure_future(self._follow_peer(operation, news)) if forwarded else None
        try:
            yield
        finally:
            stop_listening()
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def _merged(self, shown: ShownOperation, news: "_News") -> AsyncGenerator[ShownOperation, None]:
        async with aclosing(self._drain.until(news.items(), revision=lambda: shown.revision)) as items:
            async for item in items:
                if not isinstance(item, _Change):
                    shown = replace(shown, progress=_newer(item, shown.progress))
                    yield shown
                    continue
                if item.revision <= shown.revision:
                    continue  # It had happened already when the operation was read.
                if item.stored is None:
                    raise NotFound.named(shown.operation.name)
                progress = shown.progress
                shown = await self._presenter.show(item.stored.value, item.revision)
                shown = replace(shown, progress=_newer(progress, shown.progress))
                yield shown
                if shown.operation.phase.ended:
                    return

    async def _follow_peer(self, operation: Operation, news: "_News") -> None:
        """Pass on what the replica that drives the operation tells; without it the record's changes must do."""
        while True:
            seen = self._view.operations.get(keys.operation(operation.id))
            owner = seen.value.owner if seen else operation.owner
            controller = self._view.controllers.get(keys.controller(owner))
            if controller is not None and owner != self._runner.controller_id:
                try:
                    address = controller.value.address
                    async for progress in self._peers.progress(address=address, operation_id=operation.id):
                        news.progressed(progress)
                except LeewardError as error:
                    log.info("operation.progress_not_forwarded", operation=operation.name, why=error.message)
            await self._clock.sleep(1.0)

    def _at_hand(self, stored: Stored[Operation]) -> ShownOperation:
        operation = stored.value
        instance = self._view.instances.get(keys.instance(operation.instance))
        if instance is not None and instance.value.uid != operation.instance_uid:
            instance = None
        shown = ShownOperation(operation, stored.revision, instance, self._presenter.progress_of(operation))
        return replace(shown, node=self._node_at_hand(operation))

    def _node_at_hand(self, operation: Operation) -> ShownNode | None:
        stored = self._view.nodes.get(keys.node(operation.node)) if operation.node else None
        return self._nodes.at_hand(stored) if stored is not None and stored.value.uid == operation.node_uid else None


def _newer(told: Progress | None, known: Progress | None) -> Progress | None:
    """What the driving replica told, unless the record knows more by now; the two come on different ways."""
    if isinstance(told, DrainProgress) and isinstance(known, DrainProgress) and told.is_behind(known):
        return known
    return told or known


@dataclass(frozen=True, slots=True)
class _Change:
    """A new version of an operation's record, or None when it is gone."""

    revision: int
    stored: Stored[Operation] | None


class _News:
    """What happened to an operation since its watcher last looked: all changes of its record, the latest progress."""

    def __init__(self) -> None:
        self._changes: list[_Change] = []
        self._progress: Progress | None = None
        self._arrived = asyncio.Event()

    def progressed(self, progress: Progress) -> None:
        self._progress = progress
        self._arrived.set()

    def changed(self, revision: int, stored: Stored[Operation] | None) -> None:
        self._changes.append(_Change(revision, stored))
        self._arrived.set()

    async def items(self) -> AsyncGenerator[_Change | Progress, None]:
        """All news as it comes."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            progress, self._progress = self._progress, None
            if progress is not None:
                yield progress
            changes, self._changes = self._changes, []
            for change in changes:
                yield change
