"""Writes a tiny Llama model with random weights, for `transformers serve` in its environment.

    .build/transformers/bin/python tests/conformance/tiny_hf_model.py FOLDER

It streams random words and never ends by itself. Channel 0 of the embedding is constant and written
by nothing else, so that column 0 of the output acts as a bias: what is no word is out of reach.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 2048
_WIDTH = 64
_TEXT = (
    "once upon a time there was a lantern é 日本 🚀 that walked over the hill and sang to the sea"
)
_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SPECIAL = ("<s>", "</s>")
_CONSTANT = 8.0
_OUT_OF_REACH = -40.0


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over a few words."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bare.train_from_iterator([_TEXT] * 4, trainer)
    begin, end = _SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token=begin, eos_token=end, chat_template=_TEMPLATE
    )


def model(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, the same on every run."""
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        made.model.embed_tokens.weight[:, 0] = _CONSTANT
        for layer in made.model.layers:
            layer.self_attn.o_proj.weight[0, :] = 0.0
            layer.mlp.down_proj.weight[0, :] = 0.0
        made.model.norm.weight.fill_(1.0)
        for token in range(len(words)):
            text = words.decode([token])
            is_word = text.startswith(" ") and text[1:] in _TEXT.split()
            made.lm_head.weight[token, 0] = 0.0 if is_word else _OUT_OF_REACH
    return made.eval()


def main() -> None:
    """Writes model and tokenizer into the folder given."""
    folder = Path(sys.argv[1])
    words = tokenizer()
    words.save_pretrained(folder)
    model(words).save_pretrained(folder)


if __name__ == "__main__":
    main()
