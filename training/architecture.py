"""The architecture of sala-tiny: the released one in miniature."""

from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig

CONFIG = {
    "vocab_size": 1536,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "lightning_nh": 8,
    "lightning_nkv": 8,
    "lightning_head_dim": 32,
    "dim_model_base": 32,
    "max_position_embeddings": 1 << 20,
    "mixer_types": 3 * [SPARSE, LIGHTNING, LIGHTNING, LIGHTNING],
    # 8 blocks of 64 tokens: the first, the current and two before it, and 4 that the query is free to choose.
    "sparse_config": {
        "kernel_size": 32,
        "kernel_stride": 16,
        "init_blocks": 1,
        "block_size": 64,
        "window_size": 128,
        "topk": 6,
        "use_nope": False,
        "dense_len": 1024,
    },
}
TURN_END_ID, TURN_START_ID = 1534, 1535


def make_config() -> SALAConfig:
    return SALAConfig(
        architectures=["MiniCPMSALAForCausalLM"], dtype="bfloat16", eos_token_id=[2, TURN_END_ID], **CONFIG
    )
