"""Takes the backups that policies ask for.

At each due time, or when a leader finds that one was missed, a run is recorded with the backups to be made. Each is a
snapshot whose operation and image have names that follow from policy, instance, due time and attempt, so neither a new
leader nor a restart makes one twice. What fails is tried a few times more, and then again at the next due time.
"""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import structlog

from leeward import keys, names
from leeward.errors import Conflict, LeewardError, OperationRunning, Unavailable
from leeward_controller.domain.backup import (
    BACKUP_PRINCIPAL,
    INSTANCE_PROPERTY,
    POLICY_PROPERTY,
    BackupPolicy,
    BackupRun,
    FailedBackup,
    PendingBackup,
    backup_image_id,
    is_backup,
    last_due,
    next_due,
)
from leeward_controller.domain.instance import Instance
from leeward_controller.domain.operation import Operation, OperationPhase, OperationType, SnapshotArguments
from leeward_controller.housekeeping.duty import NEVER_S
from leeward_controller.housekeeping.rotation import rotate
from leeward_controller.operations.context import Surroundings
from leeward_controller.operations.submit import Requester, Submitter
from leeward_controller.records import Commit, Stored

log = structlog.get_logger()

PAUSES = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=30))
"""How long to wait after each attempt that failed; after one more the backup is given up until the next due time."""

_AT_ONCE_PER_NODE = 2
_CONFLICT_PAUSE_S = 0.5


