"""What public models say of their dimensions: `config.json`, or the keys of a GGUF file.

Only the keys that matter for keys and values. Each model names a page that states them.
"""

# https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
# https://huggingface.co/pandyamarut/Meta-Llama-3-8B/blob/main/config.json
LLAMA_3_8B = LLAMA_2_7B | {"num_key_value_heads": 8}
# https://huggingface.co/kittn/Meta-Llama-3-70B-quant/blob/main/config.json
LLAMA_3_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
# https://arxiv.org/abs/2407.21783, table 3: 126 layers, dimension 16384, 128 heads, 8 of keys.
LLAMA_3_1_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
}
# https://huggingface.co/openai-community/gpt2-xl/blob/main/config.json
GPT_2_XL = {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25}
# https://huggingface.co/Open-Orca/Mistral-7B-OpenOrca/blob/refs%2Fpr%2F19/config.json
MISTRAL_7B_V01 = LLAMA_3_8B | {"model_type": "mistral", "sliding_window": 4096}
# https://huggingface.co/mistralai/Mistral-7B-v0.3/blob/main/config.json
MISTRAL_7B_V03 = LLAMA_3_8B | {"model_type": "mistral", "sliding_window": None}
# https://huggingface.co/osllmai-community/Qwen2.5-7B-Instruct/blob/main/config.json
QWEN_2_5_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
}
# https://huggingface.co/Qwen/Qwen2.5-72B/blob/main/config.json
QWEN_2_5_72B = QWEN_2_5_7B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 131072,
}
# https://huggingface.co/Qwen/Qwen3-4B/blob/main/config.json
# Heads times head_dim is not hidden_size.
QWEN_3_4B = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "head_dim": 128,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "use_sliding_window": False,
}
# https://huggingface.co/microsoft/Phi-3-mini-4k-instruct/blob/main/config.json
PHI_3_MINI_4K = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "sliding_window": 2047,
}
# https://huggingface.co/hfhugs/gemma-2-9b-it/blob/main/config.json
GEMMA_2_9B = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "head_dim": 256,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
# https://huggingface.co/MatanBT/mia-target-model/blob/main/config.json (a gemma-3-1b-it)
GEMMA_3_1B = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "head_dim": 256,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 512,
    "layer_types": ["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(26)],
}
# https://huggingface.co/leeloolee/oss-math/blob/main/config.json (a gpt-oss-20b)
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "head_dim": 64,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in range(24)],
}
# https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
# https://huggingface.co/ModelCloud/DeepSeek-V2-Lite-gptq-4bit/blob/main/config.json
DEEPSEEK_V2_LITE = DEEPSEEK_V3 | {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}


def gguf(arch: str, **keys: object) -> dict[str, object]:
    """Metadata of a GGUF file; in names `__` stands for a dot."""
    named = {f"{arch}.{name.replace('__', '.')}": value for name, value in keys.items()}
    return {"general.architecture": arch, **named}


GGUF_LLAMA_3_8B = gguf(
    "llama",
    block_count=32,
    embedding_length=4096,
    attention__head_count=32,
    attention__head_count_kv=8,
)
# https://huggingface.co/openai/gpt-oss-20b, as llama.cpp's converter writes it.
GGUF_GPT_OSS_20B = gguf(
    "gpt-oss",
    block_count=24,
    embedding_length=2880,
    attention__head_count=64,
    attention__head_count_kv=8,
    attention__key_length=64,
    attention__value_length=64,
    attention__sliding_window=128,
)
# https://huggingface.co/grohitraj/Chem_train/blob/main/config.json (a gemma-2-2b)
GGUF_GEMMA_2_2B = gguf(
    "gemma2",
    block_count=26,
    embedding_length=2304,
    attention__head_count=8,
    attention__head_count_kv=4,
    attention__key_length=256,
    attention__value_length=256,
    attention__sliding_window=4096,
)
# Since llama.cpp pull request 12801 the converter writes one head and the widths of MLA.
GGUF_DEEPSEEK_V3 = gguf(
    "deepseek2",
    block_count=61,
    embedding_length=7168,
    attention__head_count=128,
    attention__head_count_kv=1,
    attention__key_length=576,
    attention__value_length=512,
    attention__key_length_mla=192,
    attention__value_length_mla=128,
    attention__kv_lora_rank=512,
    rope__dimension_count=64,
)
