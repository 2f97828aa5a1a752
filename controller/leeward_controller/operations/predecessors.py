"""An operation may interrupt another one, which may have interrupted a third: they end in the order they began."""

from leeward import keys
from leeward_controller.domain.operation import Operation
from leeward_controller.operations.context import StepContext
from leeward_controller.operations.step import Advance
from leeward_controller.records import OPERATIONS, Records, Stored

_LOOK_AGAIN_S = 5.0


async def unfinished(records: Records, operation: Operation) -> Stored[Operation] | None:
    """The latest of those interrupted before `operation` that has not ended. Raises StoreUnavailable.

    It may not be the direct one: an operation that was itself cancelled while it waited has left its own predecessor
    running. It is read from the store, since a view that lags may not know it yet.
    """
    name = operation.predecessor
    while name:
        stored = await records.get(OPERATIONS, keys.operation(name.removeprefix("operations/")))
        if stored is None:
            return None  # Forgotten long after its end.
        if not stored.value.phase.ended:
            return stored
        name = stored.value.predecessor
    return None


async def wait_for_predecessor(context: StepContext) -> Advance:
    """Wait until what this operation interrupted has ended; it was told to stop when this one was made."""
    view = context.view
    while (running := await unfinished(context.surroundings.records, context.operation)) is not None:
        key = running.key

        def ended(key: str = key) -> bool:
            seen = view.operations.get(key)
            return seen is not None and seen.value.phase.ended

        await view.wait_for(ended, timeout_s=_LOOK_AGAIN_S)  # The step's own deadline bounds the whole.
    return Advance()
