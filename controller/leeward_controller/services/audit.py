"""The audit of the whole cluster, for admins: what drifts, and mending it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from leeward.errors import LeewardError
from leeward_controller.audit.findings import find
from leeward_controller.audit.gather import gather
from leeward_controller.audit.model import Contents, Finding
from leeward_controller.audit.repair import Repairer
from leeward_controller.ports import Agents
from leeward_controller.records import Records
from leeward_controller.view import ClusterView

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class AuditedFinding:
    """A finding, whether it was repaired, and why not where that was tried or is too early."""

    finding: Finding
    repaired: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings, and the nodes that could not be asked with the reason: what they hold is not judged."""

    findings: tuple[AuditedFinding, ...]
    unreached: Mapping[str, str]


class AuditService:
    """Audits."""

    def __init__(self, *, records: Records, view: ClusterView, agents: Agents) -> None:
        self._records = records
        self._view = view
        self._agents = agents

    async def audit(self, *, repair: bool, principal: str) -> AuditReport:
        """Compare records and hosts; with `repair`, mend what can be mended safely and look once more.

        Raises StoreUnavailable, Compacted.
        """
        contents = await gather(self._records, self._view, self._agents)
        findings = find(contents)
        log.info("audit", principal=principal, repair=repair, findings=len(findings), unreached=len(contents.unreached))
        audited = [AuditedFinding(finding) for finding in findings]
        if repair and findings:
            audited = [await self._mend(each, contents) for each in audited]
            audited = await self._verified(audited)
        return AuditReport(tuple(audited), contents.unreached)

    async def _mend(self, audited: AuditedFinding, contents: Contents) -> AuditedFinding:
        finding = audited.finding
        if finding.repair is None:
            return audited
        if finding.must_wait:
            return replace(audited, trouble=finding.must_wait)
        repairer = Repairer(records=self._records, view=self._view, agents=self._agents)
        try:
            await repairer.repair(finding, contents)
        except LeewardError as error:
            log.warning("audit.not_repaired", kind=finding.kind, subject=finding.subject, why=error.message)
            return replace(audited, trouble=error.message)
        return replace(audited, repaired=True)

    async def _verified(self, audited: list[AuditedFinding]) -> list[AuditedFinding]:
        """The same; what is still found is not repaired."""
        if not any(each.repaired for each in audited):
            return audited
        again = {_mark(each) for each in find(await gather(self._records, self._view, self._agents))}
        return [
            replace(each, repaired=False, trouble="it is there still, although its repair succeeded")
            if each.repaired and _mark(each.finding) in again
            else each
            for each in audited
        ]


def _mark(finding: Finding) -> tuple[str, str, str]:
    return finding.kind, finding.subject, finding.explanation
