"""Groups of 2, 4 and 8 ranks hold the released tensors and compute, operator by operator, what one rank computes.

The same ranks in pipeline stages compute it bit by bit.

The head counts are the released ones: 32 query, 2 KV and 32 lightning heads, so a rank's query heads are a group of 16
and a half or a quarter of one.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sala_sglang.checkpoint.make import TINY_CONFIG, write_weights
from sala_sglang.checkpoint.tokenizer import make_tokenizer
from sala_sglang.config import LIGHTNING, SPARSE, SALAConfig
from sala_sglang.hf import MiniCPMSALAForCausalLM
from testing import fork_server
from testing.server import server_environment
from tests.parallel.ranks import DECODE_STEPS, FIRST_CHUNK, PROMPT_TOKENS, prompts

GROUPS = (2, 4, 8)
STAGES = ((1, 4), (2, 2))  # tensor-parallel ranks, and stages of them
STEPS = 2 + DECODE_STEPS  # two chunks, and tokens
QUERY_HEADS, KV_HEADS, HEAD_DIM = 32, 2, 16
CONFIG = TINY_CONFIG | {
    "num_attention_heads": QUERY_HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "lightning_nh": 32,
    "lightning_nkv": 32,
    "lightning_head_dim": HEAD_DIM,
    "num_hidden_layers": 5,
    "mixer_types": [SPARSE, LIGHTNING, SPARSE, LIGHTNING, SPARSE],  # a sparse one comes last, as in the released model
}
MERGED = {
    SPARSE: {"qkvg_proj": ("q_proj", "k_proj", "v_proj", "o_gate"), "gate_up_proj": ("gate_proj", "up_proj")},
    LIGHTNING: {"qkvg_proj": ("q_proj", "k_proj", "v_proj", "z_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
}


@dataclass(frozen=True)
class Runs:
    """ranks: what every rank of a group has recorded, by its tensor-parallel ranks and its stages; see run_rank."""

    checkpoint: Path
    ranks: dict[tuple[int, int], list[dict]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    checkpoint, out = tmp_path_factory.mktemp("heads"), tmp_path_factory.mktemp("ranks")
    config = SALAConfig(architectures=["MiniCPMSALAForCausalLM"], dtype="bfloat16", **CONFIG)
    config.save_pretrained(checkpoint)
    make_tokenizer(checkpoint, 510, 510, 511)
    write_weights(config, checkpoint, shards=1, seed=0)
    groups = {
        f"{ranks}x{stages}": (ranks, stages) for ranks, stages in (*((size, 1) for size in (1, *GROUPS)), *STAGES)
    }
    command = ["-m", "tests.parallel.ranks", str(checkpoint), str(out), *groups]
    # SGLang compiles its embedding under tensor parallelism, which takes a C++ compiler and longer than all the rest.
    environment = server_environment({"TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""})
    done = fork_server.run_to_end(command, environment, timeout=None)  # it notices when ranks stall
    assert done.returncode == 0, done.stderr[-8000:]
    ranks = {
        group: [torch.load(out / name / f"{rank}.pt") for rank in range(group[0] * group[1])]
        for name, group in groups.items()
    }
    return Runs(checkpoint, ranks)


@pytest.fixture(scope="module")
def one(runs) -> dict:
    (alone,) = runs.ranks[1, 1]
    return alone


@pytest.fixture(params=GROUPS, ids=lambda size: f"{size} ranks")
def group(request, runs) -> list[dict]:
    return runs.ranks[request.param, 1]


@pytest.fixture(scope="module")
def exact_logits(runs, one) -> list[torch.Tensor]:
    """Logits [2, vocabulary] of the plain model in float64, after the prompts and after the tokens of one rank."""
    model = MiniCPMSALAForCausalLM.from_pretrained(runs.checkpoint, dtype=torch.float64).eval()
    steps: list[list[torch.Tensor]] = [[] for _ in range(DECODE_STEPS + 1)]
    for request, tokens in enumerate(prompts()):
        cache = None
        for step, logits in enumerate(steps):
            with torch.no_grad():
                output = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
            logits.append(output.logits[0, -1])
            tokens, cache = [int(one["tokens"][step][request])], output.past_key_values
    return [torch.stack(logits) for logits in steps]


@pytest.fixture(scope="module")
def tolerance(one, exact_logits) -> float:
    """How far two float32 runs may be apart: four times the error of one rank's logits against float64.

    Both have an error of that size, and tensors inside the model up to twice that of the logits.
    """
    return 4 * max(map(difference, one["logits"], exact_logits))


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖."""
    assert actual.shape == expected.shape
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm())


