"""Which tensor-parallel sizes the model divides by."""

from sala_sglang.config import SALAConfig

# Every rank takes an equal part of these.
DIVIDED_FIELDS = ("num_attention_heads", "lightning_nh", "intermediate_size")


def check_tensor_parallel(config: SALAConfig, tp_size: int) -> None:
    """Raise ValueError, naming what is allowed, unless the model divides over ``tp_size`` ranks."""
    if tp_size > 0 and _divides(config, tp_size):
        return
    allowed = [size for size in range(1, config.num_attention_heads + 1) if _divides(config, size)]
    divided = ", ".join(f"{name} = {getattr(config, name)}" for name in DIVIDED_FIELDS)
    raise ValueError(
        f"MiniCPM-SALA: tp_size = {tp_size} is not supported; allowed: {', '.join(map(str, allowed))} (divisors of "
        f"{divided}, that divide num_key_value_heads = {config.num_key_value_heads} or are multiples of it)"
    )


def _divides(config: SALAConfig, tp_size: int) -> bool:
    equal_parts = all(getattr(config, name) % tp_size == 0 for name in DIVIDED_FIELDS)
    kv_heads = config.num_key_value_heads
    return equal_parts and (kv_heads % tp_size == 0 or tp_size % kv_heads == 0)
