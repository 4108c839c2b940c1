"""Qwen3-8B for comparison: its published sizes, with random weights.

    python -m benchmarks.serving.qwen3 --out DIR

DIR can be served by stock SGLang with ``--load-format dummy``. The tokenizer in it is this project's, so that a server
with the OpenAI API starts; requests are token ids. Positions are stretched by YaRN, as the model's card says for
prompts beyond 32,768 tokens, here up to 327,680.
"""

import argparse
import json
from pathlib import Path

from sala_sglang.checkpoint.make import PRESETS
from sala_sglang.checkpoint.tokenizer import make_tokenizer

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "initializer_range": 0.02,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "rope_scaling": {"rope_type": "yarn", "factor": 10.0, "original_max_position_embeddings": 32768},
}


def write(out: Path) -> None:
    """Write configuration and tokenizer to the directory ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    preset = PRESETS["full"]
    make_tokenizer(out, preset.bpe_tokens, preset.turn_end_id, preset.turn_start_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="directory to write")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
