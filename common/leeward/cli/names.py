"""Short names to resource names: `web-1` is `projects/default/instances/web-1`."""

from leeward import names
from leeward.errors import InvalidArgument

ALL_PROJECTS = "-"


def project(project_id: str) -> str:
    """`projects/{project}`; `-` stands for all of them. Raises InvalidArgument."""
    if project_id != ALL_PROJECTS:
        names.check_id(project_id, field="project")
    return f"projects/{project_id}"


def instance(name: str, project_id: str) -> str:
    """The instance's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"{_one(project_id)}/instances/{name}"
    names.project_instance(full, field="instance")
    return full


def image(name: str, project_id: str) -> str:
    """The image's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"{_one(project_id)}/images/{name}"
    names.project_image(full, field="image")
    return full


def backup_policy(name: str, project_id: str) -> str:
    """The backup policy's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"{_one(project_id)}/backupPolicies/{name}"
    names.project_backup_policy(full, field="backup_policy")
    return full


def group(name: str, project_id: str) -> str:
    """The group's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"{_one(project_id)}/groups/{name}"
    names.project_group(full, field="group")
    return full


def project_name(name: str) -> str:
    """The resource name of one project. Raises InvalidArgument."""
    full = name if "/" in name else f"projects/{name}"
    names.project(full, field="project")
    return full


def node(name: str) -> str:
    """The node's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"nodes/{name}"
    names.node(full, field="node")
    return full


def flavor(name: str) -> str:
    """The flavor's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"flavors/{name}"
    names.flavor(full, field="flavor")
    return full


def failover(name: str) -> str:
    """The failover's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"failovers/{name}"
    names.failover(full, field="failover")
    return full


def operation(name: str) -> str:
    """The operation's resource name. Raises InvalidArgument."""
    full = name if "/" in name else f"operations/{name}"
    names.operation(full, field="operation")
    return full


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def _one(project_id: str) -> str:
    """The one project that a short name is in."""
    if project_id == ALL_PROJECTS:
        raise InvalidArgument.field("project", "'-' stands for all projects; to name one thing, name its project")
    return project(project_id)
