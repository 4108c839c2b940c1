"""Configuration of MiniCPM-SALA: the released ``config.json`` as it is, validated, and the geometry parsed from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from huggingface_hub.dataclasses import strict
from sala_kernels.layout import COARSE_FACTOR, SparseGeometry
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from sglang.srt.configs.mamba_utils import Mamba2CacheParams

ARCHITECTURE = "MiniCPMSALAForCausalLM"  # as config.json names it
SPARSE, LIGHTNING = "minicpm4", "lightning-attn"
MIXER_SPELLINGS = {
    "minicpm4": SPARSE,
    "lightning-attn": LIGHTNING,
    "lightning_attn": LIGHTNING,
    "lightning": LIGHTNING,
}
RELEASED_SPARSE_LAYERS = (0, 9, 16, 17, 22, 29, 30, 31)
RELEASED_SPARSE_CONFIG = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 2048,
    "topk": 64,
    "use_nope": False,
    "dense_len": 8192,
}
MAX_TOPK = 1024  # the kernels count selected blocks in eleven bits
# The architecture has one value for each of these; another one names a model that nobody has released.
FIXED_FIELDS = {
    "hidden_act": "silu",
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_use_rope": True,
    "qk_norm": True,
    "use_output_gate": True,
    "use_output_norm": True,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "lightning_layerwise_decay": False,
    "rope_scaling": None,
    "attention_dropout": 0,
}
POSITIVE_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "lightning_nh",
    "max_position_embeddings",
    "dim_model_base",
)
POSITIVE_NUMBERS = ("rms_norm_eps", "rope_theta", "scale_emb", "scale_depth", "initializer_range")


@dataclass(frozen=True)
class LightningGeometry:
    """Sizes of lightning attention. ``scale`` multiplies q·k."""

    num_heads: int
    head_dim: int
    scale: float

    def log_decay(self) -> torch.Tensor:
        """Logarithm of the decay per token of every head, [num_heads] float32: the negative ALiBi slopes."""
        return -torch.tensor(alibi_slopes(self.num_heads), dtype=torch.float32)


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi slopes (arXiv 2108.12409, section 3), with its rule for head counts that are no power of two."""
    power = 1 << (heads.bit_length() - 1)
    base = 2.0 ** -(2.0 ** -(math.log2(power) - 3))
    slopes = [base ** (i + 1) for i in range(power)]
    if power < heads:
        slopes += alibi_slopes(2 * power)[0::2][: heads - power]
    return slopes


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the error of an impossible configuration value."""
    raise ValueError(f"MiniCPM-SALA config: {field} = {value!r} is not possible; allowed: {allowed}")


@strict
class SALAConfig(PreTrainedConfig):
    """Fields of the released ``config.json``; the defaults are the released values.

    Raises ValueError naming field, value and what is allowed for everything that cannot be served.
    """

    model_type = "minicpm_sala"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]  # Trainer adds to the list

    vocab_size: int = 73448
    hidden_size: int = 4096
    intermediate_size: int = 16384
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 524288
    rope_theta: float | int = 10000.0
    rope_scaling: dict | None = None
    scale_emb: float | int = 12
    scale_depth: float | int = 1.4
    dim_model_base: int = 256
    attn_use_rope: bool = False
    attn_use_output_gate: bool = True
    lightning_use_rope: bool = True
    lightning_nh: int = 32
    lightning_nkv: int = 32
    lightning_head_dim: int = 128
    lightning_scale: str | float | int = "1/sqrt(d)"
    lightning_layerwise_decay: bool = False
    qk_norm: bool = True
    use_output_gate: bool = True
    use_output_norm: bool = True
    mixer_types: list[str] | None = None
    sparse_config: dict | None = None
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = field(default_factory=lambda: [2, 73440])
    pad_token_id: int | None = 2
    initializer_range: float = 0.1
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.mixer_types is None:
            layers = range(self.num_hidden_layers)
            self.mixer_types = [SPARSE if i in RELEASED_SPARSE_LAYERS else LIGHTNING for i in layers]
        if self.sparse_config is None:
            self.sparse_config = dict(RELEASED_SPARSE_CONFIG)
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise ValueError for a value that cannot be served; also of a field that was set later."""
        for name, allowed in FIXED_FIELDS.items():
            if getattr(self, name) != allowed:
                refuse(name, getattr(self, name), repr(allowed))
        for name in POSITIVE_INTEGERS:
            if getattr(self, name) < 1:
                refuse(name, getattr(self, name), "a positive integer")
        for name in POSITIVE_NUMBERS:
            if not getattr(self, name) > 0:
                refuse(name, getattr(self, name), "a positive number")
        for name in ("head_dim", "lightning_head_dim"):
            if getattr(self, name) not in (16, 32, 64, 128, 256):
                refuse(name, getattr(self, name), "16, 32, 64, 128 or 256")
        if self.num_attention_heads % self.num_key_value_heads:
            allowed = f"divisors of num_attention_heads = {self.num_attention_heads}"
            refuse("num_key_value_heads", self.num_key_value_heads, allowed)
        if self.lightning_nkv != self.lightning_nh:
            refuse("lightning_nkv", self.lightning_nkv, f"lightning_nh = {self.lightning_nh}")
        _mixers(self.mixer_types or (), self.num_hidden_layers)
        _lightning_scale(self.lightning_scale, self.lightning_head_dim)
        _sparse_geometry(self.sparse_config or {})

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """SPARSE or LIGHTNING for every layer, whatever spelling ``mixer_types`` uses."""
        return _mixers(self.mixer_types or (), self.num_hidden_layers)

    @property
    def sparse_geometry(self) -> SparseGeometry:
        return _sparse_geometry(self.sparse_config or {})

    @property
    def lightning_geometry(self) -> LightningGeometry:
        scale = _lightning_scale(self.lightning_scale, self.lightning_head_dim)
        return LightningGeometry(self.lightning_nh, self.lightning_head_dim, scale)

    @property
    def residual_scale(self) -> float:
        """Factor of every mixer and MLP output before it joins the residual stream."""
        return self.scale_depth / math.sqrt(self.num_hidden_layers)

    @property
    def logit_divisor(self) -> float:
        """The hidden state is divided by this before the language-model head."""
        return self.hidden_size / self.dim_model_base

    @property
    def full_attention_layer_ids(self) -> list[int]:
        """Layers with a KV cache, by the name under which SGLang asks for them."""
        return [i for i, kind in enumerate(self.layer_kinds) if kind == SPARSE]

    @property
    def lightning_layer_ids(self) -> list[int]:
        return [i for i, kind in enumerate(self.layer_kinds) if kind == LIGHTNING]

    @property
    def mamba2_cache_params(self) -> "Mamba2CacheParams":
        """Shape of the recurrent state, by the name under which SGLang asks for it; always float32."""
        from sglang.srt.configs.mamba_utils import Mamba2CacheParams, Mamba2StateDType, Mamba2StateShape
        from sglang.srt.runtime_context import get_parallel

        geometry = self.lightning_geometry
        shape = Mamba2StateShape.create(
            tp_world_size=get_parallel().attn_tp_size,
            intermediate_size=0,
            n_groups=0,
            num_heads=geometry.num_heads,
            head_dim=geometry.head_dim,
            state_size=geometry.head_dim,
            conv_kernel=1,
        )
        dtype = Mamba2StateDType(conv=torch.bfloat16, temporal=torch.float32)
        return Mamba2CacheParams(shape=shape, layers=self.lightning_layer_ids, dtype=dtype)


