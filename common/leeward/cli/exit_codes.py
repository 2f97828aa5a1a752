"""What the exit codes of `leeward` mean."""

from enum import IntEnum

from leeward.errors import Code, LeewardError


class ExitCode(IntEnum):
    """How a command ended; the same for every command."""

    OK = 0  # Done.
    FAILED = 1  # It failed in another way than those below, or was cancelled.
    USAGE = 2  # The command line, or a value in it, is wrong.
    NOT_FOUND = 3  # What was named does not exist.
    CONFLICT = 4  # The state of things does not allow it now, or it exists already.
    NO_CAPACITY = 5  # No node has room, or a quota is reached.
    DENIED = 6  # No certificate of this cluster, or its role may not do this.
    UNAVAILABLE = 7  # No controller, or something else that is needed, can be reached now.
    DEADLINE = 8  # It took longer than allowed.
    INTERRUPTED = 130  # Ctrl-C. An operation that was waited for goes on.


_BY_CODE = {
    Code.INVALID_ARGUMENT: ExitCode.USAGE,
    Code.NOT_FOUND: ExitCode.NOT_FOUND,
    Code.ALREADY_EXISTS: ExitCode.CONFLICT,
    Code.FAILED_PRECONDITION: ExitCode.CONFLICT,
    Code.ABORTED: ExitCode.CONFLICT,
    Code.OUT_OF_RANGE: ExitCode.CONFLICT,
    Code.RESOURCE_EXHAUSTED: ExitCode.NO_CAPACITY,
    Code.PERMISSION_DENIED: ExitCode.DENIED,
    Code.UNAUTHENTICATED: ExitCode.DENIED,
    Code.UNAVAILABLE: ExitCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: ExitCode.DEADLINE,
}

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict or not allowed in this state, 5 no capacity, "
    "6 permission or certificate, 7 unavailable, 8 deadline exceeded, 130 interrupted."
)


def exit_code_of(error: LeewardError) -> ExitCode:
    """The exit code that tells a script what kind of failure this was."""
    return _BY_CODE.get(error.code, ExitCode.FAILED)
