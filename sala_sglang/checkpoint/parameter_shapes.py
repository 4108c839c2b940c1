"""Names and shapes of the released checkpoint, derived from the configuration."""

from sala_sglang.config import SPARSE, SALAConfig

Shape = tuple[int, ...]


def tensor_shapes(config: SALAConfig) -> dict[str, Shape]:
    """Shape of every tensor of a checkpoint, by name (released configuration: 395 tensors)."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index, kind in enumerate(config.layer_kinds):
        layer = layer_shapes(config, kind)
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def layer_shapes(config: SALAConfig, kind: str) -> dict[str, Shape]:
    """Shape of every weight of a decoder layer of ``kind``, by the name of its module in the layer."""
    mixer = sparse_mixer_shapes(config) if kind == SPARSE else lightning_mixer_shapes(config)
    return {f"self_attn.{name}": shape for name, shape in mixer.items()} | _block_shapes(config)


def sparse_mixer_shapes(config: SALAConfig) -> dict[str, Shape]:
    hidden = config.hidden_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    projections: dict[str, Shape] = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden)}
    return projections | {"o_gate": (query, hidden), "o_proj": (hidden, query)}


def lightning_mixer_shapes(config: SALAConfig) -> dict[str, Shape]:
    hidden, head_dim = config.hidden_size, config.lightning_head_dim
    width = config.lightning_nh * head_dim
    projections: dict[str, Shape] = {f"{name}_proj": (width, hidden) for name in "qkvz"}
    norms: dict[str, Shape] = {"q_norm": (head_dim,), "k_norm": (head_dim,), "o_norm": (width,)}
    return projections | norms | {"o_proj": (hidden, width)}


def _block_shapes(config: SALAConfig) -> dict[str, Shape]:
    hidden, inner = config.hidden_size, config.intermediate_size
    mlp = {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    return mlp | {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
