"""All that an audit can find, from one set of contents. Pure."""

from collections.abc import Callable, Iterator

from leeward_controller.audit.disks import disk_findings
from leeward_controller.audit.guests import guest_findings
from leeward_controller.audit.images import image_findings
from leeward_controller.audit.model import Contents, Finding
from leeward_controller.audit.places import group_findings, operation_findings, reservation_findings

_CHECKS: tuple[Callable[[Contents], Iterator[Finding]], ...] = (
    reservation_findings,
    group_findings,
    guest_findings,
    disk_findings,
    image_findings,
    operation_findings,
)


def find(contents: Contents) -> tuple[Finding, ...]:
    """Every drift, in the order in which it is mended: what changes an instance's own record comes last."""
    return tuple(finding for check in _CHECKS for finding in check(contents))
