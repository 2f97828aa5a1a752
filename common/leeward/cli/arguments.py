"""Arguments and options that several commands share."""

from typing import Annotated, TypeAlias

import typer

from leeward.cli import complete

InstanceName: TypeAlias = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="The instance's name.", autocompletion=complete.instances)
]
NodeName: TypeAlias = Annotated[
    str, typer.Argument(metavar="NODE", help="The node's name.", autocompletion=complete.nodes)
]
ImageName: TypeAlias = Annotated[
    str, typer.Argument(metavar="IMAGE", help="The image's name.", autocompletion=complete.images)
]
FlavorName: TypeAlias = Annotated[
    str, typer.Argument(metavar="FLAVOR", help="The flavor's name.", autocompletion=complete.flavors)
]
GroupName: TypeAlias = Annotated[
    str, typer.Argument(metavar="GROUP", help="The group's name.", autocompletion=complete.groups)
]
ProjectName: TypeAlias = Annotated[
    str, typer.Argument(metavar="PROJECT", help="The project's name.", autocompletion=complete.projects)
]
OperationName: TypeAlias = Annotated[
    str, typer.Argument(metavar="OPERATION", help="The operation's name.", autocompletion=complete.operations)
]
NoWait: TypeAlias = Annotated[
    bool, typer.Option("--no-wait", help="Write the operation's name and return at once.", show_default=False)
]
ValidateOnly: TypeAlias = Annotated[
    bool, typer.Option("--validate-only", help="Check everything and change nothing.", show_default=False)
]
Etag: TypeAlias = Annotated[
    str, typer.Option("--etag", metavar="ETAG", help="Only if it is still at this version.", show_default=False)
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", show_default=False)]
Watch: TypeAlias = Annotated[
    bool, typer.Option("--watch", "-w", help="Keep showing it as it changes, until Ctrl-C.", show_default=False)
]
Filter: TypeAlias = Annotated[
    str,
    typer.Option(
        "--filter", metavar="TERMS", help="field = value, joined by AND: 'state = ACTIVE'.", show_default=False
    ),
]
