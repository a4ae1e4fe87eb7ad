"""A small llama-architecture GGUF with random weights, made on the spot.

It lets a fresh machine load and stream from a real engine without a download. The text is random
words from a random model: it shows that tokens flow, nothing else. The bytes of the file depend on
the shape alone: the weights are drawn from SHAKE-256 and scaled by exact float operations, so every
machine writes the same file.

Readable output: channel 0 of the embedding is constant, no layer reads or writes it, and so
`output.weight[:, 0]` acts as a bias per token. It suppresses control tokens (a generation runs on
to its token limit), single bytes and fragments of words, and leaves whole words and some
punctuation.

`python -m pool_managerd.models.tiny_gguf PATH [--slow]` writes one.
"""

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float16] | npt.NDArray[np.float32]

_WORDS = (
    "amber", "anchor", "apple", "arrow", "autumn", "basil", "birch", "boat", "bread", "bridge",
    "cabin", "café", "candle", "canyon", "cedar", "cloud", "comet", "coral", "dawn", "delta",
    "drift", "ember", "falcon", "fern", "field", "flame", "forest", "garden", "glass", "harbor",
    "hazel", "island", "lantern", "lemon", "maple", "meadow", "misty", "moon", "night", "piñata",
)  # fmt: skip
_PUNCTUATION = (",", ".")
_CONTROL = ("<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CONSTANT_CHANNEL = 8.0
_SUPPRESSED_BIAS = (
    -8.0
)  # times the normalised channel 0, which is between 1 and 6: far below any word
_PUNCTUATION_BIAS = -0.8
_LOGIT_SPREAD = 0.35


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Size of a generated model.

    `seed` selects the weights, `context` is the longest context in tokens. All other numbers are
    those of the llama architecture; `heads` divides `embedding`, `kv_heads` divides `heads`.
    """

    embedding: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 160
    context: int = 2048
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuses shapes that are no llama model."""
        if min(self.embedding, self.layers, self.heads, self.kv_heads, self.feed_forward) < 1:
            raise ValueError("every size of a TinyShape must be at least 1")
        if self.embedding % self.heads or self.heads % self.kv_heads:
            raise ValueError("heads must divide embedding, and kv_heads must divide heads")


TINY = TinyShape()
"""About 0.14 million parameters: thousands of tokens per second on one core."""

SLOW = TinyShape(embedding=384, layers=14, heads=6, kv_heads=6, feed_forward=1024)
"""About 25 million parameters: slow enough to be caught in the middle of a generation."""


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: tuple[str, ...]
    merges: tuple[str, ...]
    biases: tuple[float, ...]


def write_tiny_model(path: Path, shape: TinyShape = TINY) -> None:
    """Writes the model of this shape to `path`.

    Writes beside it, then renames, so readers never see half a file; an existing file is replaced.
    Takes a fraction of a second for `TINY` and about a second for `SLOW`.

    Raises:
        OSError: when the directory cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        unfinished = Path(scratch) / path.name
        vocabulary = _vocabulary()
        writer = gguf.GGUFWriter(unfinished, "llama")
        _add_metadata(writer, shape, vocabulary)
        for name, tensor in _tensors(shape, vocabulary):
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)


def _add_metadata(writer: gguf.GGUFWriter, shape: TinyShape, vocabulary: _Vocabulary) -> None:
    writer.add_name("llamaorch-tiny")
    writer.add_description("Random words from random weights; for trying things out.")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_merges(vocabulary.merges)
    normal = len(vocabulary.tokens) - len(_CONTROL)
    types = [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(_CONTROL)
    writer.add_token_types(types)
    writer.add_bos_token_id(normal)
    writer.add_eos_token_id(normal + 1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(_CHAT_TEMPLATE)


def _byte_alphabet() -> dict[int, str]:
    """Maps each byte to the printable character that a byte-level BPE vocabulary has for it.

    Source: `bytes_to_unicode` of GPT-2's published encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _vocabulary() -> _Vocabulary:
    """Builds the tokens: 256 bytes, the prefixes of each word, and the control tokens."""
    alphabet = _byte_alphabet()
    tokens = dict.fromkeys(alphabet[byte] for byte in range(256))
    merges: dict[str, None] = {}
    words = {"".join(alphabet[byte] for byte in f" {word}".encode()) for word in _WORDS}
    for word in sorted(words):
        for end in range(2, len(word) + 1):
            tokens[word[:end]] = None
            merges[f"{word[: end - 1]} {word[end - 1]}"] = None
    biases = dict.fromkeys(tokens, _SUPPRESSED_BIAS)
    biases |= dict.fromkeys(words, 0.0) | dict.fromkeys(_PUNCTUATION, _PUNCTUATION_BIAS)
    biases |= dict.fromkeys(_CONTROL, _SUPPRESSED_BIAS)
    return _Vocabulary((*tokens, *_CONTROL), tuple(merges), tuple(biases.values()))


def _tensors(shape: TinyShape, vocabulary: _Vocabulary) -> Iterator[tuple[str, Weights]]:
    width, hidden = shape.embedding, shape.feed_forward
    kv_width = width // shape.heads * shape.kv_heads
    embedding = _random(shape, "token_embd.weight", len(vocabulary.tokens), width, 1.0)
    embedding[:, 0] = _CONSTANT_CHANNEL
    yield "token_embd.weight", embedding
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", np.ones(width, np.float32)
        yield f"{block}.attn_q.weight", _reader(shape, f"{block}.attn_q.weight", width)
        yield f"{block}.attn_k.weight", _reader(shape, f"{block}.attn_k.weight", kv_width)
        yield f"{block}.attn_v.weight", _reader(shape, f"{block}.attn_v.weight", kv_width)
        yield f"{block}.attn_output.weight", _writer(shape, f"{block}.attn_output.weight", width)
        yield f"{block}.ffn_norm.weight", np.ones(width, np.float32)
        yield f"{block}.ffn_gate.weight", _reader(shape, f"{block}.ffn_gate.weight", hidden)
        yield f"{block}.ffn_up.weight", _reader(shape, f"{block}.ffn_up.weight", hidden)
        yield f"{block}.ffn_down.weight", _writer(shape, f"{block}.ffn_down.weight", hidden)
    yield "output_norm.weight", np.ones(width, np.float32)
    spread = _LOGIT_SPREAD * float(TINY.embedding / width) ** 0.5
    output = _random(shape, "output.weight", len(vocabulary.tokens), width, spread)
    output[:, 0] = np.asarray(vocabulary.biases, np.float16)
    yield "output.weight", output


def _reader(shape: TinyShape, name: str, rows: int) -> npt.NDArray[np.float16]:
    """A matrix that reads the residual stream, except its constant channel."""
    weights = _random(shape, name, rows, shape.embedding, 2.0 / float(shape.embedding) ** 0.5)
    weights[:, 0] = 0
    return weights


def _writer(shape: TinyShape, name: str, columns: int) -> npt.NDArray[np.float16]:
    """A matrix that writes to the residual stream, except its constant channel.

    What all layers add together stays the same, so that the constant channel weighs as much in a
    deep model as in a shallow one.
    """
    deviation = 2.0 * float(TINY.layers / shape.layers) ** 0.5 / float(columns) ** 0.5
    weights = _random(shape, name, shape.embedding, columns, deviation)
    weights[0, :] = 0
    return weights


def _random(
    shape: TinyShape, name: str, rows: int, columns: int, deviation: float
) -> npt.NDArray[np.float16]:
    """Draws a uniform matrix with mean 0 and this deviation from SHAKE-256 of seed and name."""
    stream = hashlib.shake_256(f"{shape.seed}/{name}".encode()).digest(rows * columns * 2)
    integers = np.frombuffer(stream, "<i2").reshape(rows, columns)
    # A uniform distribution over (-a, a) has the deviation a / sqrt(3).
    scale = np.float32(deviation * 3.0**0.5 / 32768.0)
    return (integers.astype(np.float32) * scale).astype(np.float16)


def main() -> None:
    """Writes a model to the path on the command line."""
    parser = argparse.ArgumentParser(prog="tiny_gguf", description="Write a random GGUF model.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--slow", action="store_true", help="about 25 million parameters")
    arguments = parser.parse_args()
    write_tiny_model(arguments.path, SLOW if arguments.slow else TINY)
    sys.stdout.write(f"{arguments.path}: random words from random weights\n")


if __name__ == "__main__":
    main()
