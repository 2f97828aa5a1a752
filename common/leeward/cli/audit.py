"""`leeward admin audit`: compares what is recorded with what is there."""

from typing import TYPE_CHECKING, Annotated

import typer

from leeward.cli.context import Format
from leeward.cli.exit_codes import ExitCode
from leeward.cli.session import Session, call, say

if TYPE_CHECKING:
    from leeward.v1.admin_service_pb2 import AuditClusterResponse, AuditFinding

_DEADLINE_S = 600.0


def audit(
    ctx: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended safely.", show_default=False)
    ] = False,
) -> None:
    """Compare all records with what the hosts run and hold, and explain every drift.

    What an operation that is under way explains is none. Ends with exit code 1 when drift is left.
    """

    async def work(session: Session) -> bool:
        from leeward.cli import output
        from leeward.v1.admin_service_pb2 import AuditClusterRequest

        report = await session.client.admin.AuditCluster(AuditClusterRequest(repair=repair), timeout=_DEADLINE_S)
        match session.format:
            case Format.TABLE:
                _tell(report, repair=repair)
            case Format.NAME:
                for finding in report.findings:
                    print(finding.subject)
            case _:
                output.show_one(report, session.format)
        return all(finding.repaired for finding in report.findings)

    if not call(ctx, work):
        raise typer.Exit(ExitCode.FAILED)


def _tell(report: "AuditClusterResponse", *, repair: bool) -> None:
    for finding in report.findings:
        print(f"{_kind(finding)}  {finding.subject}")
        print(f"  {finding.explanation}")
        print(f"  {_outcome(finding, repair=repair)}")
    for node in report.unreached_nodes:
        say(f"{node.node} could not be asked, so what it runs and holds is not judged: {node.reason}")
    repaired = sum(finding.repaired for finding in report.findings)
    total = len(report.findings)
    if not total:
        say("No drift.")
    elif repair:
        say(f"{total} found, {repaired} repaired.")
    else:
        repairable = sum(finding.repairable for finding in report.findings)
        say(f"{total} found; --repair would mend {repairable}.")


def _outcome(finding: "AuditFinding", *, repair: bool) -> str:
    if finding.repaired:
        return f"repaired: {finding.remedy}"
    if finding.trouble:
        return f"not repaired: {finding.trouble}"
    return f"{'to repair' if finding.repairable and not repair else 'to do'}: {finding.remedy}"


def _kind(finding: "AuditFinding") -> str:
    from leeward.cli.describe import enum_text
    from leeward.v1.admin_service_pb2 import AuditFinding

    return enum_text(AuditFinding.Kind.DESCRIPTOR, finding.kind)
