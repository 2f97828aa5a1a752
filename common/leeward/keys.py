"""The layout of Leeward's keys in etcd. Every key anywhere is made here.

Controllers write everything; a node's own credentials can write `lease(node)` and nothing else.
"""

ROOT = "/leeward/v1/"

INSTANCES = ROOT + "instances/"
OPERATIONS = ROOT + "operations/"
PROGRESS = ROOT + "progress/"
NODES = ROOT + "nodes/"
LEASES = ROOT + "leases/"
ALLOCATIONS = ROOT + "allocations/"
FENCES = ROOT + "fences/"
FAILOVERS = ROOT + "failovers/"
IMAGES = ROOT + "images/"
FLAVORS = ROOT + "flavors/"
PROJECTS = ROOT + "projects/"
ADMISSIONS = ROOT + "admissions/"
GROUPS = ROOT + "groups/"
EVENTS = ROOT + "events/"
CONTROLLERS = ROOT + "controllers/"
BACKUP_POLICIES = ROOT + "backup-policies/"
BACKUP_RUNS = ROOT + "backup-runs/"
LEADER = ROOT + "leader"
BRAKE = ROOT + "brake"
DISARM = ROOT + "disarm"


def instance(name: str) -> str:
    """The record of an instance; `name` is `projects/{project}/instances/{instance}`."""
    return INSTANCES + name


def operation(operation_id: str) -> str:
    """The record of an operation, by its id (the last part of `operations/{operation}`)."""
    return OPERATIONS + operation_id


def progress(operation_id: str) -> str:
    """The throttled progress of a running operation."""
    return PROGRESS + operation_id


def node(node_id: str) -> str:
    """What the controllers hold of a node."""
    return NODES + node_id


def lease(node_id: str) -> str:
    """The node's heartbeat: written by its agent, gone when its lease ends."""
    return LEASES + node_id


def allocation(node_id: str) -> str:
    """What is reserved on a node, for all its instances: one record, so that a reservation is one comparison."""
    return ALLOCATIONS + node_id


def fence(node_id: str, boot_id: str) -> str:
    """The fence proof for one boot of a node."""
    return f"{FENCES}{node_id}/{boot_id}"


def failover(failover_id: str) -> str:
    """The record of a failover, by its id (the last part of `failovers/{failover}`)."""
    return FAILOVERS + failover_id


def image(name: str) -> str:
    """The record of an image; `name` is `projects/{project}/images/{image}`."""
    return IMAGES + name


def flavor(flavor_id: str) -> str:
    """The record of a flavor."""
    return FLAVORS + flavor_id


def backup_policy(name: str) -> str:
    """The record of a backup policy; `name` is `projects/{project}/backupPolicies/{backup_policy}`."""
    return BACKUP_POLICIES + name


def backup_run(name: str) -> str:
    """What is known of the last run of a backup policy; `name` is the policy's."""
    return BACKUP_RUNS + name


def group(name: str) -> str:
    """The record of a group; `name` is `projects/{project}/groups/{group}`."""
    return GROUPS + name


def project(project_id: str) -> str:
    """The record of a project: its limits."""
    return PROJECTS + project_id


def admission(project_id: str) -> str:
    """Written with everything that a project's limits are checked for, so that two such checks cannot overlap."""
    return ADMISSIONS + project_id


def event(instance_uid: str, operation_id: str) -> str:
    """One entry of an instance's history."""
    return f"{EVENTS}{instance_uid}/{operation_id}"


def controller(controller_id: str) -> str:
    """A controller replica: written with its lease, gone when it dies."""
    return CONTROLLERS + controller_id
