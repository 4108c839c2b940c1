"""What keeps the prefix cache exact: the keys of dense and sparse prompts, and chunks of whole pages."""

import os
from array import array
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from sglang.srt.mem_cache.radix_cache import RadixKey

from sala_sglang import environment
from sala_sglang.plugin import prefix_cache
from sala_sglang.plugin.prefix_cache import PromptKinds, Snapshots

TOKENS = array("q", range(10, 710))


def key_of(kinds: PromptKinds, prompt_tokens: int, generated: int = 0) -> list[int]:
    """Token ids of the key under which a request's tokens are inserted after ``generated`` more."""
    prompt = TOKENS[:prompt_tokens]
    request = SimpleNamespace(origin_input_ids=prompt, output_ids=array("q"))
    kinds.match(lambda cache, request, ids: RadixKey(ids), None, request, prompt)
    params = SimpleNamespace(key=RadixKey(TOKENS[: prompt_tokens + generated]))
    cache = SimpleNamespace(insert=lambda params: kinds.insert(lambda cache, params: params, None, params))
    kinds.checkpoint(lambda cache, request: cache.insert(params), cache, request)
    return list(params.key.token_ids)


def shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@pytest.mark.parametrize(
    ("one", "other", "tokens"),
    [
        ((511, 0), (512, 0), 384),  # a dense and a sparse prompt
        ((511, 100), (600, 0), 384),  # dense_len was crossed while generating: the next turn is sparse
        ((400, 0), (511, 0), 400),  # both dense
        ((512, 0), (700, 0), 512),  # both sparse
        ((300, 0), (700, 0), 300),  # too short to make a difference
    ],
)
def test_shared_tokens(one, other, tokens):
    kinds = PromptKinds(dense_len=512, selected_tokens=384)
    assert shared(key_of(kinds, *one), key_of(kinds, *other)) == tokens


def looked_up(kinds: PromptKinds, prompt_tokens: int, matched: int, generated: int = 0) -> list[int]:
    """Token ids by which storage is asked for what comes behind the ``matched`` first ones, and these before them."""
    tokens = TOKENS[: prompt_tokens + generated]
    request = SimpleNamespace(origin_input_ids=TOKENS[:prompt_tokens])

    def ask(cache, handle, node, behind, last_hash, matched_prefix_tokens) -> list[int]:
        return [*matched_prefix_tokens, *behind]

    def scheduler(self, request):
        rest, beginning = tokens[matched:], tokens[:matched]
        return kinds.look_up(ask, None, "handle", "node", rest, "hash", matched_prefix_tokens=beginning)

    return kinds.prefetch(scheduler, None, request)


@pytest.mark.parametrize("matched", [0, 64, 384, 448])
@pytest.mark.parametrize(("prompt_tokens", "generated"), [(300, 0), (500, 0), (500, 100), (512, 0), (600, 50)])
def test_storage_is_asked_for_the_keys_of_the_tree(matched, prompt_tokens, generated):
    """A retracted request is looked for with what it had generated, too."""
    kinds = PromptKinds(dense_len=512, selected_tokens=384)
    assert looked_up(kinds, prompt_tokens, matched, generated) == key_of(kinds, prompt_tokens, generated)


@pytest.mark.parametrize("dense_len", [0, 384, environment.NEVER_SPARSE])
def test_nothing_is_kept_apart_where_there_is_one_kind(dense_len):
    kinds = PromptKinds(dense_len, selected_tokens=384)
    assert key_of(kinds, 500, 100) == list(TOKENS[:600])


def test_other_parts_of_a_key_stay():
    kinds = PromptKinds(dense_len=512, selected_tokens=384)
    request = SimpleNamespace(origin_input_ids=TOKENS[:500])
    marked = kinds.mark(RadixKey(TOKENS[:500], "tenant", limit=450, cache_salt="salt"), request)
    assert (marked.extra_key, marked.limit, marked.cache_salt, len(marked)) == ("tenant", 450, "salt", 450)
    assert list(marked.token_ids[:384]) == list(TOKENS[:384])
    assert all(a != b for a, b in zip(marked.token_ids[384:], TOKENS[384:], strict=False))


def test_requests_outside_a_checkpoint_are_inserted_as_they_are():
    kinds = PromptKinds(dense_len=512, selected_tokens=384)
    params = SimpleNamespace(key=RadixKey(TOKENS))
    assert kinds.insert(lambda cache, params: params.key, None, params).token_ids is TOKENS