class Backups:
    """Follows every backup policy."""

    name = "backups"

    def __init__(self, *, surroundings: Surroundings, submitter: Submitter, leader_epoch: int) -> None:
        self._surroundings = surroundings
        self._view = surroundings.view
        self._clock = surroundings.clock
        self._submitter = submitter
        self._leader_epoch = leader_epoch
        self._awaited: set[str] = set()
        self._begun: dict[str, str] = {}  # Keys of operations, by request.
        self._busy: Counter[str] = Counter()  # Backups under way, by node.
        self._pause_s = NEVER_S

    def concerns(self, key: str) -> bool:
        return key.startswith((keys.BACKUP_POLICIES, keys.BACKUP_RUNS)) or key in self._awaited

    async def work(self) -> float:
        self._pause_s = NEVER_S
        self._awaited.clear()
        self._count_busy()
        for _, stored in sorted(self._view.backup_policies.items()):
            if stored.value.paused:
                continue
            try:
                await self._tend(stored)
            except Conflict as error:
                log.info("backup.overtaken", policy=stored.value.name, why=error.message)
                self._look_again_in(_CONFLICT_PAUSE_S)
        return self._pause_s

    async def _tend(self, stored: Stored[BackupPolicy]) -> None:
        policy, now = stored.value, self._clock.now()
        run = self._run_of(policy)
        since = max(policy.effective_time, run.value.due_time) if run.revision else policy.effective_time
        due = last_due(policy, after=since, now=now)
        if due is not None:
            run = await self._begin(stored, run, due)
        if run.value.pending:
            await self._go_on(policy, run)
        upcoming = next_due(policy, after=now)
        if upcoming is not None:
            self._look_again_at(upcoming)

    def _run_of(self, policy: BackupPolicy) -> Stored[BackupRun]:
        """The last run, of revision 0 when there was none."""
        key = keys.backup_run(policy.name)
        found = self._view.backup_runs.get(key)
        nothing = BackupRun(policy.uid, policy.effective_time, policy.effective_time)
        return found or Stored(key, nothing, 0, 0)

    async def _begin(
        self, policy: Stored[BackupPolicy], earlier: Stored[BackupRun], due: datetime
    ) -> Stored[BackupRun]:
        """Record what is to be done for this due time. What is left of the one before is given up for it."""
        present = (self._view.instances.get(keys.instance(name)) for name in policy.value.instances)
        run = BackupRun(
            policy_uid=policy.value.uid,
            due_time=due,
            start_time=self._clock.now(),
            pending=tuple(PendingBackup(s.value.name, s.value.uid) for s in present if s is not None),
        )
        log.info("backup.due", policy=policy.value.name, due=due.isoformat(), instances=len(run.pending))
        return await self._write(Commit().unchanged(policy), earlier, run)

    async def _go_on(self, policy: BackupPolicy, stored: Stored[BackupRun]) -> None:
        run = stored.value
        outcomes = [await self._tend_one(policy, run, item) for item in run.pending]
        new = replace(
            run,
            pending=tuple(each for each in outcomes if isinstance(each, PendingBackup)),
            failed=(*run.failed, *(each for each in outcomes if isinstance(each, FailedBackup))),
        )
        if new != run:
            await self._write(Commit(), stored, new)

    async def _write(self, commit: Commit, stored: Stored[BackupRun], new: BackupRun) -> Stored[BackupRun]:
        commit.replace(stored, new).alive(keys.LEADER, self._leader_epoch)
        revision = await self._surroundings.records.commit(commit)
        return Stored(stored.key, new, revision, stored.create_revision or revision)

    async def _tend_one(
        self, policy: BackupPolicy, run: BackupRun, item: PendingBackup
    ) -> PendingBackup | FailedBackup | None:
        """What becomes of one backup: it is still to be made, given up, or nothing is left to do."""
        stored = self._view.instances.get(keys.instance(item.instance))
        if item.instance not in policy.instances or stored is None or stored.value.uid != item.instance_uid:
            return None
        operation = self._operation_of(_request(policy, run, item))
        if operation is None:
            return await self._try(policy, run, item, stored)
        if not operation.phase.ended:
            self._awaited.add(keys.operation(operation.id))
            return item
        if operation.phase is OperationPhase.SUCCEEDED:
            await self._made(policy, item)
            return None
        reason = operation.error.message if operation.error is not None else f"{operation.name} was {operation.phase}"
        return self._after_failure(policy, item, reason)

    def _operation_of(self, request: Requester) -> Operation | None:
        """The operation that this leader has begun for a request, as far as the view knows it."""
        found = self._view.operations.get(self._begun.get(request.request_id, ""))
        return found.value if found is not None else None

    async def _try(
        self, policy: BackupPolicy, run: BackupRun, item: PendingBackup, stored: Stored[Instance]
    ) -> PendingBackup | FailedBackup | None:
        """Begin the snapshot, or find the one that an earlier leader has begun."""
        image = self._image_to_make(policy, run, item)
        if not image:
            await self._made(policy, item)
            return None
        if item.not_before is not None and item.not_before > self._clock.now():
            self._look_again_at(item.not_before)
            return item
        node = stored.value.node
        if self._busy[node] >= _AT_ONCE_PER_NODE:
            return item  # The end of one of those, which are awaited, brings us back.
        request = _request(policy, run, item)
        properties = {POLICY_PROPERTY: policy.name, INSTANCE_PROPERTY: item.instance}
        arguments = SnapshotArguments(image, properties, policy.name)
        try:
            operation = await self._submitter.submit(
                stored, OperationType.SNAPSHOT, arguments, request, leader_epoch=self._leader_epoch
            )
        except OperationRunning:
            self._awaited.add(stored.key)
            return item
        except Conflict:
            self._look_again_in(_CONFLICT_PAUSE_S)
            return item
        except Unavailable:
            raise
        except LeewardError as error:
            return self._after_failure(policy, item, error.message)
        key = keys.operation(operation.id)
        self._begun[request.request_id] = key
        self._awaited.add(key)
        self._busy[node] += 1
        # Should it have ended before it was awaited, nothing else would tell.
        self._look_again_in(_CONFLICT_PAUSE_S)
        return item

    def _image_to_make(self, policy: BackupPolicy, run: BackupRun, item: PendingBackup) -> str:
        """The resource name of the image; empty when it is there. Another image of that name is stepped around."""
        project, _ = names.project_instance(item.instance)
        for marked in (False, True):
            image_id = backup_image_id(policy, item.instance, run.due_time, marked=marked)
            name = names.image_name(project, image_id)
            there = self._view.images.get(keys.image(name))
            if there is None:
                return name
            if is_backup(there.value, policy=policy.name, instance=item.instance):
                break
        return ""

    async def _made(self, policy: BackupPolicy, item: PendingBackup) -> None:
        await rotate(self._surroundings, policy, item.instance, leader_epoch=self._leader_epoch)

    def _after_failure(self, policy: BackupPolicy, item: PendingBackup, reason: str) -> PendingBackup | FailedBackup:
        log.warning("backup.failed", policy=policy.name, instance=item.instance, attempt=item.attempt + 1, why=reason)
        if item.attempt >= len(PAUSES):
            return FailedBackup(item.instance, reason)
        again = self._clock.now() + PAUSES[item.attempt]
        self._look_again_at(again)
        return replace(item, attempt=item.attempt + 1, not_before=again, reason=reason)

    def _count_busy(self) -> None:
        # One that the view does not know is found by its request again.
        self._begun = {request: key for request, key in self._begun.items() if key in self._view.operations}
        self._busy.clear()
        for key in self._begun.values():
            operation = self._view.operations[key]
            if not operation.value.phase.ended:
                instance = self._view.instances.get(keys.instance(operation.value.instance))
                self._busy[instance.value.node if instance is not None else ""] += 1

    def _look_again_in(self, seconds: float) -> None:
        self._pause_s = min(self._pause_s, seconds)

    def _look_again_at(self, time: datetime) -> None:
        self._look_again_in((time - self._clock.now()).total_seconds())


def _request(policy: BackupPolicy, run: BackupRun, item: PendingBackup) -> Requester:
    """What names an attempt, whoever makes it. Locked instances are backed up, too."""
    due = f"{run.due_time.astimezone(UTC):%Y%m%dt%H%M%S}"
    attempt = f"{policy.uid}/{item.instance_uid}/{due}/{item.attempt}"
    return Requester(principal=BACKUP_PRINCIPAL, request_id=attempt, fingerprint=attempt, admin=True)
