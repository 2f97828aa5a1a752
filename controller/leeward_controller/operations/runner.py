"""Drives operations: claims those nobody owns, takes their steps, records each, undoes what fails.

An operation is in the store before anything happens, and each finished step is one transaction that also holds what
the step leads to. A replica that dies leaves its operations at a step; another one finds that their owner's key is
gone, claims them, and repeats that step, which is safe by what steps promise.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import structlog

from leeward import keys
from leeward.errors import Conflict, LeewardError, StoreIndefinite, StoreUnavailable
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.context import Children, Progress, Surroundings
from leeward_controller.operations.driver import Driver
from leeward_controller.operations.percent import percent_done
from leeward_controller.operations.recording import Recorder, Superseded
from leeward_controller.records import Commit, Stored

log = structlog.get_logger()
_AFTER_DEFECT_S = 5.0

ProgressListener = Callable[[str, Progress], None]


class OperationRunner:
    """Drives the operations of one controller replica."""

    def __init__(self, *, controller_id: str, surroundings: Surroundings, children: Callable[[], Children]) -> None:
        """`children` is asked when an operation is to be driven: what begins operations needs a runner itself."""
        self.controller_id = controller_id
        self.progress: dict[str, Progress] = {}
        self._surroundings = surroundings
        self._children = children
        self._recorder = Recorder(surroundings)
        self._registered_revision = 0
        self._drivers: dict[str, Driver] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._claims: set[asyncio.Task[None]] = set()
        self._being_written: set[str] = set()
        self._left_at: dict[str, int] = {}
        self._listeners: list[ProgressListener] = []
        surroundings.view.listen(self._notice)

    @property
    def running(self) -> frozenset[str]:
        """Ids of the operations that this replica drives now."""
        return frozenset(self._tasks)

    @property
    def is_registered(self) -> bool:
        """Whether operations can be owned here now."""
        return bool(self._registered_revision)

    def registered(self, *, controller_id: str, create_revision: int) -> None:
        """This replica's own key stands: operations may be owned under it."""
        self.controller_id = controller_id
        self._registered_revision = create_revision
        self._look_for_orphans()

    async def unregistered(self) -> None:
        """This replica's key is gone, or about to be: others take over at once, so stop driving."""
        self._registered_revision = 0
        await self._stop_all()

    @contextmanager
    def _submitting(self, operation_id: str) -> Iterator[None]:
        """While a new operation of this replica is being written: who writes it drives it, and it is no orphan.

        When the block ends before it is driven, because the write's end is not known, it is claimed if it turns up.
        """
        self._being_written.add(operation_id)
        try:
            yield
        finally:
            self._being_written.discard(operation_id)
            self._reconsider(keys.operation(operation_id))

    def owned(self, commit: Commit) -> Commit:
        """Bind a commit to this replica's registration, so that nothing is owned by a replica that has lost it."""
        if not self._registered_revision:
            raise StoreUnavailable("this controller is not registered with the store now", retry_after_s=1.0)
        return commit.alive(keys.controller(self.controller_id), self._registered_revision)

    def listen(self, listener: ProgressListener) -> Callable[[], None]:
        """Call `listener(operation id, progress)` for all progress of operations driven here; returns how to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def begin(self, operation: Operation, commit: Commit) -> Operation:
        """Write a new operation of this replica by `commit`, and drive it.

        Raises Conflict, StoreUnavailable, StoreIndefinite.
        """
        with self._submitting(operation.id):
            revision = await self._surroundings.records.commit(commit)
            self._drive(Stored(keys.operation(operation.id), operation, revision, revision))
        return operation

    async def begin_decided(self, operation: Operation, commit: Commit, subject: Stored[Instance]) -> Operation:
        """The same together with the operation's first choice; `commit` holds only what else is required.

        Raises Conflict, StoreUnavailable, StoreIndefinite, and what the choosing step raises.
        """
        new = Stored(keys.operation(operation.id), operation, 0, 0)
        decided, advance = await self._driver(new).decide(replace(subject.value, current_operation=operation.name))
        if decided.phase.ended:
            raise Conflict(f"there is nothing left to do for {operation.name}")
        change = advance.instance or (lambda instance: instance)

        def begun(instance: Instance) -> Instance:
            return replace(change(instance), current_operation=operation.name)

        with self._submitting(operation.id):
            stored = await self._recorder.begin(commit, subject, decided, replace(advance, instance=begun))
            self._drive(stored)
        return decided

    def _drive(self, stored: Stored[Operation]) -> None:
        """Drive an operation that this replica owns as of `stored`."""
        operation_id = stored.value.id
        if operation_id in self._tasks:
            return
        driver = self._driver(stored)
        self._drivers[operation_id] = driver
        task = asyncio.ensure_future(self._run(driver))
        self._tasks[operation_id] = task
        task.add_done_callback(lambda _: self._forget(operation_id))

    def _driver(self, stored: Stored[Operation]) -> Driver:
        operation_id = stored.value.id
        return Driver(
            stored,
            surroundings=self._surroundings,
            recorder=self._recorder,
            children=self._children(),
            tell_progress=lambda progress: self._tell(operation_id, progress),
            percent_of=lambda operation: percent_done(operation, self.progress.get(operation.id)),
        )

    async def _run(self, driver: Driver) -> None:
        operation = driver.stored.value
        try:
            await driver.run()
        except Superseded as error:
            # If it is still this replica's (the agent saw a claim by which an operation before it was adopted), it is
            # claimed anew, and then has the highest claim.
            log.info("operation.superseded", operation=operation.name, why=str(error))
            await self._surroundings.clock.sleep(0.2)
        except LeewardError as error:
            log.error("operation.driver_failed", operation=operation.name, error=error.message, exc_info=True)
            await self._surroundings.clock.sleep(1.0)
        except Exception:
            # A defect of the driver's own. The operation stays as it is recorded and is taken up again, here or by
            # another replica, but not in a tight loop.
            log.exception("operation.driver_has_a_defect", operation=operation.name)
            await self._surroundings.clock.sleep(_AFTER_DEFECT_S)

    def _forget(self, operation_id: str) -> None:
        self._tasks.pop(operation_id, None)
        driver = self._drivers.pop(operation_id, None)
        if driver is not None:
            # The view lags: what it tells of the time before this is no sign that nobody drives the operation.
            self._left_at[operation_id] = driver.stored.revision
            self._caught_up(self._surroundings.view.operations.get(keys.operation(operation_id)))
        self.progress.pop(operation_id, None)
        self._reconsider(keys.operation(operation_id))

    def _tell(self, operation_id: str, progress: Progress) -> None:
        self.progress[operation_id] = progress
        for listener in tuple(self._listeners):
            listener(operation_id, progress)

    def _caught_up(self, stored: Stored[Operation] | None) -> None:
        if stored is not None and stored.revision >= self._left_at.get(stored.value.id, 0):
            self._left_at.pop(stored.value.id, None)

    def _notice(self, key: str) -> None:
        if key.startswith(keys.OPERATIONS):
            stored = self._surroundings.view.operations.get(key)
            if stored is None:
                self._left_at.pop(key.removeprefix(keys.OPERATIONS), None)
                return
            self._caught_up(stored)
            if (driver := self._drivers.get(stored.value.id)) is not None:
                driver.notice(stored)
            else:
                self._claim_if_orphan(stored)
        elif key.startswith(keys.CONTROLLERS):
            self._look_for_orphans()

    def _look_for_orphans(self) -> None:
        for stored in tuple(self._surroundings.view.unfinished.values()):
            self._claim_if_orphan(stored)

    def _claim_if_orphan(self, stored: Stored[Operation]) -> None:
        operation, view = stored.value, self._surroundings.view
        if operation.phase.ended or operation.id in self._tasks or operation.id in self._being_written:
            return
        if stored.revision < self._left_at.get(operation.id, 0):
            return
        if not self._registered_revision or not view.synced:
            return
        owner_lives = keys.controller(operation.owner) in view.controllers
        if owner_lives and operation.owner != self.controller_id:
            return
        self._being_written.add(operation.id)
        task = asyncio.ensure_future(self._claim(stored))
        self._claims.add(task)
        task.add_done_callback(lambda task: self._claim_ended(task, stored))

    def _claim_ended(self, task: asyncio.Task[None], stored: Stored[Operation]) -> None:
        """Whatever became of it: one that is cancelled before its first step never reaches a line of its own."""
        self._claims.discard(task)
        self._being_written.discard(stored.value.id)
        self._reconsider(stored.key)

    async def _claim(self, stored: Stored[Operation]) -> None:
        operation = stored.value
        claimed = replace(operation, owner=self.controller_id, claims=operation.claims + 1)
        try:
            revision = await self._surroundings.records.commit(self.owned(Commit().replace(stored, claimed)))
            log.info("operation.adopted", operation=operation.name, type=operation.type, step=operation.step)
            self._drive(Stored(stored.key, claimed, revision, stored.create_revision))
        except Conflict as error:
            log.debug("operation.not_claimed", operation=operation.name, why=error.message)
        except (StoreUnavailable, StoreIndefinite) as error:
            log.warning("operation.claim_failed", operation=operation.name, error=error.message)
            await self._surroundings.clock.sleep(1.0)

    def _reconsider(self, key: str) -> None:
        if (stored := self._surroundings.view.operations.get(key)) is not None:
            self._claim_if_orphan(stored)

    async def _stop_all(self) -> None:
        tasks = [*self._tasks.values(), *self._claims]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
