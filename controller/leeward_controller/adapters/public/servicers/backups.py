"""`leeward.v1.BackupPolicyService`."""

# ruff: noqa: N802 - the methods have the names that the contract gives them.

from google.protobuf.empty_pb2 import Empty

from leeward.rpc.handlers import Context
from leeward.v1 import backup_policy_pb2
from leeward.v1 import backup_policy_service_pb2 as pb
from leeward_controller.adapters.public.convert import backups as convert
from leeward_controller.services.backup_policies import BackupPolicyService
from leeward_controller.services.instances import Target
from leeward_controller.services.paging import PageRequest


class BackupPolicyServicer:
    """Backup policies over gRPC."""

    def __init__(self, policies: BackupPolicyService) -> None:
        self._policies = policies

    async def CreateBackupPolicy(
        self, request: pb.CreateBackupPolicyRequest, context: Context
    ) -> backup_policy_pb2.BackupPolicy:
        return convert.policy_to_wire(await self._policies.create(convert.new_policy(request)))

    async def GetBackupPolicy(
        self, request: pb.GetBackupPolicyRequest, context: Context
    ) -> backup_policy_pb2.BackupPolicy:
        return convert.policy_to_wire(await self._policies.get(request.name))

    async def ListBackupPolicies(
        self, request: pb.ListBackupPoliciesRequest, context: Context
    ) -> pb.ListBackupPoliciesResponse:
        shown, listing = await self._policies.list(request.parent, PageRequest(request.page_size, request.page_token))
        return pb.ListBackupPoliciesResponse(
            backup_policies=[convert.policy_to_wire(each) for each in shown],
            next_page_token=listing.next_page_token,
            revision=listing.revision,
        )

    async def UpdateBackupPolicy(
        self, request: pb.UpdateBackupPolicyRequest, context: Context
    ) -> backup_policy_pb2.BackupPolicy:
        wire = request.backup_policy
        shown = await self._policies.update(
            Target(wire.name, wire.etag, request.validate_only),
            convert.spec_of(wire),
            convert.fields_of(request),
            request_id=request.request_id,
        )
        return convert.policy_to_wire(shown)

    async def DeleteBackupPolicy(self, request: pb.DeleteBackupPolicyRequest, context: Context) -> Empty:
        await self._policies.delete(Target(request.name, request.etag, request.validate_only))
        return Empty()