def _mixers(names: Sequence[str], layers: int) -> tuple[str, ...]:
    if len(names) != layers:
        refuse("mixer_types", f"a list of {len(names)}", f"one entry for each of the {layers} hidden layers")
    for index, name in enumerate(names):
        if name not in MIXER_SPELLINGS:
            refuse(f"mixer_types[{index}]", name, ", ".join(map(repr, MIXER_SPELLINGS)))
    kinds = tuple(MIXER_SPELLINGS[name] for name in names)
    if kinds[0] != SPARSE:
        refuse("mixer_types[0]", names[0], f"{SPARSE!r} (the first layer is a sparse one)")
    if LIGHTNING not in kinds:
        refuse("mixer_types", names, f"at least one {LIGHTNING!r} layer")
    return kinds


def _lightning_scale(scale: str | float | int, head_dim: int) -> float:
    if scale == "1/sqrt(d)":
        return head_dim**-0.5
    if scale == "1/d":
        return 1.0 / head_dim
    if isinstance(scale, str) or not scale > 0:
        refuse("lightning_scale", scale, "'1/sqrt(d)', '1/d' or a positive number")
    return float(scale)


def _sparse_geometry(given: dict) -> SparseGeometry:
    unknown = set(given) - set(RELEASED_SPARSE_CONFIG)
    if unknown:
        refuse(f"sparse_config.{min(unknown)}", given[min(unknown)], ", ".join(RELEASED_SPARSE_CONFIG))
    fields = RELEASED_SPARSE_CONFIG | given
    if fields["use_nope"]:
        refuse("sparse_config.use_nope", fields["use_nope"], "False")
    for name, value in fields.items():
        least = 0 if name in ("dense_len", "init_blocks") else 1
        if name != "use_nope" and (not isinstance(value, int) or value < least):
            refuse(f"sparse_config.{name}", value, f"an integer of at least {least}")

    block, stride, kernel = fields["block_size"], fields["kernel_stride"], fields["kernel_size"]
    if block not in (16, 32, 64, 128, 256):
        # A block is a KV page, and SGLang keeps state snapshots every 256 tokens.
        refuse("sparse_config.block_size", block, "16, 32, 64, 128 or 256")
    if block % (COARSE_FACTOR * stride):
        refuse(
            "sparse_config.kernel_stride",
            stride,
            f"divisors of block_size / {COARSE_FACTOR} = {block // COARSE_FACTOR}",
        )
    if kernel % stride or kernel > block:
        refuse("sparse_config.kernel_size", kernel, f"multiples of kernel_stride = {stride} up to block_size = {block}")
    if fields["window_size"] % block:
        refuse("sparse_config.window_size", fields["window_size"], f"multiples of block_size = {block}")
    if fields["topk"] <= fields["init_blocks"]:
        # The initial and current blocks come out of topk; the blocks of the window come on top of it.
        refuse("sparse_config.topk", fields["topk"], f"more than init_blocks = {fields['init_blocks']}")
    if fields["topk"] > MAX_TOPK:
        refuse("sparse_config.topk", fields["topk"], f"at most {MAX_TOPK}")
    local = fields["window_size"] // block
    return SparseGeometry(
        block_size=block,
        kernel_size=kernel,
        kernel_stride=stride,
        init_blocks=fields["init_blocks"],
        local_blocks=local,
        selected_blocks=fields["topk"] + local,
        dense_len=fields["dense_len"],
    )
