"""What engines see of the pool manager's environment. ORCH-3030."""

import pytest

from pool_managerd.engines.environment import OWN_PREFIXES, PREFIXES, names_secret, passed_on

HOST = {
    "PATH": "/usr/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "HF_HOME": "/srv/hf",
    "OMP_NUM_THREADS": "4",
    "LD_LIBRARY_PATH": "/usr/local/cuda/lib64",
}
OURS = {
    "HF_TOKEN": "hf_secret",
    "VLLM_API_KEY": "secret",
    "LLAMA_API_KEY": "secret",
    "NVIDIA_API_KEY": "secret",
    "CUDA_REGISTRY_PASSWORD": "secret",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
    "HTTPS_PROXY": "http://user:secret@proxy",
    "AWS_SESSION": "secret",
    "PYTHONPATH": "/opt/llama-orch",
}


def test_an_engine_gets_the_usual_variables_and_nobodys_secrets() -> None:
    """What is not named stays with the pool manager, in whatever family its name is."""
    assert passed_on(HOST | OURS) == HOST


def test_what_the_configuration_names_is_passed_on_too() -> None:
    """Exactly that, secret or not; what is not set is not invented."""
    passed = passed_on(HOST | OURS, ("VLLM_API_KEY", "HTTPS_PROXY", "UNSET"))

    assert passed == HOST | {name: OURS[name] for name in ("VLLM_API_KEY", "HTTPS_PROXY")}


def test_a_worker_of_ours_finds_the_same_packages() -> None:
    """Ours gets Python's variables; a foreign program has packages of its own."""
    passed = passed_on(HOST | OURS, prefixes=(*PREFIXES, *OWN_PREFIXES))

    assert passed == HOST | {"PYTHONPATH": OURS["PYTHONPATH"]}


@pytest.mark.parametrize("name", ["NVIDIA_API_KEY", "CUDA_TOKEN", "nccl_secret", "MKL_Password"])
def test_a_secret_is_known_by_its_name(name: str) -> None:
    """In any case of letters."""
    assert names_secret(name)
    assert not names_secret("CUDA_VISIBLE_DEVICES")
