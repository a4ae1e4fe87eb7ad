"""Which role may call which method: one table. A method that is not in it is for admins alone.

`open` is for everybody, without a token: load balancers ask for health, and it tells nothing else.
AUTH-1003.
"""

from orchestrator_core.auth.tokens import Role

_JOBS = "/llamaorch.orchestrator.v1.OrchestratorService/"
_SESSIONS = "/llamaorch.orchestrator.v1.SessionService/"
_ARTIFACTS = "/llamaorch.orchestrator.v1.ArtifactService/"
_ADMIN = "/llamaorch.orchestrator.v1.PoolAdminService/"
_CATALOG = "/llamaorch.orchestrator.v1.CatalogService/"
_POLICY = "/llamaorch.orchestrator.v1.PolicyService/"
_CONFIG = "/llamaorch.orchestrator.v1.ConfigService/"
_REGISTRY = "/llamaorch.pool.v1.PoolRegistryService/"
_HEALTH = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"

_CLIENTS = frozenset({Role.CLIENT, Role.ADMIN})
_POOLS = frozenset({Role.POOL, Role.ADMIN})
_ADMINS = frozenset({Role.ADMIN})
_ANY = frozenset(Role)
OPEN: frozenset[Role] = frozenset()

ALLOWED: dict[str, frozenset[Role]] = {
    _JOBS + "Enqueue": _CLIENTS,
    _JOBS + "Cancel": _CLIENTS,
    _JOBS + "StreamTokens": _CLIENTS,
    _JOBS + "Exchange": _CLIENTS,
    _JOBS + "GetJob": _CLIENTS,
    _JOBS + "ListJobs": _CLIENTS,
    _JOBS + "ExplainJob": _CLIENTS,
    _JOBS + "GetOverview": _CLIENTS,
    _JOBS + "GetCapabilities": _CLIENTS,
    _SESSIONS + "GetSession": _CLIENTS,
    _SESSIONS + "ListSessions": _CLIENTS,
    _SESSIONS + "DeleteSession": _CLIENTS,
    _ARTIFACTS + "PutArtifact": _CLIENTS,
    _ARTIFACTS + "GetArtifact": _CLIENTS,
    _ARTIFACTS + "GetArtifactInfo": _CLIENTS,
    _ARTIFACTS + "ListArtifacts": _CLIENTS,
    _ARTIFACTS + "DeleteArtifact": _CLIENTS,
    _ADMIN + "ListPools": _CLIENTS,
    _ADMIN + "WatchPools": _CLIENTS,
    _ADMIN + "DrainPool": _ADMINS,
    _ADMIN + "ReloadPool": _ADMINS,
    _CATALOG + "GetModel": _CLIENTS,
    _CATALOG + "ListModels": _CLIENTS,
    _CATALOG + "VerifyModel": _CLIENTS,
    _CATALOG + "RegisterModel": _ADMINS,
    _CATALOG + "UpdateModel": _ADMINS,
    _CATALOG + "DeleteModel": _ADMINS,
    _CATALOG + "SetModelState": _ADMINS,
    _POLICY + "CheckOutbound": _CLIENTS,
    _CONFIG + "GetConfig": _ADMINS,
    _CONFIG + "ReloadConfig": _ADMINS,
    _REGISTRY + "ReportSnapshots": _POOLS,
    _REGISTRY + "Dispatch": _POOLS,
    _REGISTRY + "FetchInput": _POOLS,
    _REFLECTION + "ServerReflectionInfo": _ANY,
    _HEALTH + "Check": OPEN,
    _HEALTH + "List": OPEN,
    _HEALTH + "Watch": OPEN,
}


def needed(method: str) -> frozenset[Role]:
    """The roles that may call a method, by its path; empty where nobody is asked for a token."""
    return ALLOWED.get(method, _ADMINS)
