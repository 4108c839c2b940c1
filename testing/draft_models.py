"""Draft models with random weights: an EAGLE3 head of a served model, and a dense model of its vocabulary."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

CONTEXT_TOKENS = 256  # shorter than those of the served models


def _config(target: Path, architecture: str, **others: object) -> dict:
    of_target = json.loads((target / "config.json").read_text())
    shared = ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "bos_token_id", "eos_token_id")
    return {name: of_target[name] for name in shared} | {
        "architectures": [architecture],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "dtype": "float32",
        **others,
    }


def _layer(config: dict, prefix: str, inputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's tensors; ``inputs``: values per row that its attention reads."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    return {
        f"{prefix}.self_attn.q_proj.weight": (heads * dim, inputs),
        f"{prefix}.self_attn.k_proj.weight": (kv_heads * dim, inputs),
        f"{prefix}.self_attn.v_proj.weight": (kv_heads * dim, inputs),
        f"{prefix}.self_attn.o_proj.weight": (hidden, heads * dim),
        f"{prefix}.mlp.gate_proj.weight": (inner, hidden),
        f"{prefix}.mlp.up_proj.weight": (inner, hidden),
        f"{prefix}.mlp.down_proj.weight": (hidden, inner),
        f"{prefix}.input_layernorm.weight": (hidden,),
        f"{prefix}.post_attention_layernorm.weight": (hidden,),
    }


def _write(out: Path, config: dict, shapes: dict[str, tuple[int, ...]], **others: torch.Tensor) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = dict(others)
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        tensors[name] = 1 + drawn / 10 if len(shape) == 1 else drawn / shape[-1] ** 0.5
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors")
    return out


def make_head(target: Path, out: Path, layers: list[int], vocabulary: int | None = None, **others: object) -> Path:
    """An EAGLE3 head that reads the outputs of ``layers`` of the model in ``target``.

    vocabulary: tokens that it can draft, every second one of the model's; all where None. others: fields of its
    config.json.
    """
    reads = {"eagle_aux_hidden_state_layer_ids": layers}
    config = _config(target, "LlamaForCausalLMEagle3", eagle_config=reads, **others)
    config["draft_vocab_size"] = vocabulary or config["vocab_size"]
    hidden = config["hidden_size"]
    shapes = _layer(config, "midlayer", 2 * hidden) | {
        "midlayer.hidden_norm.weight": (hidden,),
        "fc.weight": (hidden, len(layers) * hidden),
        "norm.weight": (hidden,),
        "lm_head.weight": (config["draft_vocab_size"], hidden),
    }
    steps = {} if vocabulary is None else {"d2t": torch.arange(vocabulary)}
    return _write(out, config, shapes, **steps)


def make_dense(target: Path, out: Path, **others: object) -> Path:
    """A dense model of two layers with the vocabulary of the model in ``target``; others: fields of its config.json."""
    config = _config(target, "LlamaForCausalLM", num_hidden_layers=2, **others)
    vocabulary, hidden = config["vocab_size"], config["hidden_size"]
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for index in range(2):
        shapes |= _layer(config, f"model.layers.{index}", hidden)
    return _write(out, config, shapes)
