"""Speculation: what is refused, its defaults, its memory, and verification on a machine without CUDA."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from sglang.srt import runtime_context
from sglang.srt.sampling.sampling_params import SamplingParams

from sala_sglang.config import SALAConfig
from sala_sglang.plugin import cpu_speculation, speculation
from tests.plugin.processes import resolve

NGRAM = "--speculative-algorithm NGRAM"
# Arguments, what is named, and what is allowed instead.
REFUSED = {
    "--speculative-algorithm eagle": ("speculative_algorithm = 'EAGLE'", "None, 'NGRAM', 'EAGLE3', 'STANDALONE'"),
    "--speculative-algorithm DFLASH": ("speculative_algorithm = 'DFLASH'", "None, 'NGRAM', 'EAGLE3', 'STANDALONE'"),
    "--speculative-draft-model-path x": ("speculative_draft_model_path = 'x'", "None"),
    f"{NGRAM} --speculative-draft-model-path x": ("speculative_draft_model_path = 'x'", "None"),
    f"{NGRAM} --speculative-ngram-max-bfs-breadth 4": ("speculative_ngram_max_bfs_breadth = 4", "1"),
    f"{NGRAM} --speculative-eagle-topk 2": ("speculative_eagle_topk = 2", "None, 1"),
    f"{NGRAM} --speculative-num-draft-tokens 1": ("speculative_num_draft_tokens = 1", "None, 2, 3"),
    f"{NGRAM} --speculative-num-draft-tokens 17": ("speculative_num_draft_tokens = 17", "None, 2, 3"),
    f"{NGRAM} --speculative-accept-threshold-single 0.9": ("speculative_accept_threshold_single = 0.9", "1.0"),
    f"{NGRAM} --speculative-accept-threshold-acc 0.9": ("speculative_accept_threshold_acc = 0.9", "1.0"),
    f"{NGRAM} --speculative-adaptive": ("speculative_adaptive = True", "False"),
    f"{NGRAM} --speculative-use-rejection-sampling": ("speculative_use_rejection_sampling = True", "False"),
    f"{NGRAM} --speculative-ngram-external-corpus-path x": ("speculative_ngram_external_corpus_path = 'x'", "None"),
    f"{NGRAM} --enable-watermark": ("enable_watermark = True", "False"),
    f"{NGRAM} --enable-return-hidden-states": ("enable_return_hidden_states = True", "False"),
    f"{NGRAM} --enable-lora --max-lora-rank 8 --lora-target-modules q_proj": ("enable_lora = True", "None, False"),
}


@pytest.fixture(scope="module")
def refusals(tiny_checkpoint) -> dict[str, str]:
    found = resolve([f"--model {tiny_checkpoint} --device cpu {arguments}" for arguments in REFUSED])
    return {arguments: one.get("error", "no error") for arguments, one in zip(REFUSED, found, strict=True)}


@pytest.mark.parametrize("arguments", REFUSED)
def test_arguments_that_cannot_be_served_are_refused(refusals, arguments):
    named, allowed = REFUSED[arguments]
    assert f"MiniCPM-SALA: {named} is not supported (" in refusals[arguments]
    assert f"allowed: {allowed}" in refusals[arguments]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"speculative_algorithm": None}, {}),
        ({"speculative_algorithm": "ngram"}, {"speculative_num_draft_tokens": 4}),
        ({"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": 8}, {}),
    ],
)
def test_defaults(given, expected):
    chain = {"speculative_ngram_max_bfs_breadth": 1} if given["speculative_algorithm"] else {}
    assert speculation.defaults(given.get) == expected | chain


@pytest.fixture
def speculating(monkeypatch):
    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm="NGRAM"))


def message(processor: str | None = None, **sampling) -> SimpleNamespace:
    parameters = SamplingParams(**sampling)
    none = dict.fromkeys(("input_embeds", "positional_embed_overrides"))
    return SimpleNamespace(sampling_params=parameters, custom_logit_processor=processor, **none)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("min_p", 0.1, "0.0"),
        ("frequency_penalty", -0.5, "0.0"),
        ("presence_penalty", 0.5, "0.0"),
        ("repetition_penalty", 1.1, "1.0"),
        ("min_new_tokens", 1, "0"),
    ],
)
def test_fields_of_requests_that_verification_blurs_are_refused(speculating, monkeypatch, field, value, allowed):
    with pytest.raises(ValueError, match=f"{field} = {value} is not supported with .*; allowed: {allowed}"):
        speculation.check_message(message(**{field: value}))
    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None))
    speculation.check_message(message(**{field: value}))


def test_other_requests_are_served(speculating):
    speculation.check_message(message(temperature=0.7, top_p=0.9, top_k=5, logit_bias={"5": 1.0}, json_schema="{}"))
    with pytest.raises(ValueError, match="custom_logit_processor is not supported with speculative decoding"):
        speculation.check_message(message("a processor"))


@pytest.mark.parametrize("field", ["input_embeds", "positional_embed_overrides"])
def test_embeddings_are_refused_with_a_draft_model_alone(speculating, monkeypatch, field):
    given = message()
    setattr(given, field, [[0.0]])
    speculation.check_message(given)
    monkeypatch.setattr(runtime_context, "get_spec", lambda: SimpleNamespace(speculative_algorithm="EAGLE3"))
    speculation.check_message(message())
    with pytest.raises(ValueError, match=f"{field} is not supported with a draft model"):
        speculation.check_message(given)


def test_memory_of_a_verify_step_is_that_of_its_rows(monkeypatch):
    """384 KiB per row of the released model in bfloat16, where a state per row would be 48 MiB."""
    values = {
        "get_parallel": SimpleNamespace(attn_tp_size=1),
        "get_schedule": SimpleNamespace(max_running_requests=48),
        "get_spec": SimpleNamespace(speculative_num_draft_tokens=4),
    }
    for name, value in values.items():
        monkeypatch.setattr(runtime_context, name, lambda value=value: value)
    model = SimpleNamespace(hf_config=SALAConfig(), dtype=torch.bfloat16)
    left = speculation.leave_memory_for_stash(lambda _, rest: rest - 1, SimpleNamespace(model_config=model), 40.0)
    assert 39.0 - left == 48 * 4 * 384 / 2**20
    assert speculation.no_state_per_draft(lambda: False)


def test_slots_are_written_to_each_request_s_row():
    table = torch.zeros(3, 8, dtype=torch.int32)
    rows, start, end = torch.tensor([2, 0]), torch.tensor([1, 4]), torch.tensor([3, 8])
    cpu_speculation.assign_slots(rows, table, start, end, torch.arange(10, 16), 2)
    assert table.tolist() == [[0, 0, 0, 0, 12, 13, 14, 15], [0] * 8, [0, 10, 11, 0, 0, 0, 0, 0]]


def outputs(requests: int, rows: int) -> dict[str, torch.Tensor]:
    return {
        "predicts": torch.zeros(requests * rows, dtype=torch.int32),
        "accept_index": torch.full((requests, rows), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(requests, dtype=torch.int32),
    }


def test_greedy_drafts_are_accepted_up_to_the_first_wrong_one():
    candidates = torch.tensor([[1, 2, 3, 4], [1, 9, 3, 4], [1, 2, 9, 4], [1, 2, 3, 9]])
    predicted = torch.tensor([2, 3, 4, 5]).expand(4, 4)
    written = outputs(4, 4)
    cpu_speculation.accept_greedily(**written, candidates=candidates, target_predict=predicted, topk=-1)
    assert written["accept_token_num"].tolist() == [3, 0, 1, 2]
    assert written["accept_index"].tolist() == [[0, 1, 2, 3], [4, -1, -1, -1], [8, 9, -1, -1], [12, 13, 14, -1]]
    assert written["predicts"].tolist() == [2, 3, 4, 5] * 4


@pytest.mark.parametrize("draft", range(3))
def test_sampled_tokens_have_the_target_s_distribution(draft):
    """Over a grid of all uniform numbers, whatever the draft is: within the width of its cells."""
    probabilities, cells = torch.tensor([0.2, 0.5, 0.3]), 50
    grid = [(i + 0.5) / cells for i in range(cells)]
    counts = torch.zeros(3)
    target = probabilities.expand(1, 2, 3)
    for coin, final in itertools.product(grid, grid):
        written = outputs(1, 2)
        cpu_speculation.accept_by_chance(
            **written,
            candidates=torch.tensor([[0, draft]]),
            uniform_samples=torch.full((1, 2), coin),
            uniform_samples_for_final_sampling=torch.tensor([final]),
            target_probs=target,
            deterministic=True,
        )
        counts[written["predicts"][0]] += 1
        accepted = int(written["accept_token_num"][0])
        assert accepted == (coin < float(probabilities[draft]))
        assert written["accept_index"][0].tolist() == [0, 1 if accepted else -1]
    assert torch.allclose(counts / cells**2, probabilities, atol=2 / cells)


def test_a_certain_draft_is_never_replaced_and_an_impossible_one_always():
    for draft, accepted in ((1, 1), (0, 0)):
        written = outputs(1, 2)
        cpu_speculation.accept_by_chance(
            **written,
            candidates=torch.tensor([[0, draft]]),
            uniform_samples=torch.tensor([[0.999999, 0.0]]),
            uniform_samples_for_final_sampling=torch.tensor([0.999999]),
            target_probs=torch.tensor([[[0.0, 1.0, 0.0]] * 2]),
        )
        assert written["accept_token_num"].tolist() == [accepted]
        assert written["predicts"].tolist() == [1, 1 if accepted else 0]


def test_top_k_and_top_p():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 2)
    kept = cpu_speculation.keep_top_k(probabilities, torch.tensor([2, 1 << 30]))
    assert torch.allclose(kept, torch.tensor([[0, 4 / 7, 0, 3 / 7], [0.1, 0.4, 0.2, 0.3]]))
    kept = cpu_speculation.keep_top_p(probabilities, torch.tensor([0.35, 0.75]))
    assert torch.allclose(kept, torch.tensor([[0, 1.0, 0, 0], [0, 4 / 9, 2 / 9, 3 / 9]]))
