"""The decoder layers of MiniCPM-SALA: mixers of both kinds and MLP. Formulas and rounding follow the released code."""

from collections.abc import Callable

import torch
from sala_kernels.float8_rows import Float8Rows
from sala_kernels.gated_norm import gated_norm, mean_square_part
from sala_kernels.qk_norm_rope import qk_norm_rope
from sala_kernels.scaled_add_norm import scaled_add_norm
from sala_kernels.sigmoid_gate import sigmoid_gate
from sala_kernels.silu_mul import silu_mul
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import RowParallelLinear
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_loader.weight_utils import sharded_weight_loader
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import add_prefix, set_weight_attrs
from torch import nn

from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.models.merged_projections import qkvg_widths
from sala_sglang.models.projections import MergedProjections
from sala_sglang.models.skinny_linear import as_input, takes_float8
from sala_sglang.quantization.kv_scales import add_kv_scales

# SGLang's own all-reduce for NVLink takes multiples of 16 bytes; anything else goes to NCCL, which is slower.
REDUCED_ROWS = 4


class MLP(MergedProjections):
    def __init__(self, config: SALAConfig, kind: str, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.add_projections(kind, "gate_up_proj", hidden, [inner, inner], quant_config, prefix)
        self.down_proj = RowParallelLinear(
            inner, hidden, bias=False, quant_config=quant_config, prefix=add_prefix("down_proj", prefix)
        )
        self.act = SiluAndMul()

    def forward(self, x: torch.Tensor | Float8Rows, dtype: torch.dtype) -> torch.Tensor:
        products = self.multiply(x, dtype)
        gate_up = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        act = silu_mul if takes_float8([self.down_proj], len(gate_up)) else self.act
        return self.down_proj(as_input(act(gate_up), dtype))[0]


class SparseMixer(MergedProjections):
    """Grouped-query attention without positions (NoPE) over selected blocks, with a sigmoid output gate."""

    def __init__(self, config: SALAConfig, layer_id: int, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        ranks = get_parallel().attn_tp_size
        widths = qkvg_widths(config, SPARSE, ranks)
        self.add_projections(SPARSE, "qkvg_proj", config.hidden_size, widths, quant_config, prefix)
        self.o_proj = RowParallelLinear(
            widths[0],
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=add_prefix("o_proj", prefix),
        )
        self.attn = RadixAttention(
            config.num_attention_heads // ranks,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=widths[1] // ranks // config.head_dim,
            layer_id=layer_id,
            prefix=add_prefix("attn", prefix),
        )
        add_kv_scales(self.attn, self.attn.tp_k_head_num)

    def forward(
        self,
        x: torch.Tensor | Float8Rows,
        dtype: torch.dtype,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [T, hidden_size] -> the same in ``dtype``, or its ``rows`` [B] alone, the last of every request."""
        q, k, v, gate = self.project(x, dtype)
        if rows is not None:
            q, gate = q[rows], gate[rows]
        output = self.attn(q, k, v, forward_batch, last_rows=rows is not None)
        output = sigmoid_gate(output, gate, to_float8=takes_float8([self.o_proj], len(output)))
        return self.o_proj(as_input(output, dtype))[0]


class LightningMixer(MergedProjections):
    """Linear attention with constant decay: q/k norm and RoPE before it, norm over the full width and gate after."""

    def __init__(self, config: SALAConfig, layer_id: int, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        geometry = config.lightning_geometry
        self.ranks = get_parallel().attn_tp_size
        self.width = geometry.num_heads * geometry.head_dim
        self.head_dim, self.eps = geometry.head_dim, config.rms_norm_eps
        widths = qkvg_widths(config, LIGHTNING, self.ranks)
        self.add_projections(LIGHTNING, "qkvg_proj", config.hidden_size, widths, quant_config, prefix)
        self.o_proj = RowParallelLinear(
            self.width, config.hidden_size, bias=False, quant_config=quant_config, prefix=add_prefix("o_proj", prefix)
        )
        self.q_norm = RMSNorm(self.head_dim, eps=self.eps)
        self.k_norm = RMSNorm(self.head_dim, eps=self.eps)
        self.o_norm = RMSNorm(self.width // self.ranks, eps=self.eps)
        set_weight_attrs(self.o_norm.weight, {"weight_loader": sharded_weight_loader(0)})
        self.inv_freq = InverseFrequencies(config)
        heads = geometry.num_heads // self.ranks
        self.attn = RadixAttention(
            heads,
            self.head_dim,
            geometry.scale,
            num_kv_heads=heads,
            layer_id=layer_id,
            prefix=add_prefix("attn", prefix),
        )

    def forward(
        self,
        x: torch.Tensor | Float8Rows,
        dtype: torch.dtype,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """x [T, hidden_size] -> the same in ``dtype``, or its ``rows`` alone; the state takes in all."""
        q, k, v, gate = self.project(x, dtype)
        norm_rope = self.q_norm.weight, self.k_norm.weight, positions, self.inv_freq(), self.eps
        # The mode by which SGLang calls the backend: its decode and verify steps include norm and rotation.
        mode = forward_batch.logical_forward_mode
        if mode.is_decode() or mode.is_target_verify():
            output = self.attn(q, k, v, forward_batch, norm_rope=norm_rope)
        else:
            q, k = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k))
            q, k = qk_norm_rope(q, k, *norm_rope)
            output = self.attn(q.flatten(1), k, v, forward_batch)
        if rows is not None:
            output, gate = output[rows], gate[rows]
        mean_square = self._mean_square(output) if self.ranks > 1 else None
        to_float8 = takes_float8([self.o_proj], len(output))
        output = gated_norm(output, gate, self.o_norm.weight, self.eps, mean_square, to_float8=to_float8)
        return self.o_proj(as_input(output, dtype))[0]

    def _mean_square(self, x: torch.Tensor) -> torch.Tensor:
        """Mean of x² over the full width of which x [T, W / ranks] is this rank's part: [T] float32."""
        rows = -(-x.shape[0] // REDUCED_ROWS) * REDUCED_ROWS
        part = mean_square_part(x, self.width, rows)
        return get_parallel().attn_tp_group.all_reduce(part)[: x.shape[0]]


class InverseFrequencies(nn.Module):
    """Rotary frequencies θ^(−2j/D), [D/2] float32 on the default device at construction, computed in float64.

    A buffer, because SGLang's memory saver gives the memory of a model back without its contents, and restores buffers;
    no part of a state_dict, because no checkpoint has it. Its bits are kept as integers, which casts of a module leave.
    """

    bits: torch.Tensor

    def __init__(self, config: SALAConfig) -> None:
        super().__init__()
        exponent = torch.arange(0, config.lightning_head_dim, 2, dtype=torch.float64) / config.lightning_head_dim
        frequencies = (1.0 / config.rope_theta**exponent).float()
        self.register_buffer("bits", frequencies.view(torch.int32), persistent=False)

    def forward(self) -> torch.Tensor:
        return self.bits.view(torch.float32)


class DecoderLayer(nn.Module):
    def __init__(self, config: SALAConfig, layer_id: int, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        kind = config.layer_kinds[layer_id]
        mixer = SparseMixer if kind == SPARSE else LightningMixer
        self.self_attn = mixer(config, layer_id, quant_config, add_prefix("self_attn", prefix))
        self.mlp = MLP(config, kind, quant_config, add_prefix("mlp", prefix))
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.residual_scale, self.eps = config.residual_scale, config.rms_norm_eps

    def forward(
        self,
        branch: torch.Tensor,
        hidden: torch.Tensor,
        branch_scale: float,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        rows: torch.Tensor | None,
        capture: Callable[[torch.Tensor], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the previous branch to the residual stream, run mixer and MLP; the MLP's output stays a branch.

        Every addition is thus fused with the norm that follows it. rows: those to return, if not all. capture: takes
        the joined stream [T, hidden_size], which is what the layer before has put out.
        """
        dtype = branch.dtype
        x, hidden = scaled_add_norm(
            branch,
            hidden,
            branch_scale,
            self.input_layernorm.weight,
            self.eps,
            to_float8=self.self_attn.takes_float8(len(branch)),
        )
        if capture is not None:
            capture(hidden)
        branch = self.self_attn(x, dtype, positions, forward_batch, rows)
        hidden = hidden if rows is None else hidden[rows]
        x, hidden = scaled_add_norm(
            branch,
            hidden,
            self.residual_scale,
            self.post_attention_layernorm.weight,
            self.eps,
            to_float8=self.mlp.takes_float8(len(branch)),
        )
        return self.mlp(x, dtype), hidden
