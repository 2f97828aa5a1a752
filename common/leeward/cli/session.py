"""What every command that talks to the API does: connect, do its work, wait for what it began."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from leeward.cli import names
from leeward.cli.context import Format, Options, Settings, resolve
from leeward.errors import InvalidArgument

if TYPE_CHECKING:
    from google.longrunning.operations_pb2 import Operation
    from google.protobuf.message import Message

    from leeward.client import Client, Limits

T = TypeVar("T")

# A controller that is being restarted is worth a moment, a mistyped address is not worth more.
_PATIENCE_S = 2.0
_STREAM_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Session:
    """A connection, and what the user has set."""

    client: "Client"
    settings: Settings
    format: Format

    @property
    def parent(self) -> str:
        """`projects/{project}` of the chosen project."""
        return names.project(self.settings.project)

    @property
    def all_projects(self) -> bool:
        """Whether lists are of all projects, so that names have to tell which."""
        return self.settings.project == names.ALL_PROJECTS

    def instance(self, name: str) -> str:
        """The resource name of an instance of the chosen project."""
        return names.instance(name, self.settings.project)

    def group(self, name: str) -> str:
        """The resource name of a group of the chosen project."""
        return names.group(name, self.settings.project)

    def image(self, name: str) -> str:
        """The resource name of an image of the chosen project."""
        return names.image(name, self.settings.project)

    def backup_policy(self, name: str) -> str:
        """The resource name of a backup policy of the chosen project."""
        return names.backup_policy(name, self.settings.project)


def options_of(ctx: typer.Context) -> Options:
    """The global options as they were given."""
    return ctx.find_object(Options) or Options()


def call(ctx: typer.Context, work: Callable[[Session], Coroutine[Any, Any, T]], *, limits: "Limits | None" = None) -> T:
    """Connect, run `work`, and close the connection. Ctrl-C cancels `work` and ends as KeyboardInterrupt."""
    options = options_of(ctx)
    settings = resolve(options)
    return asyncio.run(_connected(settings, options.format, work, limits))


async def _connected(
    settings: Settings, format: Format, work: Callable[[Session], Awaitable[T]], limits: "Limits | None"
) -> T:
    from leeward.client import Limits, connect

    tls = None
    if settings.tls_dir is not None:
        from leeward.tls import TlsMaterial

        tls = TlsMaterial.load(settings.tls_dir)
    limits = limits or Limits(patience_s=_PATIENCE_S, stream_patience_s=_STREAM_PATIENCE_S)
    async with connect(settings.endpoints, tls=tls, limits=limits) as client:
        return await work(Session(client, settings, format))


def operate(
    ctx: typer.Context,
    begin: "Callable[[Session], Awaitable[Operation]]",
    *,
    no_wait: bool,
    validate_only: bool,
    after: str = "",
) -> None:
    """Begin an operation, follow it to its end, and write what it made; `after` says what is done when it made nothing.

    With `no_wait` write the operation's name instead; with `validate_only` there is none.
    """

    async def work(session: Session) -> None:
        from leeward.client import metadata_of

        operation = await begin(session)
        for warning in metadata_of(operation).warnings:
            say(f"Warning: {warning}.")
        if validate_only:
            say("It is valid. Nothing was changed.")
        elif no_wait:
            show_begun(session, [operation])
        else:
            for done in await follow(session, [operation.name]):
                show_outcome(session, done, after)

    call(ctx, work)


async def follow(session: Session, operations: Sequence[str]) -> "list[Operation]":
    """Wait for all, showing how they go on; returns those that succeeded and raises the first error.

    Ctrl-C only ends the waiting, and the user is told how to go on.
    """
    from leeward.cli.progress import operations_view
    from leeward.errors import LeewardError

    done: list[Operation] = []
    failures: list[tuple[str, LeewardError]] = []
    finished: set[str] = set()

    with operations_view() as view:

        async def one(name: str) -> None:
            try:
                done.append(await session.client.wait(name, on_update=view.update))
            except LeewardError as error:
                failures.append((name, error))
            finished.add(name)

        try:
            async with asyncio.TaskGroup() as group:
                for name in operations:
                    group.create_task(one(name))
        except asyncio.CancelledError:
            view.close()
            _tell_detached([name for name in operations if name not in finished])
            raise
    _raise_first(failures)
    return done


def show_begun(session: Session, operations: "Sequence[Operation]") -> None:
    """Write the names of operations that are not waited for, or all of them for programs."""
    from leeward.cli import output

    if session.format in (Format.TABLE, Format.NAME):
        for operation in operations:
            print(operation.name)
    elif len(operations) == 1:
        output.show_one(operations[0], session.format)
    else:
        output.show_list(operations, session.format)


def show_outcome(session: Session, operation: "Operation", after: str) -> None:
    """Write what a finished operation made; `after` says what it did when that was nothing to show."""
    from leeward.cli import output

    made = _response_of(operation)
    if made is not None:
        output.show_result(made, session.format)
    elif session.format is Format.TABLE:
        print(after or f"{operation.name} is done.")
    else:
        output.show_one(operation, session.format)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(text, file=sys.stderr)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back; `yes` is the answer where it was given beforehand.

    Raises InvalidArgument where nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument(f"there is no terminal to ask {question!r} at: repeat it with --yes")
    if not typer.confirm(question, err=True):
        say("Nothing was done.")
        raise typer.Exit(1)


def _response_of(operation: "Operation") -> "Message | None":
    """The resource that an operation answers with; None when that is empty or has no table here."""
    from leeward.v1.image_pb2 import Image
    from leeward.v1.instance_pb2 import Instance
    from leeward.v1.node_pb2 import FenceProof, Node

    for kind in (Instance, Image, Node, FenceProof):
        if operation.response.Is(kind.DESCRIPTOR):
            message = kind()
            operation.response.Unpack(message)
            return message
    return None


def _raise_first(failures: "list[tuple[str, Any]]") -> None:
    """Raise one error; where there are more, tell the others first."""
    from leeward.cli.errors import one_line

    for name, error in failures[1:]:
        say(f"Error: {name}: {one_line(error)}")
    for _, error in failures[:1]:
        raise error


def _tell_detached(operations: Sequence[str]) -> None:
    for name in operations:
        say(f"Detached. {name} goes on.")
        say(f"  follow it: leeward operation watch {names.short(name)}")
        say(f"  cancel it: leeward operation cancel {names.short(name)}")
