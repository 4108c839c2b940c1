"""MiniCPM-SALA in NumPy loops over tokens, for models of a few hundred tokens and any geometry."""

import math

import numpy as np


def forward(weights: dict[str, np.ndarray], config, ids: list[int]) -> np.ndarray:
    """Logits [T, vocab] of one prompt; ``weights`` by their released names."""
    scale = config.scale_depth / math.sqrt(config.num_hidden_layers)
    hidden = weights["model.embed_tokens.weight"][ids] * config.scale_emb
    for layer in range(config.num_hidden_layers):
        part = f"model.layers.{layer}."
        own = {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        mixer = sparse_mixer if "self_attn.o_gate.weight" in own else lightning_mixer
        x = norm(hidden, own["input_layernorm.weight"], config.rms_norm_eps)
        hidden = hidden + scale * mixer(own, config, x)
        x = norm(hidden, own["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = x @ own["mlp.gate_proj.weight"].T
        inner = gate * sigmoid(gate) * (x @ own["mlp.up_proj.weight"].T)
        hidden = hidden + scale * (inner @ own["mlp.down_proj.weight"].T)
    final = norm(hidden, weights["model.norm.weight"], config.rms_norm_eps)
    return final / (config.hidden_size / config.dim_model_base) @ weights["lm_head.weight"].T


def norm(x, weight, eps):
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def heads(own, name, x, dim):
    return (x @ own[f"self_attn.{name}.weight"].T).reshape(len(x), -1, dim)


def lightning_mixer(own, config, x):
    dim, count = config.lightning_head_dim, config.lightning_nh
    q, k, v = (heads(own, name, x, dim) for name in ("q_proj", "k_proj", "v_proj"))
    q = rope(norm(q, own["self_attn.q_norm.weight"], config.rms_norm_eps), config.rope_theta)
    k = rope(norm(k, own["self_attn.k_norm.weight"], config.rms_norm_eps), config.rope_theta)
    output = np.zeros_like(q)
    for head in range(count):  # a power of two
        decay = math.exp(-(2.0 ** (-8 * (head + 1) / count)))
        state = np.zeros((dim, dim))
        for t in range(len(x)):
            state = decay * state + np.outer(k[t, head], v[t, head])
            output[t, head] = dim**-0.5 * q[t, head] @ state
    output = norm(output.reshape(len(x), -1), own["self_attn.o_norm.weight"], config.rms_norm_eps)
    return output * sigmoid(x @ own["self_attn.z_proj.weight"].T) @ own["self_attn.o_proj.weight"].T


def rope(x, theta):
    half = x.shape[-1] // 2
    angle = (np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half))[:, None]
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def sparse_mixer(own, config, x):
    dim, groups = config.head_dim, config.num_key_value_heads
    q, k, v = (heads(own, name, x, dim) for name in ("q_proj", "k_proj", "v_proj"))
    q = q.reshape(len(x), groups, -1, dim)
    output = np.zeros_like(q)
    for t in range(len(x)):
        for g in range(groups):
            blocks = select(q[t, g], t, k[:, g], config.sparse_config, len(x))
            output[t, g] = attend(q[t, g], t, k[:, g], v[:, g], blocks, config.sparse_config["block_size"])
    gate = sigmoid(x @ own["self_attn.o_gate.weight"].T)
    return output.reshape(len(x), -1) * gate @ own["self_attn.o_proj.weight"].T


def select(queries, t, keys, sizes, length) -> list[int]:
    """Blocks of the query heads [G, D] of one KV head at position t; keys [L, D]."""
    block, current = sizes["block_size"], t // sizes["block_size"]
    if length < sizes["dense_len"]:
        return list(range(current + 1))
    weights, kernel = window_weights(queries, t, keys, sizes), sizes["kernel_size"]
    ranked = []
    for b in range(current + 1):
        touching = (w for end, w in weights.items() if end > b * block and end - kernel < (b + 1) * block)
        forced = b < sizes["init_blocks"] or b >= current - sizes["window_size"] // block
        ranked.append((0 if forced else 1, -max(touching, default=0), b))
    count = sizes["topk"] + sizes["window_size"] // block
    return sorted(b for *_, b in sorted(ranked)[:count])


def window_weights(queries, t, keys, sizes) -> dict[int, float]:
    """P of every fine window that the query sees, by the end of the window (one past its last token)."""
    kernel, stride, scale = sizes["kernel_size"], sizes["kernel_stride"], queries.shape[1] ** -0.5
    ends = range(kernel, t + 2, stride)
    coarse = [keys[end - 4 * kernel : end].mean(0) for end in range(4 * kernel, t + 2, 4 * stride)]
    weights = dict.fromkeys(ends, 0.0)
    for query in queries if coarse else ():
        total = sum(math.exp(scale * query @ window) for window in coarse)
        for end in ends:
            weights[end] += math.exp(scale * query @ keys[end - kernel : end].mean(0)) / total
    return weights


def attend(queries, t, keys, values, blocks, block):
    """Softmax attention of the heads [G, D] at position t over the tokens of ``blocks`` up to t."""
    tokens = [i for b in blocks for i in range(b * block, min((b + 1) * block, t + 1))]
    weights = np.exp(queries @ keys[tokens].T * queries.shape[1] ** -0.5)
    return weights / weights.sum(1, keepdims=True) @ values[tokens]