def test_chunks_are_cut_at_pages():
    adder = SimpleNamespace()
    Snapshots(64, 8192).cut_at_pages(lambda adder, grid: setattr(adder, "mamba_chunk_grid", grid), adder, 1)
    assert adder.mamba_chunk_grid == 64


class Entry(NamedTuple):
    track_mask: bool
    track_position: int
    track_seqlen: int


# (tokens before the chunk, tokens of the chunk in whole pages, where prompts part, whether a snapshot is left)
CHUNKS = {
    "passes a multiple of the spacing": (192, 128, None, True),
    "between two multiples": (256, 128, None, False),
    "ends on a multiple": (384, 128, None, True),
    "leaves less than a page of the prompt": (896, 64, None, True),
    "leaves a page of the prompt": (832, 64, None, False),
    "prompts part there": (256, 64, 320, True),
    "starts inside a page": (189, 128, None, False),
}


@pytest.mark.parametrize(("prefix", "tokens", "parting", "kept"), CHUNKS.values(), ids=CHUNKS)
def test_chunks_that_leave_a_snapshot(prefix, tokens, parting, kept):
    depth = prefix + tokens
    request = SimpleNamespace(
        prefix_len=prefix,
        origin_input_ids=range(900),
        output_ids=range(100),  # retracted: prefilled again
        mamba_branching_seqlen=parting,
        kv=SimpleNamespace(mamba_last_track_seqlen=depth),
    )
    entry = Snapshots(64, spacing=256).track(lambda batch, request: Entry(True, 1, depth), None, request)
    assert entry == (Entry(True, 1, depth) if kept else Entry(False, 1, -1))
    assert request.kv.mamba_last_track_seqlen == (depth if kept else None)


@pytest.mark.parametrize("value", ["0", "-1", "4K", ""])
def test_impossible_spacing_is_refused(monkeypatch, value):
    monkeypatch.setenv("SALA_SNAPSHOT_SPACING", value)
    with pytest.raises(ValueError, match=f"SALA_SNAPSHOT_SPACING = '{value}' .* allowed: a positive number"):
        environment.snapshot_spacing_tokens()


def test_a_retracted_request_keeps_the_kind_of_its_prompt():
    """What it had generated is prefilled again, but does not count as prompt."""
    retracted = SimpleNamespace(origin_input_ids=TOKENS[:500], output_ids=TOKENS[500:530])
    batch = SimpleNamespace(reqs=[retracted], orig_seq_lens=torch.tensor([530], dtype=torch.int32))
    PromptKinds(dense_len=512, selected_tokens=384).prepare_for_extend(lambda batch: None, batch)
    assert batch.orig_seq_lens.tolist() == [500] and batch.orig_seq_lens.dtype == torch.int32


@pytest.fixture
def choice(monkeypatch):
    """What is chosen with a version of torch, for a wheel that requires torch 2.14.1."""
    monkeypatch.setattr(prefix_cache, "requires", lambda package: ["numpy", "torch==2.14.1", "torchvision"])

    def choose(torch_version: str, chosen: str | None = None) -> str | None:
        monkeypatch.delenv(prefix_cache.TREE_VARIABLE, raising=False)
        if chosen:
            monkeypatch.setenv(prefix_cache.TREE_VARIABLE, chosen)
        monkeypatch.setattr(prefix_cache, "version", lambda package: torch_version)
        prefix_cache.use_python_tree_with_another_torch()
        return os.environ.get(prefix_cache.TREE_VARIABLE)

    return choose


def test_python_with_another_torch(choice, caplog):
    assert choice("2.11.0+cu130") == "python"
    assert "torch 2.11.0+cu130 is not what SGLang was built for (==2.14.1)" in caplog.text


@pytest.mark.parametrize("installed", ["2.14.1", "2.14.1+cu130", "2.14.1+cpu"])
def test_sglangs_choice_with_its_own_torch(choice, installed):
    assert choice(installed) is None


def test_the_users_choice_stays(choice):
    assert choice("2.11.0", chosen="rust") == "rust"


def test_sglang_requires_a_torch(monkeypatch):
    monkeypatch.delenv(prefix_cache.TREE_VARIABLE, raising=False)
    prefix_cache.use_python_tree_with_another_torch()
    assert prefix_cache.TREE_VARIABLE not in os.environ  # the test environment has the torch that SGLang requires
