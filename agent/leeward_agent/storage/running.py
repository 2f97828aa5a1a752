"""How a pool over a directory has its file work done: in threads, within bounds, and under locks."""

import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from leeward.errors import LeewardError, StorageError
from leeward_agent.storage.files import HeldLock
from leeward_agent.storage.marker import Mount, check_mounted
from leeward_agent.storage.workers import Workers

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How long a pool is waited for, and by how many threads."""

    operation_s: float = 30.0  # One call on files: a chunk of an image, a disk's folder, a run epoch.
    sync_s: float = 600.0  # Until a large file that another program wrote is on stable storage.
    report_s: float = 2.0
    slot_s: float = 2.0
    threads: int = 4


class Held(Generic[T]):
    """Something whose lock is held, as `subject`. Each step is taken in a thread; none after the lock was let go."""

    def __init__(self, runner: "PoolRunner", subject: T, lock: HeldLock, *, tidy: Callable[[], None]) -> None:
        self._runner = runner
        self._lock = lock
        self._tidy = tidy
        self.subject = subject
        self.undo: Callable[[], None] | None = None
        """Done before the lock is let go, unless it was set to None again: for what must not stay after a failure."""

    async def run(self, what: str, call: Callable[[T], R], *, bound_s: float | None = None) -> R:
        """Take one step. Raises StorageError when it is not done in time; it may go on then, and keeps the lock."""
        return await self._runner.run(what, partial(self._step, call), bound_s=bound_s)

    async def do(self, what: str, call: Callable[[], R], *, bound_s: float | None = None) -> R:
        """As `run`, for a step that does not need the subject."""
        return await self.run(what, lambda _: call(), bound_s=bound_s)

    def release(self) -> None:
        """Undo, tidy up and let go. Blocking."""
        with self._lock.last_use():
            if not self._lock.is_held:
                return
            try:
                if self.undo is not None:
                    self.undo()
                self._tidy()
            finally:
                self._lock.release()

    def _step(self, call: Callable[[T], R]) -> R:
        with self._lock.last_use():
            if not self._lock.is_held:
                raise StorageError("the lock has been let go meanwhile")
            return call(self.subject)


class PoolRunner:
    """Runs calls on one pool's files, while the pool is mounted where it was found."""

    def __init__(self, root: Path, *, pool_id: str, mount: Mount, limits: PoolLimits, workers: Workers) -> None:
        self.root = root
        self.pool_id = pool_id
        self.limits = limits
        self._mount = mount
        self.workers = workers

    async def run(
        self,
        what: str,
        call: Callable[[], R],
        *,
        bound_s: float | None = None,
        discard: Callable[[R], None] | None = None,
        workers: Workers | None = None,
    ) -> R:
        """The result of `call` from a thread. Raises StorageError (reason POOL_FULL when it is for want of room)."""

        def checked_call() -> R:
            check_mounted(self.root, self._mount)
            try:
                return call()
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise self.full(what) from error
                raise

        bound_s = self.limits.operation_s if bound_s is None else bound_s
        return await (workers or self.workers).run(
            f"pool {self.pool_id}: {what}", checked_call, bound_s=bound_s, discard=discard
        )

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` done, unheard, also when the task that asks is being cancelled."""
        self.workers.post(call)

    @asynccontextmanager
    async def holding(
        self, what: str, take: Callable[[], tuple[T, HeldLock]], *, tidy: Callable[[T], None]
    ) -> AsyncGenerator[Held[T], None]:
        """What `take` has locked, for as long as the context lasts. `tidy` is done before the lock is let go."""

        def hold() -> Held[T]:
            subject, lock = take()
            return Held(self, subject, lock, tidy=lambda: tidy(subject))

        held = await self.run(what, hold, discard=Held.release)
        try:
            yield held
            await self._let_go(held)
        except LeewardError:
            await self._let_go(held)
            raise
        finally:
            # Posted, so that it is done when this task is cancelled, too, and behind a step that hangs.
            self.post(held.release)

    async def _let_go(self, held: Held[T]) -> None:
        # What was asked is done, or has failed for a reason of its own; what is not tidied up now is another time.
        with suppress(LeewardError):
            await self.run("letting go of a lock", held.release)

    def check_room(self, what: str, size_bytes: int) -> None:
        """Raises StorageError (reason POOL_FULL) when so much does not fit any more. Blocking."""
        usage = os.statvfs(self.root)
        available_bytes = usage.f_bavail * usage.f_frsize
        if available_bytes < size_bytes:
            raise self.full(f"{what}: {size_bytes} bytes are needed, {available_bytes} are left")

    def full(self, what: str) -> StorageError:
        """The pool has no room for it."""
        return StorageError(f"pool {self.pool_id}: {what}: no space left", reason="POOL_FULL")
