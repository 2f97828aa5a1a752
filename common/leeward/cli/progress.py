"""How things go on, on standard error: live bars at a terminal, else a line at each step."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from leeward.cli.operation_text import end_text, move_text, step_text, title_of
from leeward.cli.units import size_text
from leeward.client.images import Progress
from leeward.v1.operation_service_pb2 import WatchOperationResponse


class OperationsView(Protocol):
    """Shows operations while they run."""

    def update(self, response: WatchOperationResponse) -> None:
        """Show this moment of an operation."""
        ...

    def close(self) -> None:
        """Leave the screen as it is; nothing more is shown. May be repeated."""
        ...


@contextmanager
def operations_view() -> Iterator[OperationsView]:
    """The view that fits standard error."""
    if sys.stderr.isatty():
        from leeward.cli.bars import OperationBars

        view: OperationsView = OperationBars()
    else:
        view = OperationLines()
    try:
        yield view
    finally:
        view.close()


def bytes_view(title: str) -> AbstractContextManager[Progress]:
    """Shows how far a file is, as fits standard error."""
    if sys.stderr.isatty():
        from leeward.cli.bars import byte_bar

        return byte_bar(title)
    return _byte_lines(title)


class OperationLines:
    """A plain line when an operation comes to another step, and when it ends."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._open = True

    def update(self, response: WatchOperationResponse) -> None:
        """Print a line if this moment tells of another step than the last one."""
        metadata = response.metadata
        story = end_text(metadata) if response.operation.done else step_text(metadata)
        for move in metadata.drain.moves:
            self._tell(f"{response.operation.name} {move.instance}", title_of(metadata), move_text(move))
        self._tell(response.operation.name, title_of(metadata), story)

    def _tell(self, subject: str, title: str, story: str) -> None:
        if self._open and story and self._last.get(subject) != story:
            self._last[subject] = story
            print(f"{title}: {story}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print no more."""
        self._open = False


@contextmanager
def _byte_lines(title: str) -> Iterator[Progress]:
    last = ""

    def show(stage: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal last
        if stage != last:
            last = stage
            print(f"{title}: {stage} {size_text(total_bytes)}", file=sys.stderr, flush=True)

    yield show
