"""SGLang linear-attention backend of the lightning layers, over SGLang's pool of recurrent states."""

from typing import Any

import torch
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_step import lightning_step
from sglang.srt.layers.attention.hybrid_linear_attn_backend import MambaAttnBackendBase
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_parallel

from sala_sglang.attention.plan import StatePlan, state_decode, state_extend
from sala_sglang.attention.warm_up import compile_lightning


class LightningBackend(MambaAttnBackendBase):
    """Chunk form in prefill and mixed steps, recurrent form in decode. The kernels write the snapshots of prefixes."""

    def __init__(self, runner: ModelRunner):
        super().__init__(runner)
        geometry = runner.model_config.hf_config.lightning_geometry
        parallel = get_parallel()
        # Slopes belong to heads of the whole model: a shard takes its part of the global list.
        shard = geometry.log_decay().chunk(parallel.attn_tp_size)[parallel.attn_tp_rank]
        self.log_decay = shard.to(runner.device)
        self.plan: StatePlan
        layers = self.req_to_token_pool.mamba_map  # those of this pipeline stage
        if self.log_decay.is_cuda and layers:
            states = self.req_to_token_pool.mamba2_layer_cache(min(layers)).temporal
            compile_lightning(states, self.log_decay, runner.model_config.dtype)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mapped = self.req_to_token_pool.get_mamba_indices(forward_batch.req_pool_indices)
        slots = self._translate_mamba_indices(mapped).int()
        if forward_batch.forward_mode.is_decode():
            self.plan = state_decode(forward_batch, slots, forward_batch.mamba_track_indices)
        elif forward_batch.forward_mode.is_extend():
            self.plan = state_extend(forward_batch, slots)

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        # forward_metadata holds static buffers here; the base class refreshes them before every replay.
        static = self.forward_metadata
        self.plan = state_decode(forward_batch, static.mamba_cache_indices, static.mamba_track_indices)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [T, H·D], k and v [T, H, D] -> [T, H·D]."""
        plan = self.plan
        output = lightning_chunk(
            q.view(k.shape),
            k,
            v,
            self._states(layer),
            plan.state_slots,
            plan.query_start,
            plan.snapshot_slots,
            plan.snapshot_tokens,
            self.log_decay,
            layer.scaling,
        )
        return output.flatten(1)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        *,
        norm_rope: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float],
        **kwargs: Any,
    ) -> torch.Tensor:
        """As forward_extend, with one row per request, of q and k as projected.

        norm_rope: q_weight, k_weight, positions, inv_freq and eps of lightning_step.
        """
        plan = self.plan
        output = lightning_step(
            q.view(k.shape),
            k,
            v,
            *norm_rope,
            self._states(layer),
            plan.state_slots,
            plan.snapshot_slots,
            self.log_decay,
            layer.scaling,
        )
        return output.flatten(1)

    def _states(self, layer: RadixAttention) -> torch.Tensor:
        """States [slots, H, D, D] float32 of a layer."""
        return self.req_to_token_pool.mamba2_layer_cache(layer.layer_id).temporal
