"""A job with every field set, and the shortest one that is accepted."""

from google.protobuf import json_format

from llamaorch.orchestrator.v1 import job_pb2
from orchestrator_core.wire.jobs import SpecContext

NOW_MS = 1_700_000_000_000
CONTEXT = SpecContext("somebody", "new-job", 77, NOW_MS)

_FULL = {
    "jobId": "job-1",
    "requestId": "request-1",
    "sessionId": "session-1",
    "priority": "PRIORITY_BATCH",
    "engine": "llama.cpp",
    "modelId": "model",
    "input": {
        "chat": {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Grüße"},
            ]
        }
    },
    "sampling": {
        "seed": 5,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "minP": 0.05,
        "stop": ["END", "STOP"],
        "maxTokens": 64,
        "jsonSchema": '{"type": "object"}',
        "engineOptions": {"mirostat": 2, "nested": {"list": [1, True, None, "x"]}},
    },
    "expectedTokens": 32,
    "requiredCtx": 4096,
    "estKvBytes": "1048576",
    "requirements": {
        "minVramBytes": "12884901888",
        "quantization": "Q4_K_M",
        "minComputeCap": "8.6",
        "requiredExtensions": ["json_schema", "grammar"],
        "deviceMask": ["GPU-b", "GPU-a"],
    },
    "engineVersion": "b1",
    "modelDigest": "sha256:aa",
    "samplerProfileVersion": "1",
    "determinism": "DETERMINISM_REQUIRED",
    "deadline": "2030-01-01T00:00:00.5Z",
    "queueTimeout": "12.0005s",
    "budgets": {},
    "kvHint": "KV_HINT_REUSE",
    "failover": "FAILOVER_POLICY_VERIFIED_REPLAY",
    "onDisconnect": "ON_DISCONNECT_CANCEL",
    "labels": {"team": "a", "run": "7", "zone": "z"},
}


def full_spec() -> job_pb2.JobSpec:
    """Every field set, and accepted."""
    return json_format.ParseDict(_FULL, job_pb2.JobSpec())


def small_spec() -> job_pb2.JobSpec:
    """Only what is required."""
    return job_pb2.JobSpec(model_id="model", input=job_pb2.JobInput(text="Hello"))
