"""SGLang linear-attention backend of the lightning layers, over SGLang's pool of recurrent states."""

from typing import Any

import torch
from sala_kernels.lightning import lightning_chunk
from sala_kernels.lightning_commit import lightning_commit
from sala_kernels.lightning_step import lightning_step
from sala_kernels.lightning_verify import lightning_verify
from sglang.srt.layers.attention.hybrid_linear_attn_backend import ForwardMetadata, MambaAttnBackendBase
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_parallel, get_spec

from sala_sglang.attention.plan import StatePlan, state_decode, state_extend, state_verify
from sala_sglang.attention.warm_up import compile_commit, compile_lightning


class LightningBackend(MambaAttnBackendBase):
    """Chunk form in prefill and mixed steps, recurrent form in decode. The kernels write the snapshots of prefixes.

    A verify step keeps k and v of its rows in a stash, and ``commit`` folds those that were accepted into the states. A
    verify step of one row per request is a decode step: that row always stays.
    """

    def __init__(self, runner: ModelRunner):
        super().__init__(runner)
        geometry = runner.model_config.hf_config.lightning_geometry
        parallel = get_parallel()
        # Slopes belong to heads of the whole model: a shard takes its part of the global list.
        shard = geometry.log_decay().chunk(parallel.attn_tp_size)[parallel.attn_tp_rank]
        self.log_decay = shard.to(runner.device)
        self.plan: StatePlan
        self.verified_rows = 0  # per request, of the last verify step
        self.stash = self._new_stash(runner)
        layers = self.req_to_token_pool.mamba_map  # those of this pipeline stage
        if self.log_decay.is_cuda and layers:
            states = self.req_to_token_pool.mamba2_layer_cache(min(layers)).temporal
            compile_lightning(states, self.log_decay, runner.model_config.dtype)
            if self.stash.numel():
                rows = get_spec().speculative_num_draft_tokens
                compile_commit(self.stash, rows, self._all_states(), self.log_decay)

    def _new_stash(self, runner: ModelRunner) -> torch.Tensor:
        """[lightning layers, rows, 2, H, D] for every row of the largest verify step; none without speculation."""
        config = runner.model_config.hf_config
        rows = self.req_to_token_pool.size * (get_spec().speculative_num_draft_tokens or 0)
        shape = len(config.lightning_layer_ids), rows, 2, len(self.log_decay), config.lightning_geometry.head_dim
        return torch.zeros(shape, dtype=runner.model_config.dtype, device=runner.device)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mapped = self.req_to_token_pool.get_mamba_indices(forward_batch.req_pool_indices)
        slots = self._translate_mamba_indices(mapped).int()
        mode = forward_batch.forward_mode
        if mode.is_decode():
            self.plan = state_decode(forward_batch, slots, forward_batch.mamba_track_indices)
        elif mode.is_target_verify():
            self.plan = state_verify(forward_batch, slots)
            self.forward_metadata = ForwardMetadata(query_start_loc=self.plan.query_start, mamba_cache_indices=slots)
            self.verified_rows = forward_batch.spec_info.draft_token_num
        elif mode.is_extend():
            self.plan = state_extend(forward_batch, slots)

    def init_forward_metadata_out_graph(self, forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        super().init_forward_metadata_out_graph(forward_batch, in_capture)
        if forward_batch.forward_mode.is_target_verify():
            self.verified_rows = forward_batch.spec_info.draft_token_num

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        # forward_metadata holds static buffers here; the base class refreshes them before every replay.
        static = self.forward_metadata
        if forward_batch.forward_mode.is_target_verify():
            self.plan = state_verify(forward_batch, static.mamba_cache_indices)
        else:
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
        """q [T, H·D], k and v [T, H, D] -> [T, H·D]; in a verify step as forward_decode, with R rows per request."""
        if forward_batch.forward_mode.is_target_verify():
            return self._verify(q, k, v, layer, forward_batch, kwargs["norm_rope"])
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

    def _verify(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        norm_rope: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float],
    ) -> torch.Tensor:
        if forward_batch.spec_info.draft_token_num == 1:
            return self.forward_decode(q, k, v, layer, forward_batch, norm_rope=norm_rope)
        stash = self.stash[self.req_to_token_pool.mamba_map[layer.layer_id]]
        slots, states = self.plan.state_slots, self._states(layer)
        output = lightning_verify(
            q.view(k.shape), k, v, *norm_rope, states, slots, stash, self.log_decay, layer.scaling
        )
        return output.flatten(1)

    def commit(
        self, accepted_rows: torch.Tensor, snapshot_slots: torch.Tensor | None, snapshot_rows: torch.Tensor | None
    ) -> None:
        """States of all layers after ``accepted_rows`` [B] of the last verify step's rows, 1 or more of each request.

        snapshot_slots, snapshot_rows: [B]; where to store the state after so many rows as well. Nowhere where either is
        less than 1, or None.
        """
        taken = 1 if self.verified_rows == 1 else 0  # rows that are in the states already
        requests = len(accepted_rows)
        slots = self.forward_metadata.mamba_cache_indices[:requests]
        nowhere = torch.full_like(slots, -1)
        if snapshot_slots is None or snapshot_rows is None:
            if taken:
                return
            targets, after = nowhere, nowhere
        else:
            wanted = (snapshot_slots > 0) & (snapshot_rows > 0)
            targets, after = torch.where(wanted, snapshot_slots.int(), nowhere), snapshot_rows.int() - taken
        rows = accepted_rows.int() - taken
        states = self._all_states()
        lightning_commit(self.stash, self.verified_rows, states, slots, rows, targets, after, self.log_decay)

    def _all_states(self) -> torch.Tensor:
        """States [layers, slots, H, D, D] float32."""
        return self.req_to_token_pool.mamba_pool.mamba_cache.temporal

    def _states(self, layer: RadixAttention) -> torch.Tensor:
        """States [slots, H, D, D] float32 of a layer."""
        return self.req_to_token_pool.mamba2_layer_cache(layer.layer_id).temporal
