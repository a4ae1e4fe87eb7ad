"""ConfigService: the configuration in force, and reading its file again. HME-003."""

from collections.abc import Iterable

import grpc

from llamaorch.orchestrator.v1 import config_service_pb2 as pb
from orchestrator_core.config.changes import Change, settings
from orchestrator_core.config.live import LiveConfig
from orchestrator_core.servicers import rpc

SERVICE = "llamaorch.orchestrator.v1.ConfigService"
# What is named by operators in the longest configuration fits into a message of 4 MiB.
SETTINGS_MAX = 20_000
CHANGES_MAX = 10_000


class ConfigServicer:
    """Answers for the configuration of this server."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods of the service."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetConfig": rpc.unary(self.get_config, pb.GetConfigRequest),
                "ReloadConfig": rpc.unary(self.reload_config, pb.ReloadConfigRequest),
            },
        )

    async def get_config(self, _: pb.GetConfigRequest, __: rpc.Context) -> pb.GetConfigResponse:
        """Returns what is in force."""
        found = settings(self._config.running)
        return pb.GetConfigResponse(
            config_file=self._config.file,
            settings=(
                pb.ConfigSetting(key=each.key, value=each.value, reloadable=each.live)
                for each in found[:SETTINGS_MAX]
            ),
            omitted=max(0, len(found) - SETTINGS_MAX),
        )

    async def reload_config(
        self, request: pb.ReloadConfigRequest, _: rpc.Context
    ) -> pb.ReloadConfigResponse:
        """Reads the file again, or tells what that would do."""
        report = await self._config.reload(dry_run=request.dry_run)
        lists = (report.applied, report.waiting)
        return pb.ReloadConfigResponse(
            config_file=report.file,
            problems=report.problems,
            applied=_changes(report.applied),
            needs_restart=_changes(report.waiting),
            unchanged=report.unchanged,
            omitted=sum(max(0, len(each) - CHANGES_MAX) for each in lists),
        )


def _changes(found: tuple[Change, ...]) -> Iterable[pb.ConfigChange]:
    return (
        pb.ConfigChange(key=each.key, before=each.before, after=each.after)
        for each in found[:CHANGES_MAX]
    )
