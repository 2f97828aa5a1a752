"""Audits."""

from leeward.v1 import admin_service_pb2 as pb
from leeward_controller.services.audit import AuditedFinding, AuditReport


def report_to_wire(report: AuditReport) -> pb.AuditClusterResponse:
    """What an audit found, as admins see it."""
    return pb.AuditClusterResponse(
        findings=[_finding(each) for each in report.findings],
        unreached_nodes=[
            pb.UnreachedNode(node=f"nodes/{node}", reason=why) for node, why in sorted(report.unreached.items())
        ],
    )


def _finding(audited: AuditedFinding) -> pb.AuditFinding:
    finding = audited.finding
    return pb.AuditFinding(
        kind=pb.AuditFinding.Kind.Value(f"KIND_{finding.kind.name}"),
        subject=finding.subject,
        explanation=finding.explanation,
        remedy=finding.remedy,
        repairable=finding.repair is not None,
        repaired=audited.repaired,
        trouble=audited.trouble,
    )
