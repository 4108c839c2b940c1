"""Mistakes in speculative decoding: rows, states, drafts, refusals."""

from tests.planted.mistake import Mistake

_VERIFY, _COMMIT = "kernels/sala_kernels/lightning_verify", "kernels/sala_kernels/lightning_commit"
_KERNEL_TESTS, _PLAN_TESTS = "tests/kernels/test_lightning_verify.py", "tests/attention/test_plan.py"
_PLAN, _PROPOSER = "sala_sglang/attention/plan.py", "sala_sglang/speculation/proposer.py"
_PROPOSER_TESTS, _DRAFT_TESTS = "tests/speculation/test_proposer.py", "tests/speculation/test_drafts.py"
_SERVER_TESTS, _SERVED_TESTS = "tests/plugin/test_speculation.py", "tests/serving/test_speculation.py"
_BACKEND, _WORKER = "sala_sglang/speculation/hybrid_backend.py", "sala_sglang/speculation/worker.py"
_SERVER_TESTS, _MODEL_TESTS = "tests/plugin/test_speculation.py", "tests/plugin/test_draft_model.py"
_MODEL = "sala_sglang/plugin/draft_model.py"

SPECULATION = (
    Mistake(
        "verify: every row starts from the state before the step",
        f"{_VERIFY}/triton.py",
        "b_state = next_state(b_state, b_k, b_v.to(tl.float32), log_decay)",
        "b_state = b_state if i > 0 else next_state(b_state, b_k, b_v.to(tl.float32), log_decay)",
        f"{_KERNEL_TESTS}::test_rows_and_states_are_those_of_decode_steps",
    ),
    Mistake(
        "verify: programs of a head keep each other's share of k",
        f"{_VERIFY}/triton.py",
        "is_mine = o_dim // BV == tl.program_id(0)",
        "is_mine = o_dim // BV == 0",
        f"{_KERNEL_TESTS}::test_rows_and_states_are_those_of_decode_steps",
    ),
    Mistake(
        "commit: one row too many",
        f"{_COMMIT}/triton.py",
        "for i in range(rows):",
        "for i in range(rows + 1):",
        f"{_KERNEL_TESTS}::test_rows_and_states_are_those_of_decode_steps",
    ),
    Mistake(
        "commit: a snapshot a row early",
        f"{_COMMIT}/triton.py",
        "(snapshot_row == i + 1)",
        "(snapshot_row == i + 2)",
        f"{_KERNEL_TESTS}::test_a_snapshot_is_the_state_after_its_row",
    ),
    Mistake(
        "commit: requests that are gone are committed to the first slot",
        f"{_COMMIT}/triton.py",
        " slot = tl.load(p_state_slots + i_request)",
        " slot = tl.maximum(tl.load(p_state_slots + i_request), 0)",
        f"{_KERNEL_TESTS}::test_padding_and_foreign_slots",
    ),
    Mistake(
        "plan: drafts reach behind the end of the context",
        _PLAN,
        "attended = ends.clamp(max=max_context_len)",
        "attended = ends",
        f"{_PLAN_TESTS}::test_drafts_behind_the_end_of_the_context_stay_within_bounds",
    ),
    Mistake(
        "plan: rows of a request all attend to its end",
        _PLAN,
        "ends = batch.seq_lens[:, None] + torch.arange(1, rows + 1, device=device)",
        "ends = batch.seq_lens[:, None] + torch.full((rows,), rows, device=device)",
        f"{_PLAN_TESTS}::test_each_row_of_a_verify_step_is_the_decode_step_at_its_position",
    ),
    Mistake(
        "drafts: the shortest match wins",
        _PROPOSER,
        "equal.cumprod(1).sum(1).argmax()",
        "equal.cumprod(1).sum(1).argmin()",
        f"{_PROPOSER_TESTS}::test_longer_suffix_wins_over_a_later_one",
    ),
    Mistake(
        "drafts: tokens that are added are found a token late",
        _PROPOSER,
        "first = max(GRAM_TOKENS, begin + 1)",
        "first = max(GRAM_TOKENS, begin + 2)",
        f"{_PROPOSER_TESTS}::test_at_once_and_by_tokens_find_equally_long_matches",
    ),
    Mistake(
        "drafts: what was not verified is not looked back at",
        "sala_sglang/speculation/drafts.py",
        "outlook.look_back(tokens)",
        "outlook.size = len(tokens)",
        f"{_DRAFT_TESTS}::test_wrong_drafts_are_no_longer_verified_and_right_ones_are_again",
    ),
    Mistake(
        "refusals: a penalty passes with speculation",
        "sala_sglang/plugin/speculation.py",
        "if value is not None and value != allowed:",
        "if value is not None and value > 9:",
        f"{_SERVER_TESTS}::test_fields_of_requests_that_verification_blurs_are_refused",
    ),
    Mistake(
        "sampling on a CPU: a rejected draft may be drawn again",
        "sala_sglang/plugin/cpu_speculation.py",
        "left[draft] = 0",
        "left[draft] = left[draft]",
        f"{_SERVER_TESTS}::test_sampled_tokens_have_the_target_s_distribution",
    ),
    Mistake(
        "speculation: of accepted rows the last one is not committed",
        _BACKEND,
        "backend.commit(last_correct_step_indices + 1, slots, rows)",
        "backend.commit(last_correct_step_indices.clamp(min=1), slots, rows)",
        f"{_SERVED_TESTS}::test_right_until_some_row[2]",
    ),
    Mistake(
        "speculation: a snapshot of the row before",
        _BACKEND,
        "backend._translate_mamba_indices(slots), rows + 1",
        "backend._translate_mamba_indices(slots), rows.clamp(min=0)",
        f"{_SERVED_TESTS}::test_next_turns_on_pages_and_snapshots_that_verify_steps_wrote[4]",
    ),
    Mistake(
        "speculation: a step of one row is read as one of all rows",
        _WORKER,
        "speculative_num_draft_tokens=max(1, len(next_tokens) // max(1, len(counts)))",
        "speculative_num_draft_tokens=self.rows",
        f"{_SERVED_TESTS}::test_single_rows_and_chains_in_turn",
    ),
    Mistake(
        "speculation: drafts are not held against the grammar",
        _WORKER,
        "self._grammar_mask(batch, tokens) if batch.has_grammar else None",
        "None",
        f"{_SERVED_TESTS}::test_grammar",
    ),
    Mistake(
        "draft models: the layer behind the one that a head names is captured",
        "sala_sglang/models/captured.py",
        "tuple(index + 1 for index in given)",
        "tuple(index + 2 for index in given)",
        f"{_MODEL_TESTS}::test_layers_that_are_captured",
    ),
    Mistake(
        "draft models: their keys and values take no memory",
        _MODEL,
        "configurator._cell_size = own + of_draft",
        "configurator._cell_size = own",
        f"{_MODEL_TESTS}::test_a_token_takes_the_draft_model_s_own_bytes",
    ),
    Mistake(
        "draft models: a head drafts as a dense model",
        _MODEL,
        "(algorithm == HEAD) != (architecture == HEAD_ARCHITECTURE)",
        "algorithm == HEAD and architecture != HEAD_ARCHITECTURE",
        f"{_MODEL_TESTS}::test_what_cannot_be_served_is_refused",
    ),
    Mistake(
        "draft models: a head without one of its tensors is served",
        _MODEL,
        "if missing and head not in _whole:",
        "if missing and head in _whole:",
        f"{_MODEL_TESTS}::test_a_head_whose_checkpoint_lacks_a_tensor_is_refused",
    ),
    Mistake(
        "draft models: they compute in the dtype of their own checkpoint",
        _MODEL,
        "config.dtype = _served[SALAConfig]",
        "config.dtype = config.dtype",
        f"{_MODEL_TESTS}::test_a_draft_model_follows_the_served_one",
    ),
    Mistake(
        "draft models: float32 is taken on a GPU",
        _MODEL,
        'GPU_DTYPES = "auto",',
        'GPU_DTYPES = "auto", "float32",',
        f"{_MODEL_TESTS}::test_a_draft_model_on_a_gpu_has_sixteen_bits",
    ),
    Mistake(
        "draft models: new weights of the served model are written into them",
        _MODEL,
        '"target" if selector == "all" else selector',
        "selector",
        f"{_MODEL_TESTS}::test_new_weights_are_the_served_model_s_unless_the_draft_is_named",
    ),
    Mistake(
        "draft models: embeddings reach them",
        "sala_sglang/plugin/speculation.py",
        "if algorithm in draft_model.ALGORITHMS:\n        draft_model.check_message",
        "if algorithm not in draft_model.ALGORITHMS:\n        draft_model.check_message",
        f"{_SERVER_TESTS}::test_embeddings_are_refused_with_a_draft_model_alone",
    ),
    Mistake(
        "draft models on a CPU: a step does not see the one before",
        "sala_sglang/speculation/torch_steps.py",
        "lengths + self.ahead",
        "lengths + 1",
        "tests/speculation/test_torch_steps.py::test_a_step_attends_to_those_before_it",
    ),
)