def joined(group: list[dict], name: str, dimension: int) -> list[torch.Tensor]:
    """The ranks' parts of every tensor ``name`` side by side."""
    return [torch.cat(parts, dimension) for parts in zip(*(rank[name] for rank in group), strict=True)]


def held_heads(rank: int, size: int) -> slice:
    """KV heads of the model that ``rank`` of ``size`` holds: its share, or the one that its query heads use."""
    first = rank * KV_HEADS // size
    return slice(first, first + max(1, KV_HEADS // size))


def shard(name: str, tensor: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The part of a released tensor that ``rank`` of ``size`` must hold."""
    kind = name.split(".")[-2]
    if kind in ("k_proj", "v_proj") and tensor.shape[0] == KV_HEADS * HEAD_DIM:
        return tensor.unflatten(0, (KV_HEADS, -1))[held_heads(rank, size)].flatten(0, 1)
    if kind in ("o_proj", "down_proj"):
        return tensor.chunk(size, dim=1)[rank]
    if tensor.ndim == 1 and kind != "o_norm":
        return tensor
    return tensor.chunk(size)[rank]


def by_released_names(parameters: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """The parameters of a rank, merged ones cut into their parts."""
    found = {}
    for name, parameter in parameters.items():
        merged = name.split(".")[-2]
        layer = CONFIG["mixer_types"][int(name.split(".")[2])] if ".layers." in name else SPARSE
        kinds = MERGED[layer].get(merged, (merged,))
        rows = [parameter.shape[0] // len(kinds)] * len(kinds)
        if (layer, merged) == (SPARSE, "qkvg_proj"):
            query, kv = QUERY_HEADS // size * HEAD_DIM, max(1, KV_HEADS // size) * HEAD_DIM
            rows = [query, kv, kv, query]
        for kind, part in zip(kinds, parameter.split(rows), strict=True):
            found[name.replace(merged, kind)] = part
    return found


def test_ranks_hold_their_parts_of_the_released_tensors(runs, group):
    released = load_file(runs.checkpoint / "model-00001-of-00001.safetensors")
    for rank, result in enumerate(group):
        held = by_released_names(result["parameters"], len(group))
        assert held.keys() == released.keys()
        for name, tensor in released.items():
            assert torch.equal(held[name], shard(name, tensor, rank, len(group)).float()), (rank, name)


def test_slopes_belong_to_the_heads(group):
    slopes = SALAConfig(**CONFIG).lightning_geometry.log_decay()
    assert torch.equal(torch.cat([rank["log_decay"] for rank in group]), slopes)


@pytest.mark.parametrize("name", ["keys", "values", "compressed"])
def test_kv_heads_and_compressed_keys(group, one, tolerance, name):
    """[slots or pages, Hkv, …]: every rank has the head that its query heads use, and copies are equal bit by bit."""
    for rank, result in enumerate(group):
        held = held_heads(rank, len(group))
        first = held.start * len(group) // KV_HEADS
        for pool, copy, whole in zip(result[name], group[first][name], one[name], strict=True):
            assert difference(pool, whole[:, held]) < tolerance
            assert torch.equal(pool, copy)


def test_ranks_select_for_whole_groups_and_alike(group, one, tolerance):
    """Blocks are those of one rank, on every rank; the selection sees all query heads of a KV head."""
    for rank, result in enumerate(group):
        held = held_heads(rank, len(group))
        for blocks, whole in zip(result["select_blocks"], one["select_blocks"], strict=True):
            assert torch.equal(blocks, whole[:, held])
        for queries, whole in zip(result["group_queries"], one["group_queries"], strict=True):
            assert difference(queries, whole.unflatten(1, (KV_HEADS, -1))[:, held].flatten(1, 2)) < tolerance


def test_the_selection_has_a_choice(one):
    """At the end of the sparse prompt the KV heads select 6 of 11 blocks, and not the same ones."""
    row = PROMPT_TOKENS[0] - FIRST_CHUNK[0] - 1
    chosen = [blocks[row] for blocks in one["select_blocks"] if len(blocks) > row and (blocks[row] >= 0).all()]
    assert len(chosen) == 2  # sparse layers that compute this row
    assert any(not torch.equal(*blocks) for blocks in chosen)


def test_the_last_layer_computes_the_last_rows(one):
    """Of every step the last layer attends, selects and multiplies for one row per request, and the others for all."""
    sparse, layers = CONFIG["mixer_types"].count(SPARSE), CONFIG["num_hidden_layers"]
    for name, count in (("select_blocks", sparse), ("sparse_attention", sparse), ("mlp_output", layers)):
        *others, last = ({len(output) for output in one[name][index::count]} for index in range(count))
        assert last == {len(PROMPT_TOKENS)}
        assert all(max(rows) > len(PROMPT_TOKENS) for rows in others)


@pytest.mark.parametrize("name", ["sparse_attention", "lightning_chunk", "lightning_step", "gated_norm"])
def test_outputs_of_the_heads(group, one, tolerance, name):
    """[T, H, D], and the columns [T, W] of gated_norm."""
    for parts, whole in zip(joined(group, name, 1), one[name], strict=True):
        assert difference(parts, whole) < tolerance


def test_recurrent_states_are_divided_by_head(group, one, tolerance):
    for parts, whole in zip(joined(group, "states", 1), one["states"], strict=True):
        assert difference(parts, whole) < tolerance


def test_output_norm_spans_the_full_width(group, one, tolerance):
    """Every rank divides by the mean of squares over all heads; the ranks add it up in units of 16 bytes."""
    for result in group:
        for mean, first, whole in zip(result["mean_square"], group[0]["mean_square"], one["to_norm"], strict=True):
            assert torch.equal(mean, first)
            assert difference(mean, whole.double().square().mean(1)) < tolerance
        assert all(part.nbytes % 16 == 0 for part in result["mean_square_part"])


@pytest.mark.parametrize("name", ["mixer_output", "mlp_output", "logits", "tokens"])
def test_ranks_go_on_alike(group, one, tolerance, name):
    """What the ranks add to the residual stream, and so what follows, is the same on all of them bit by bit."""
    for result in group:
        for tensor, first, whole in zip(result[name], group[0][name], one[name], strict=True):
            assert torch.equal(tensor, first)
            assert difference(tensor, whole) < tolerance


def test_logits_are_as_exact_as_those_of_one_rank(group, one, exact_logits):
    errors = [max(map(difference, run["logits"], exact_logits)) for run in (group[0], one)]
    assert errors[0] < 2 * errors[1]


@pytest.fixture(scope="module", params=STAGES, ids=lambda group: f"{group[0]} ranks in {group[1]} stages")
def stages(request, runs) -> list[tuple[dict, list[dict]]]:
    """What every tensor-parallel rank has recorded with the whole model, and what with the layers of every stage."""
    ranks, _ = request.param
    return [(whole, runs.ranks[request.param][rank::ranks]) for rank, whole in enumerate(runs.ranks[ranks, 1])]


def in_order(parts: list[dict], name: str) -> list[torch.Tensor]:
    """Tensors of the stages' layers in the order in which one stage computes them, step by step."""
    counts = [len(part[name]) // STEPS for part in parts]
    return [
        tensor
        for step in range(STEPS)
        for part, count in zip(parts, counts, strict=True)
        for tensor in part[name][count * step : count * (step + 1)]
    ]


def test_stages_compute_bit_by_bit_what_one_computes(stages):
    for whole, parts in stages:
        for name in ("mixer_output", "mlp_output"):
            given = in_order(parts, name)
            assert len(given) == len(whole[name])
            assert all(map(torch.equal, given, whole[name])), name
        for name in ("tokens", "logits"):
            assert all(map(torch.equal, parts[-1][name], whole[name])), name


def test_stages_hold_the_pools_of_their_layers(stages):
    for whole, parts in stages:
        for name in ("keys", "values", "compressed", "states"):
            given = [pool for part in parts for pool in part.get(name, ())]
            assert len(given) == len(whole[name])
            assert all(map(torch.equal, given, whole[name])), name


def test_stages_may_have_layers_of_one_kind(runs):
    held = [tuple(len(part.get(name, ())) for name in ("keys", "states")) for part in runs.ranks[1, 4]]
    assert held == [(1, 0), (0, 1), (1, 0), (1, 1)]


def test_stages_hold_their_parts_of_the_model(stages):
    for whole, parts in stages:
        given = {name: tensor for part in parts for name, tensor in part["parameters"].items()}
        assert sum(len(part["parameters"]) for part in parts) == len(given)
        assert given.keys() == whole["parameters"].keys()
        assert all(torch.equal(tensor, whole["parameters"][name]) for name, tensor in given.items())
