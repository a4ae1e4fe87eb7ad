"""What an engine's last words tell, and what of them may be told on. ORCH-3039, ORCH-3300."""

import json
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.core.exhaustion import Memory, exhausted, exhausted_by_error
from pool_managerd.core.redaction import LINE_CHARS, diagnoses, masked, quoting
from pool_managerd.core.tellable import shown_text


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", Memory.DEVICE),
        ("allocating 512.00 MiB on device 0: cudaMalloc failed: out of memory", Memory.DEVICE),
        ("CUDA error: out of memory", Memory.DEVICE),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", Memory.DEVICE),
        ("vk::Device::allocateMemory: ErrorOutOfDeviceMemory", Memory.DEVICE),
        ("ValueError: No available memory for the cache blocks.", Memory.DEVICE),
        ("terminate called after throwing an instance of 'std::bad_alloc'", Memory.HOST),
        ("OSError: [Errno 12] Cannot allocate memory", Memory.HOST),
        ("MemoryError", Memory.HOST),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", Memory.HOST),
        ("error: file is truncated", None),
        ("the context is out of tokens", None),
    ],
)
def test_whose_memory_ran_out_is_told_by_what_engines_say(line: str, memory: Memory | None) -> None:
    """Real messages of CUDA, PyTorch, ggml, Vulkan, vLLM, libstdc++ and Python."""
    assert exhausted(["loading", line, "exiting"]) is memory


def test_the_last_one_that_says_so_counts() -> None:
    """A server that survived one shortage and died of another died of the other."""
    assert exhausted(["CUDA out of memory", "std::bad_alloc"]) is Memory.HOST
    assert exhausted([]) is None


@pytest.mark.parametrize(
    ("message", "memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", Memory.DEVICE),
        ("failed to allocate buffer for kv cache on Vulkan0", Memory.DEVICE),
        ("cudnn: failed to allocate workspace", Memory.DEVICE),
        ("model requires more system memory (9 GiB) than is available", Memory.HOST),
        ("std::bad_alloc", Memory.HOST),
        ("the chip says: out of memory", Memory.HOST),
        ("the model is not loaded", None),
    ],
)
def test_an_error_answer_may_say_it_in_loose_words(message: str, memory: Memory | None) -> None:
    """Of llama.cpp, Ollama, Triton: what failed is known, so that a hint is enough."""
    assert exhausted_by_error(message) is memory


def test_a_full_shared_memory_is_the_hosts() -> None:
    """Triton's words for it hold the word "device"."""
    said = "Failed to increase the shared memory pool: No space left on device"

    assert exhausted_by_error(said) is Memory.HOST


def test_a_line_of_a_log_is_not_believed_for_loose_words() -> None:
    """It may tell of a request that was refused, while the engine goes on."""
    assert exhausted(["request 7: out of memory in the sandbox"]) is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ('config {"api_key": "s3cr3tvalue"}', 'config {"api_key": "***"}'),
        ("--api-key abcdefgh --port 1", "--api-key *** --port 1"),
        ("using token hf_abcdefghijklmnop", "using token ***"),
        ("get https://user:hunter2@host/x", "get https://user:***@host/x"),
        ("key is sk-proj-abcdefgh", "key is ***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic ***"),
        ("VLLM_API_KEY=abcdefgh ok", "VLLM_API_KEY=*** ok"),
        ("AWS_SECRET_ACCESS_KEY: abcdefgh", "AWS_SECRET_ACCESS_KEY: ***"),
        ("non-default args: {'api_key': ['abcdefgh']}", "non-default args: {'api_key': ['***']}"),
        ("get /blob?X-Amz-Signature=0123abcd", "get /blob?X-Amz-Signature=***"),
        ("the first token took 12 ms", "the first token took 12 ms"),
        ("password=abc", "password=abc"),
    ],
)
def test_what_looks_like_a_secret_is_masked(line: str, shown: str) -> None:
    """Names of secrets are followed by stars, and so are tokens of well-known shapes."""
    assert masked(line) == shown


def test_known_secrets_are_masked_and_lines_are_short() -> None:
    """A generated key has no shape that could be recognised."""
    assert masked("got xyzzy", ["xyzzy", ""]) == "got ***"
    assert len(masked("x" * 5_000)) == LINE_CHARS


def test_of_a_serving_engine_only_failures_are_shown_and_no_request() -> None:
    """A log may hold prompts: ordinary lines and lines that quote one stay here."""
    prompt = "my very private question about something that nobody is to know"
    lines = (
        "slot 0: prompt 'my very private question'",
        f"error: cannot parse {prompt}",
        "GGML_ASSERT(n_tokens > 0) failed",
        "all is well",
    )

    assert diagnoses(lines, [prompt]) == ("GGML_ASSERT(n_tokens > 0) failed",)


def test_a_request_is_recognised_in_a_line_that_was_made_fit_to_be_shown() -> None:
    """Its tabs and colours are no longer in the line."""
    request = "column\tone\t\x1b[31mcolumn\ttwo\x1b[0m\tcolumn\tthree"
    line = shown_text(f"error: cannot tokenize {request}")

    assert diagnoses([line, "error: other"], [request]) == ("error: other",)


@given(st.text())
def test_what_is_shown_has_nothing_that_a_terminal_obeys(text: str) -> None:
    """And what had nothing of that is as it was."""
    shown = shown_text(text)

    assert not {character for character in shown if unicodedata.category(character) == "Cc"}
    assert not {*shown} & {*"\u2028\u2029\u202e\u2066"}
    assert shown == text or not text.isprintable()
    assert shown_text(shown) == shown


def test_a_request_is_recognised_as_json_quotes_it() -> None:
    """Engines log the body that they got, in which other scripts are numbers."""
    prompt = "\u6211\u6709\u4e00\u4e2a\u79c1\u4eba\u95ee\u9898"

    assert not diagnoses([f"error: cannot parse {json.dumps(prompt)}"], [prompt])


@given(
    line=st.text("ab", max_size=60),
    text=st.text("ab", max_size=60),
    shared=st.text("ab", min_size=31, max_size=40),
    cut=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_any_common_run_of_31_characters_is_found(
    line: str, text: str, shared: str, cut: tuple[int, int]
) -> None:
    """Wherever it stands in both; what has not 16 in common is not found."""
    quotes = line[: cut[0]] + shared + line[cut[0] :]
    asked = text[: cut[1]] + shared + text[cut[1] :]

    assert quoting(["-" * len(line), quotes], [asked]) == {1}


def test_a_long_prompt_does_not_hold_everybody_up() -> None:
    """The loop that looks through the last words has the streams of all pools to serve."""
    words = [f"w{number:05}" for number in range(5_000)]
    prompt = " ".join(words * 200)
    lines = [f'File "/opt/engine/core.py", line {number}, in step: error' for number in range(40)]
    began_s = time.process_time()

    assert len(diagnoses(lines, [prompt])) == len(lines)

    assert len(prompt) > 6 << 20
    assert time.process_time() - began_s < 1.0
