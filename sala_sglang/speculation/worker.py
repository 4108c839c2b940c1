"""SGLang's side of speculation without a draft model: steps that verify chains of drafts.

SGLang's own worker for ``--speculative-algorithm NGRAM`` looks among the last 18 tokens that were generated, never in
a prompt, and drafts trees, of which the verify step of this model would commit the wrong branch. This one takes its
drafts from ``Drafts``, as chains, and gives a step without promising drafts one row per request.
"""

from collections.abc import Callable
from typing import Any

import numpy
import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import GenerationBatchResult
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.runtime_context import get_device, get_schedule, get_spec
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.eagle_utils import eagle_sample
from sglang.srt.speculative.ngram_info import NgramVerifyInput
from sglang.srt.speculative.spec_utils import (
    GrammarTree,
    build_grammar_vocab_mask,
    commit_mamba_states_after_verify,
    prepare_mamba_track_for_verify,
    record_stream_for_v2_verify,
)

from sala_sglang.speculation.drafts import Drafts, RequestTokens

NO_CORPORA = "MiniCPM-SALA drafts from a request's own tokens; corpora are not supported"


def chain_links(requests: int, rows: int, device: str | torch.device) -> torch.Tensor:
    """The row that follows each of a chain, −1 after the last: [requests, rows] int64."""
    offsets = torch.arange(rows, device=device)
    return torch.where(offsets < rows - 1, offsets + 1, -1).repeat(requests, 1)


