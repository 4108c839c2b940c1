"""SGLang attention backend of the sparse (InfLLM-V2) layers: write KV, compress, select, attend."""

from typing import Any

import torch
from sala_kernels.compress_keys import compress_keys
from sala_kernels.layout import PagedBatch
from sala_kernels.select_blocks import select_blocks
from sala_kernels.sparse_attention import sparse_attention
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend, SharedReadEnds
from sglang.srt.layers.attention.verify_mask import VerifyMask, maybe_create_verify_mask
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_parallel, get_spec

from sala_sglang.attention.kv_pool import layer_buffers, scales_of
from sala_sglang.attention.plan import only_last_rows, paged_decode, paged_extend, paged_verify
from sala_sglang.attention.warm_up import compile_sparse
from sala_sglang.config import SALAConfig
from sala_sglang.environment import dense_len_tokens


class SparseBackend(AttentionBackend):
    """Serves every forward mode through the same operators; the plan tells them which rows are whose."""

    def __init__(self, runner: ModelRunner):
        super().__init__()
        config = runner.model_config.hf_config
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.req_to_token_pool = runner.req_to_token_pool
        self.max_context_len = runner.model_config.context_len
        self.geometry = config.sparse_geometry
        self.dense_len = dense_len_tokens(config)
        self.heads_per_group = config.num_attention_heads // config.num_key_value_heads
        self.plan: PagedBatch
        self.compress_plan: PagedBatch  # the same, except in a verify step
        self.chain_mask = self._new_chain_mask(runner)
        layers = self.token_to_kv_pool.full_attention_layer_id_mapping  # those of this pipeline stage
        if torch.device(runner.device).type == "cuda" and layers:
            self._compile(config, min(layers))

    def _new_chain_mask(self, runner: ModelRunner) -> VerifyMask | None:
        """What SGLang writes for chains of a draft model, D² bytes per request; without it, for the whole context."""
        if get_spec().speculative_draft_model_path is None:
            return None
        return maybe_create_verify_mask(
            is_draft_runner=runner.is_draft_worker,
            skip_prefill=False,
            max_bs=self.req_to_token_pool.size,
            max_context_len=self.max_context_len,
            num_draft_tokens=get_spec().speculative_num_draft_tokens,
            device=runner.device,
            is_read=False,
        )

    @property
    def verify_mask(self) -> VerifyMask | None:
        """Read by nobody: the rows of a chain attend by their positions."""
        return self.chain_mask

    def _compile(self, config: SALAConfig, layer: int) -> None:
        kv_heads = self.token_to_kv_pool.full_kv_pool.head_num
        attending = config.num_attention_heads // get_parallel().attn_tp_size
        compile_sparse(
            *layer_buffers(self.token_to_kv_pool, layer),
            self.req_to_token_pool.req_to_token,
            self.geometry,
            (kv_heads * self.heads_per_group, attending),
            self.max_context_len,
        )

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mode = forward_batch.forward_mode
        if mode.is_decode() or mode.is_target_verify():
            self.init_forward_metadata_in_graph(forward_batch)
        elif mode.is_extend():
            self.plan = paged_extend(forward_batch, self.req_to_token_pool.req_to_token, self.dense_len)
            self.compress_plan = self.plan

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        arguments = forward_batch, self.req_to_token_pool.req_to_token, self.dense_len, self.max_context_len
        if forward_batch.forward_mode.is_target_verify():
            self.plan, self.compress_plan = paged_verify(*arguments)
        else:
            self.plan = self.compress_plan = paged_decode(*arguments)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Nothing to allocate: the plan of a captured step is recorded over the graph runner's buffers."""

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def shared_read_ends(self, fm: ForwardMode) -> SharedReadEnds:
        """A verify step reads the table of token slots to its end, while the scheduler prepares the next one."""
        return SharedReadEnds.POST_REPLAY if fm.is_target_verify() else super().shared_read_ends(fm)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        *,
        last_rows: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """q [T, Hq·D], k and v [T, Hkv, D] -> [T, Hq·D]; with ``last_rows`` q has the last row of every request."""
        if save_kv_cache:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc.for_batch(forward_batch), k, v)
        keys, values, compressed = layer_buffers(self.token_to_kv_pool, layer.layer_id)
        scales = scales_of(layer, keys)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        compress_keys(keys, compressed, self.compress_plan, self.geometry, kv_scales=scales)
        plan = only_last_rows(self.plan, self.max_context_len) if last_rows else self.plan
        blocks = select_blocks(self._whole_groups(queries), compressed, plan, self.geometry, layer.scaling)
        output = sparse_attention(queries, keys, values, blocks, plan, self.geometry, layer.scaling, kv_scales=scales)
        return output.flatten(1)

    forward_decode = forward_extend

    def _whole_groups(self, queries: torch.Tensor) -> torch.Tensor:
        """Query heads of every whole group whose KV head is here: [T, Hq of those groups, D].

        A block's score sums over all heads of its group. Where ranks outnumber KV heads a rank computes a
        part of a group, so for the selection it gathers the rest; ranks with the same KV head then select
        from equal inputs.
        """
        ranks = self.heads_per_group // queries.shape[1]
        if ranks <= 1:
            return queries
        parallel = get_parallel()
        # Along dimension 0 SGLang returns what the ranks sent as it is; only the group's part is then rearranged.
        everywhere = parallel.attn_tp_group.all_gather(queries.contiguous(), dim=0)
        first = parallel.attn_tp_rank // ranks * ranks
        group = everywhere.view(-1, *queries.shape)[first : first + ranks]
        return group.transpose(0, 1).flatten(1, 2)
