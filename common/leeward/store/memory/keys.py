"""Keys with their history, as etcd keeps them."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence

from leeward.errors import Compacted, InvalidArgument
from leeward.store.port import Change, Mutation, Put

# etcd's first revision, at which there is no key yet.
_FIRST_REVISION = 1


class VersionedKeys:
    """The newest value of every key, each older one that is not compacted, and all changes in order.

    Text sorts by code points, which is the order of its UTF-8 bytes too.
    """

    def __init__(self) -> None:
        self.revision = _FIRST_REVISION
        self.compacted = 0
        # Positions in the list of all changes ever made stay valid when its beginning is forgotten.
        self.forgotten = 0
        self._changes: list[Change] = []
        self._live: dict[str, Change] = {}
        self._live_keys: list[str] = []
        self._versions: dict[str, list[Change]] = {}
        self._versioned_keys: list[str] = []

    def get(self, key: str) -> Change | None:
        """The newest value, or None."""
        return self._live.get(key)

    def check_readable(self, revision: int) -> None:
        """Raises Compacted, or InvalidArgument for a revision yet to come."""
        if revision > self.revision:
            raise InvalidArgument.field("revision", f"{revision} is later than the latest one, {self.revision}")
        if revision < self.compacted:
            raise Compacted(self.compacted)

    def below(self, prefix: str, *, start_after: str, revision: int) -> Iterator[Change]:
        """Values as of `revision` (0: newest) in the order of their keys."""
        if not revision or revision == self.revision:
            for key in _between(self._live_keys, prefix, start_after):
                yield self._live[key]
            return
        for key in _between(self._versioned_keys, prefix, start_after):
            versions = self._versions[key]
            known = bisect_right(versions, revision, key=_mod_revision)
            if known and versions[known - 1].value is not None:
                yield versions[known - 1]

    def commit(self, mutations: Iterable[Mutation]) -> Sequence[Change]:
        """Apply all at one new revision; without any effect there is none."""
        revision = self.revision + 1
        changes = []
        for mutation in mutations:
            old = self._live.get(mutation.key)
            if isinstance(mutation, Put):
                created = old.create_revision if old else revision
                changes.append(Change(mutation.key, mutation.value, created, revision, mutation.lease_id))
            elif old is not None:
                changes.append(Change(mutation.key, None, 0, revision))
            else:
                continue
            self._apply(changes[-1])
        if changes:
            self.revision = revision
        return changes

    def changes_since(self, position: int) -> Iterator[Change]:
        """All changes from a position on."""
        for index in range(position - self.forgotten, len(self._changes)):
            yield self._changes[index]

    def position_of(self, revision: int) -> int:
        """Where the changes of `revision` and later begin."""
        return self.forgotten + bisect_left(self._changes, revision, key=_mod_revision)

    @property
    def end(self) -> int:
        """The position after the last change."""
        return self.forgotten + len(self._changes)

    def compact(self, revision: int) -> None:
        """Forget what was superseded at or before `revision`."""
        if revision > self.revision:
            raise InvalidArgument.field("revision", f"{revision} is later than the latest one, {self.revision}")
        if revision <= self.compacted:
            return
        self.compacted = revision
        cut = bisect_right(self._changes, revision, key=_mod_revision)
        for key in dict.fromkeys(change.key for change in self._changes[:cut]):
            self._forget_versions(key, revision)
        del self._changes[:cut]
        self.forgotten += cut

    def _apply(self, change: Change) -> None:
        key = change.key
        self._changes.append(change)
        if key not in self._versions:
            self._versions[key] = []
            insort(self._versioned_keys, key)
        self._versions[key].append(change)
        if change.value is None:
            del self._live[key]
            del self._live_keys[bisect_left(self._live_keys, key)]
            return
        if key not in self._live:
            insort(self._live_keys, key)
        self._live[key] = change

    def _forget_versions(self, key: str, revision: int) -> None:
        versions = self._versions[key]
        last = bisect_right(versions, revision, key=_mod_revision) - 1
        # The value that was valid at `revision` stays readable; a deletion leaves nothing to read.
        del versions[: last + 1 if versions[last].value is None else last]
        if not versions:
            del self._versions[key]
            del self._versioned_keys[bisect_left(self._versioned_keys, key)]


def _mod_revision(change: Change) -> int:
    return change.mod_revision


def _between(keys: Sequence[str], prefix: str, start_after: str) -> Iterator[str]:
    first = bisect_left(keys, prefix)
    if start_after:
        first = max(first, bisect_right(keys, start_after))
    for index in range(first, len(keys)):
        if not keys[index].startswith(prefix):
            return
        yield keys[index]