class ChainWorker(BaseSpecWorker):
    """Runs every step of a server with speculation: prefills as they are, decode steps as verify steps."""

    def __init__(self, server_args: ServerArgs, gpu_id: int, nccl_port: int, target_worker: TpModelWorker):
        super().__init__()
        self.target = target_worker
        self.rows: int = get_spec().speculative_num_draft_tokens
        self.device = get_device().device
        self.drafts = Drafts(self.rows)
        self.graphs: dict[int, Any] = {}

    @property
    def target_worker(self) -> TpModelWorker:
        return self.target

    @property
    def draft_worker(self) -> None:
        """None: drafts come from the host."""

    def init_cuda_graphs(self) -> None:
        """Capture verify steps of one row per request beside those of D rows, which the target has by now."""
        runner = self.target_worker.model_runner
        captured = runner.decode_cuda_graph_runner
        if isinstance(captured, DecodeCudaGraphRunner):
            self.graphs[self.rows] = captured
            self.graphs[1] = type(captured)(runner, speculative_num_steps=1, speculative_num_draft_tokens=1)

    def clear_cache_pool(self) -> None:
        self.drafts.forget_all()

    def forward_batch_generation(
        self, batch: ScheduleBatch, on_publish: Callable | None = None, pp_proxy_tensors: Any = None
    ) -> GenerationBatchResult:
        """A step of ``batch``; ``on_publish`` is told the lengths after it as soon as they are computed."""
        stream = torch.get_device_module(self.device).current_stream()
        record_stream_for_v2_verify(batch, None, stream)
        if not batch.forward_mode.is_decode():
            return self._prefill(batch, on_publish)
        return self._verify(batch, on_publish)

    def _prefill(self, batch: ScheduleBatch, on_publish: Callable | None) -> GenerationBatchResult:
        result = self.target_worker.forward_batch_generation(batch)
        if on_publish is not None:
            on_publish(batch.seq_lens)
        accepted = torch.zeros(len(batch.reqs), self.rows, dtype=torch.int32, device=self.device)
        accepted[:, 0] = result.next_token_ids
        counts = torch.ones(len(batch.reqs), dtype=torch.int32, device=self.device)
        return self._result(result, result.next_token_ids, batch.seq_lens, accepted, counts)

    def _verify(self, batch: ScheduleBatch, on_publish: Callable | None) -> GenerationBatchResult:
        tokens = self.drafts.next_rows(self._tokens(batch))
        rows = tokens.shape[1]
        self._make_verify_step(batch, tokens)
        runner = self.target_worker.model_runner
        if self.graphs:
            runner.decode_cuda_graph_runner = self.graphs[rows]
        result = self.target_worker.forward_batch_generation(batch, is_verify=True)
        mask = self._grammar_mask(batch, tokens) if batch.has_grammar else None
        predicted, counts, index = eagle_sample(batch.spec_info, batch, result.logits_output, mask)
        lengths = batch.seq_lens + counts
        commit_mamba_states_after_verify(self.target_worker, batch, counts, index, rows)
        if batch.return_logprob:
            compute_spec_logprobs(batch, result.logits_output, predicted, accept_index=index)
        if on_publish is not None:
            on_publish(lengths)
        batch.forward_mode = ForwardMode.DECODE
        accepted = predicted[index]  # behind the accepted ones anything
        padded = torch.nn.functional.pad(accepted, (0, self.rows - rows))
        return self._result(result, accepted.flatten(), lengths, padded, counts)

    def _tokens(self, batch: ScheduleBatch) -> dict[str, RequestTokens]:
        """All tokens of every request, with those of the last step, which the scheduler may not have seen yet."""
        counts, accepted = [0] * len(batch.reqs), []
        if not get_schedule().disable_overlap_schedule and not batch.grammar_needs_sync():
            counts, accepted = batch.spec_info.accept_lens.tolist(), batch.spec_info.accept_tokens.tolist()
        found = {}
        for i, request in enumerate(batch.reqs):
            prompt, answer = request.origin_input_ids_unpadded, request.output_ids
            # The last token is not in the KV cache yet.
            unseen = int(batch.seq_lens_cpu[i]) + 1 - len(prompt) - len(answer)
            last = accepted[i * self.rows : i * self.rows + counts[i]]
            found[request.rid] = RequestTokens(prompt, answer, last[len(last) - unseen :] if unseen > 0 else [])
        return found

    def _make_verify_step(self, batch: ScheduleBatch, tokens: numpy.ndarray) -> None:
        """Turn the decode step ``batch`` into one that verifies ``tokens`` [B, rows] as chains."""
        requests, rows = tokens.shape
        offsets = torch.arange(rows, device=self.device)
        positions = batch.seq_lens[:, None] + offsets
        index = torch.arange(requests * rows, device=self.device).view(requests, rows)
        following = chain_links(requests, rows, self.device)
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.input_ids = torch.from_numpy(tokens).flatten().to(self.device, non_blocking=True)
        slots = batch.req_to_token_pool.req_to_token[batch.req_pool_indices[:, None], positions]
        batch.out_cache_loc = slots.flatten().to(torch.int64)
        prepare_mamba_track_for_verify(batch)
        batch.spec_info = NgramVerifyInput(
            draft_token=batch.input_ids,
            positions=positions.flatten(),
            retrieve_index=index,
            retrieve_next_token=following,
            retrieve_next_sibling=torch.full_like(following, -1),
            draft_token_num=rows,
            new_seq_lens=batch.seq_lens,
        )

    def _grammar_mask(self, batch: ScheduleBatch, tokens: numpy.ndarray) -> Any:
        requests, rows = tokens.shape
        following = chain_links(requests, rows, "cpu")  # made anew: a copy from the GPU would wait for it
        tree = GrammarTree.from_host(following, torch.full_like(following, -1), torch.from_numpy(tokens))
        return build_grammar_vocab_mask(
            reqs=batch.reqs, tree=tree, sampling_info=batch.sampling_info, device=self.device, barrier=None
        )

    def _result(
        self,
        step: GenerationBatchResult,
        next_tokens: torch.Tensor,
        lengths: torch.Tensor,
        accepted: torch.Tensor,
        counts: torch.Tensor,
    ) -> GenerationBatchResult:
        """next_tokens: as many per request as the step has rows. accepted [B, D], counts [B]: for the next step."""
        following = NgramVerifyInput(
            draft_token_num=self.rows, new_seq_lens=lengths, accept_tokens=accepted.flatten(), accept_lens=counts
        )
        return GenerationBatchResult(
            logits_output=step.logits_output,
            next_token_ids=next_tokens,
            can_run_cuda_graph=step.can_run_cuda_graph,
            accept_lens=counts,
            new_seq_lens=lengths,
            next_draft_input=following,
            speculative_num_draft_tokens=max(1, len(next_tokens) // max(1, len(counts))),
        )

    def add_external_corpus(self, corpus_id: str, token_chunks: list[list[int]]) -> int:
        raise ValueError(NO_CORPORA)

    def remove_external_corpus(self, corpus_id: str) -> None:
        raise ValueError(NO_CORPORA)

    def list_external_corpora(self) -> dict[str, int]:
        return {}
