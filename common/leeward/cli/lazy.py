"""A group of commands that are imported when they are used, so that `leeward --help` is instant."""

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from leeward.cli.options import global_parameters
from leeward.errors import FailedPrecondition

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PLUGIN_GROUP = "leeward.commands"


@dataclass(frozen=True, slots=True)
class Noun:
    """A group of commands of our own: the module whose `app` it is, and what the list of commands says of it.

    One that is `connected` talks to the API, so its commands take the global options; of one that is not, those do that
    are `also_connected`.
    """

    module: str
    help: str
    connected: bool = True
    also_connected: frozenset[str] = frozenset()


class LazyGroup(TyperGroup):
    """The nouns in `nouns`, then what other packages add through the entry points of PLUGIN_GROUP.

    A plug-in is a command function or a `typer.Typer`. Listing it reads its module's docstring and imports nothing.
    """

    nouns: dict[str, Noun]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.params += global_parameters()
        for name, noun in self.nouns.items():
            self.commands[name] = TyperCommand(name, help=noun.help)

    def list_commands(self, ctx: Any) -> list[str]:
        for point in _plugins():
            if point.name not in self.commands:
                self.commands[point.name] = TyperCommand(point.name, help=_first_line(point))
        return super().list_commands(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if name in self.nouns:
            return name, _load_noun(name, self.nouns[name]), args[1:]
        for point in _plugins():
            if point.name == name:
                return name, _load_plugin(point), args[1:]
        return super().resolve_command(ctx, args)


def _load_noun(name: str, noun: Noun) -> Any:
    group = _mounted(importlib.import_module(noun.module).app, name)
    if isinstance(group, TyperGroup):
        for verb, command in group.commands.items():
            if noun.connected or verb in noun.also_connected:
                command.params += global_parameters()
    return group


def _plugins() -> "list[EntryPoint]":
    from importlib.metadata import entry_points

    return sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: point.name)


def _load_plugin(point: "EntryPoint") -> Any:
    try:
        target = point.load()
    except (ImportError, AttributeError) as error:
        raise FailedPrecondition(
            f"the command {point.name!r} is announced by {point.value}, which cannot be loaded: {error}"
        ) from error
    if isinstance(target, typer.Typer):
        return _mounted(target, point.name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name=point.name)(target)
    return get_command(app)


def _mounted(app: typer.Typer, name: str) -> Any:
    """The group of `app`, with the looks of ours and without options for completion of its own."""
    shell = typer.Typer(add_completion=False, rich_markup_mode=None)
    shell.add_typer(app, name=name)
    # A callback makes it a group even when there is but one thing in it.
    shell.callback()(_nothing)
    parent = get_command(shell)
    assert isinstance(parent, TyperGroup)
    return parent.commands[name]


def _nothing() -> None:
    """Does nothing before a command."""


def _first_line(point: "EntryPoint") -> str:
    """The first line of the module's docstring, read from its source so that nothing heavy is imported."""
    try:
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return f"Not installed ({point.module})."
    with open(spec.origin, encoding="utf-8") as source:
        docstring = ast.get_docstring(ast.parse(source.read())) or f"From {point.module}."
    line = docstring.partition("\n")[0].removeprefix(f"`leeward {point.name}`: ")
    return line[:1].upper() + line[1:]
