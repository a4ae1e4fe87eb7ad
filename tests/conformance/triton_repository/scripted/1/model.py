"""A text model without weights for Triton's Python backend, with faults on request.

The next word is a function of the seed and of all text before it, as of a language model: a text
that is continued goes on as it would have. A prompt counts one token per word. Further inputs
script it: `interval_ms` between tokens, `token_count` until it ends by itself, `multi_byte` words
whose last byte comes in a response of its own, `fail_after_tokens` with the text `failure`, and
`deaf`, which does not listen to a cancel.
"""

import hashlib
import threading

import numpy as np
import triton_python_backend_utils as triton

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "kilo")
MULTI_BYTE_WORDS = ("é", "ß", "日", "本", "語", "🚀", "😀", "я", "ω", "€")
CTX_MAX = 2048
FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What the Python backend runs: one thread for each request."""

    def initialize(self, args):
        """Offers the gauge that says how many requests are at work."""
        self._lock, self._running = threading.Lock(), 0
        self._stopping = threading.Event()
        self._family = triton.MetricFamily(
            name="scripted_running",
            description="Requests at work",
            kind=triton.MetricFamily.GAUGE,
        )
        self._gauge = self._family.Metric(labels={"model": args["model_name"]})

    def execute(self, requests):
        """Starts the requests; the responses come from their threads."""
        for request in requests:
            self._count(1)
            threading.Thread(target=self._run, args=(request,), daemon=True).start()

    def finalize(self):
        """Stops what still runs."""
        self._stopping.set()

    def _count(self, change):
        with self._lock:
            self._running += change
            self._gauge.set(self._running)

    def _run(self, request):
        sender = request.get_response_sender()
        try:
            Generation(request, sender, self._stopping).run()
        except triton.TritonModelException as error:
            sender.send(error_response(str(error)), FINAL)
        finally:
            self._count(-1)


class Generation:
    """One request."""

    def __init__(self, request, sender, stopping):
        """Reads the inputs."""
        self._request, self._sender, self._stopping = request, sender, stopping
        self._words = MULTI_BYTE_WORDS if self._one("multi_byte", False) else WORDS
        self._seed = self._one("seed", 0)
        self._stops = [stop.decode() for stop in self._all("stop")]
        self._limit = self._one("max_tokens", 16)
        self._token_count = self._one("token_count", 1_000_000)
        self._interval_s = self._one("interval_ms", 0) / 1000
        self._fail_after = self._one("fail_after_tokens", -1)
        texts = [self._one(name, b"") for name in ("text_input", "messages", "continue_text")]
        self._prompt = b"".join(texts).decode()
        ids = self._all("continue_token_ids")
        self._text = self._prompt + "".join(f" {self._words[number]}" for number in ids)

    def run(self):
        """Sends one token after the other, and then the end."""
        tokens_in = len(self._text.split())
        if tokens_in > CTX_MAX:
            # Quotes the prompt, as careless models do.
            message = f"Prompt length ({tokens_in}) exceeds maximum input length ({CTX_MAX}): "
            self._sender.send(error_response(message + self._prompt[:200]), FINAL)
            return
        for done in range(min(self._limit, CTX_MAX - tokens_in)):
            if self._sender.is_cancelled() and not self._one("deaf", False):
                self._sender.send(flags=FINAL)
                return
            if done == self._fail_after:
                failure = self._one("failure", b"the model failed").decode()
                self._sender.send(error_response(failure), FINAL)
                return
            number = self._next()
            token = f" {self._words[number]}"
            if done == self._token_count or any(stop in token for stop in self._stops):
                reason = "eos" if done == self._token_count else "stop"
                self._end(reason, tokens_in)
                return
            self._text += token
            self._send(token.encode(), number)
            self._stopping.wait(self._interval_s)
        self._end("length", tokens_in)

    def _next(self):
        key = f"{self._seed}\0{self._text}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:2], "big") % len(self._words)

    def _send(self, token, number):
        head, tail = (token[:-1], token[-1:]) if self._words is MULTI_BYTE_WORDS else (token, b"")
        self._sender.send(response(text_output=[head], token_ids=[number]))
        if tail:
            self._sender.send(response(text_output=[tail]))

    def _end(self, reason, tokens_in):
        outputs = {"finish_reason": [reason.encode()]}
        if self._one("return_num_input_tokens", False):
            outputs["num_input_tokens"] = [tokens_in]
        self._sender.send(response(**outputs))
        # The end alone, without an output: it only comes because the client asks for it.
        self._sender.send(flags=FINAL)

    def _all(self, name):
        tensor = triton.get_input_tensor_by_name(self._request, name)
        return [] if tensor is None else tensor.as_numpy().tolist()

    def _one(self, name, default):
        values = self._all(name)
        return values[0] if values else default


DTYPES = {"token_ids": np.int32, "num_input_tokens": np.uint32}


def response(**outputs):
    """Returns a response with these outputs."""
    tensors = [
        triton.Tensor(name, np.array(values, dtype=DTYPES.get(name, np.object_)))
        for name, values in outputs.items()
    ]
    return triton.InferenceResponse(output_tensors=tensors)


def error_response(message):
    """Returns a response that fails the request."""
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(message))
