"""The kernel benchmark without a GPU: floors counted by hand, inputs, checks, the report, and a run at tiny sizes."""

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sala_kernels.layout import SparseGeometry
from sala_kernels.select_blocks import select_blocks

from benchmarks.operators.cases import row_wise, sparse
from benchmarks.operators.harness import floors
from benchmarks.operators.harness.case import Case, Target, Work
from benchmarks.operators.harness.checks import check_rows, check_selection, sampled_rows
from benchmarks.operators.harness.floors import Floor
from benchmarks.operators.harness.inputs import Setting, block_lists
from benchmarks.operators.harness.report import COLUMNS, Results, Row, verdicts
from benchmarks.operators.harness.sizes import RELEASED, TINY
from benchmarks.operators.harness.timing import Timing
from benchmarks.operators.run import Run, all_cases, choose
from testing.server import START_SECONDS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SETTING = Setting(TINY, CPU, cache_bytes=0)
ON_GPU = replace(SETTING, device=torch.device("cuda"))
GEOMETRIES = [TINY.geometry, RELEASED.geometry, replace(TINY.geometry, kernel_size=4, init_blocks=0)]
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def windows(tokens: int, factor: int, geometry: SparseGeometry) -> list[range]:
    """All windows of the first ``tokens`` tokens, as ranges of tokens."""
    size, stride = factor * geometry.kernel_size, factor * geometry.kernel_stride
    return [range(begin, begin + size) for begin in range(0, tokens - size + 1, stride)]


@geometries
@pytest.mark.parametrize("position", [0, 7, 8, 15, 63, 64, 127, 128, 700, 6143, 6144, 7000])
def test_windows_of_a_row(geometry, position):
    fine, coarse = (windows(position + 1, factor, geometry) for factor in (1, 4))
    assert floors.visible_rows(position, geometry) == (len(fine), len(coarse))
    free = range(geometry.init_blocks, position // geometry.block_size - geometry.local_blocks)
    touches = [any(token // geometry.block_size in free for token in (w[0], w[-1])) for w in fine]
    assert floors.scored_rows(position, geometry) == sum(touches)


def test_floor_of_selection():
    position = 2**20 - 1
    step = floors.select_blocks([(2**20, 1)], RELEASED)
    assert floors.visible_rows(position, RELEASED.geometry) == (65_535, 16_383)
    assert step.operations == 2 * 128 * 32 * (65_535 + 16_383)
    # Blocks 1 to 16,350 are free; one window more reaches into the last of them.
    assert step.read_bytes == 2 * 128 * (32 + 2 * (16_350 * 4 + 1 + 16_383))
    assert step.written_bytes == 2 * 96 * 4
    # Rows up to token 6,144 take every block: their lists are written and nothing is read.
    assert floors.select_blocks([(6144, 100)], RELEASED) == Floor(0, 100 * 2 * 96 * 4, 0)
    chunk, last = (floors.select_blocks([(6145, rows)], RELEASED) for rows in (100, 1))
    assert (chunk.read_bytes, chunk.operations) == (last.read_bytes, last.operations)
    both = floors.select_blocks([(2**20, 1), (6145, 1)], RELEASED)
    assert both == step + last


@pytest.mark.parametrize("length", [1, 64, 65, 6144, 6145, 6208, 131_072])
def test_tokens_that_a_row_attends_to(length):
    current = (length - 1) // 64
    blocks = range(max(0, current - 95), current + 1)
    assert floors.listed_blocks(length - 1, RELEASED.geometry) == len(blocks)
    expected = sum(min(64, length - 64 * block) for block in blocks)
    assert floors.listed_tokens(length - 1, RELEASED.geometry) == expected


def test_floors_of_attention():
    chunk = floors.sparse_attention(range(122_880, 131_072), 2 * 2048 * 64, RELEASED)
    assert chunk.operations == 8192 * 96 * 64 * 4 * 128 * 32
    assert chunk.read_bytes == 8192 * (32 * 128 * 2 + 2 * 96 * 4) + 2 * 2 * 2048 * 64 * 128 * 2
    assert chunk.written_bytes == 8192 * 32 * 128 * 2
    step = floors.sparse_attention_step([100, 131_072], RELEASED)
    assert step.read_bytes == 2 * (32 * 128 * 2 + 2 * 96 * 4) + 2 * 2 * (100 + 6144) * 128 * 2
    dense = floors.dense_attention(3, RELEASED)
    assert dense == Floor(3 * 8192 + 2 * 3 * 2 * 128 * 2, 3 * 8192, 4 * 128 * 32 * (1 + 2 + 3))


@geometries
def test_floor_of_compression(geometry):
    sizes = replace(TINY, geometry=geometry)
    row_bytes = sizes.kv_heads * sizes.head_dim * 2
    for length, rows in [(1, 1), (8, 1), (9, 1), (128, 1), (128, 128), (200, 5), (640, 320), (6144, 1)]:
        ended = [w for factor in (1, 4) for w in windows(length, factor, geometry) if w[-1] >= length - rows]
        tokens = set().union(*ended)
        floor = floors.compress_keys([(length, rows)], sizes)
        assert floor == Floor(len(tokens) * row_bytes, len(ended) * row_bytes)


def test_floors_of_states_rows_and_ceilings():
    state = 32 * 128 * 128 * 4
    assert state == 2 * 2**20
    assert floors.lightning_step(3, RELEASED) == Floor(3 * state, 3 * state, 4 * 3 * 32 * 128 * 128)
    row = 32 * 128 * 2
    verify = Floor(3 * state + 3 * 12 * row, 3 * 12 * row, 4 * 12 * 32 * 128 * 128)
    assert floors.lightning_verify(3, 4, RELEASED) == verify
    assert floors.lightning_commit(3, 24, RELEASED).read_bytes == 72 * state
    chunk = floors.lightning_chunk([512, 100], RELEASED)
    assert chunk == Floor(3 * 612 * 8192 + 2 * state, 612 * 8192 + 2 * state, 4 * 612 * 32 * 128 * 128)
    assert floors.row_wise(10, 4096, read=2, written=1) == Floor(2 * 10 * 8192, 10 * 8192)
    assert floors.matmul(8192) == Floor(2 * 2**27, 2**27, 2 * 2**39)
    assert floors.product(2, 3, 5) == Floor(2 * (2 + 5) * 3, 2 * 2 * 5, 2 * 2 * 3 * 5)
    assert floors.copy(5).moved_bytes == 10


def test_lengths_of_the_mixed_step():
    lengths = RELEASED.mixed_lengths
    assert (len(lengths), min(lengths), max(lengths)) == (32, 4096, 524_288)
    token_bytes = 2 * RELEASED.kv_heads * RELEASED.head_dim * 2
    assert sum(lengths) * token_bytes < 8.1 * 2**30


def test_pages_are_shuffled_and_belong_to_one_request():
    batch, pages = SETTING.paged([100, 1, 64], [3, 1, 2])
    used = [batch.pages(request, TINY.geometry.block_size).tolist() for request in range(3)]
    assert [len(x) for x in used] == [7, 1, 4]
    assert sorted(page for pages_of_one in used for page in pages_of_one) == list(range(1, pages))
    assert (batch.slots(0) % 16 == torch.arange(100) % 16).all()
    assert batch.query_start.tolist() == [0, 3, 4, 6]
    samples = sampled_rows(batch, 6)
    assert [row for row, _ in samples] == [0, 1, 3, 5]
    assert [int(alone.kv_lens) for _, alone in samples] == [98, 99, 1, 64]
    assert all(
        alone.slots(0)[-1] == batch.slots(r)[n]
        for (_, alone), r, n in zip(samples, (0, 0, 1, 2), (97, 98, 0, 63), strict=True)
    )


def test_sets_are_twice_the_cache():
    setting = replace(SETTING, cache_bytes=50)
    assert [setting.sets(size) for size in (1, 30, 50, 99, 100, 1000)] == [100, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("share", [0.8, None])
def test_block_lists(share):
    geometry, positions = RELEASED.geometry, torch.arange(20_000, 20_200)
    lists = block_lists(positions, 2, geometry, share)
    assert lists.shape == (200, 2, 96) and lists.dtype == torch.int32
    assert (lists.diff() > 0).all()
    current = positions // 64
    assert (lists[..., 0] == 0).all() and (lists[..., -1] == current[:, None]).all()
    assert (lists[..., -33:] == (current[:, None] + torch.arange(-32, 1))[:, None]).all()
    free = lists[..., 1:-33]
    assert free.shape[-1] == 62 and free.min() >= 1 and free.max() < 20_000 // 64 - 32
    kept = (free[1:, ..., None] == free[:-1, ..., None, :]).any(-1).sum(-1).float()
    if share:
        assert (kept == 50).all()  # 80 % of 62
    else:
        assert abs(kept.mean() - 62 * 62 / 279) < 1  # the share that chance gives among 279 candidates


def test_checks_see_a_wrong_row():
    right = torch.randn(5, 4, 16)
    wrong = right.clone()
    wrong[3, 2] *= 1.2
    check_rows("x", right.bfloat16(), right)
    with pytest.raises(AssertionError, match="x: row 3 differs"):
        check_rows("x", wrong, right)
    with pytest.raises(AssertionError, match="x: row 1 differs"):
        check_rows("x", right.index_fill(0, torch.tensor(1), torch.nan), right)


@pytest.mark.parametrize("block", [13, 10**6, -1], ids=["another block", "no block", "missing"])
def test_checks_see_a_wrong_block(block):
    torch.manual_seed(0)
    batch, pages = SETTING.paged([320], [1])
    queries, compressed = 8 * SETTING.queries(1), SETTING.compressed_pool(pages)
    selected = select_blocks(queries, compressed, batch, TINY.geometry, TINY.scale)
    check_selection(selected, queries, compressed, batch, TINY)
    assert 13 not in selected[0, 0].tolist()
    selected[0, 0, 1] = block
    with pytest.raises(AssertionError, match="row 0 holds other blocks"):
        check_selection(selected, queries, compressed, batch, TINY)


def test_choice_of_rows():
    cases = all_cases(TINY)
    assert sum(len(rows) for _, rows in choose(cases, [], [], SETTING)) == len(cases)
    chosen = choose(cases, ["compress", "gated_norm"], ["triton", "reference"], SETTING)
    assert [(case.operator, list(rows)) for case, rows in chosen] == [
        ("compress_keys", ["triton", "reference"]),
        ("compress_keys", ["triton", "reference"]),
        ("gated_norm", ["triton", "reference"]),
        ("gated_norm", ["triton", "reference"]),
    ]
    on_gpu = choose(cases, ["lightning_chunk", "dense"], [], ON_GPU)
    assert [list(rows) for _, rows in on_gpu] == [["triton", "flashinfer"], ["triton", "fla"], ["triton", "fla"]]
    assert [list(rows) for _, rows in choose(cases, ["fla"], [], ON_GPU)] == [
        ["flashinfer"],
        ["fla"],
        ["fla"],
    ]
    with pytest.raises(ValueError, match="--implementations: no operator has 'cutlass'"):
        choose(cases, [], ["cutlass"], SETTING)
    with pytest.raises(ValueError, match=r"--only: no row has 'encode'; allowed are parts of:\nselect_blocks prefill"):
        choose(cases, ["decode", "encode"], [], SETTING)


def test_operators_without_the_implementation_are_left_out(monkeypatch):
    monkeypatch.setattr("benchmarks.operators.harness.case.has", lambda operator, name: operator == "lightning")
    assert [case.operator for case in all_cases(TINY) if case.rows(["new"], SETTING)] == ["lightning_chunk"] * 2


def test_joint_case_with_an_implementation_of_one_operator(monkeypatch):
    monkeypatch.setattr("benchmarks.operators.harness.case.has", lambda operator, name: operator == "select_blocks")
    case = next(case for case in all_cases(TINY) if case.operator == "select_blocks + sparse_attention")
    assert list(case.rows(["new"], SETTING)) == ["new + reference"]


def test_targets():
    targets = tuple(Target(*x) for x in [(45, "us"), (300, "TFLOP/s"), (70, "% of copy"), (2, "x fla")])
    case = Case(
        "op", "case", ("lightning",), True, lambda setting: Work(Floor(0, 0), lambda choice: []), targets, ("fla",)
    )
    floor = Floor(60_000, 20_000, 12_000_000_000)

    def row(name: str, median_us: float) -> Row:
        return Row(case, name, Timing(median_us, 1.0, "graph"), floor, 2.5)

    own, peer = row("triton", 40.0), row("fla", 60.0)
    assert own.gb_per_s == 2.0 and own.copy_share == 0.8 and own.tflop_per_s == 300
    lines = [line.split() for line in verdicts([own, peer])[1:]]
    assert [line[3:5] + line[-1:] for line in lines] == [
        ["40.0", "us", "yes"],
        ["300.0", "TFLOP/s", "yes"],
        ["80.0", "%", "yes"],
        ["1.5", "x", "no"],
    ]
    assert verdicts([own])[-1].split()[-1] == "-"
    assert [line.split()[-1] for line in verdicts([row("triton", 50.0)])[1:4]] == ["no", "no", "no"]


def test_a_case_that_fails_does_not_end_the_run(tmp_path, capsys):
    def wrong(choice):
        raise AssertionError("wrong result")

    good = row_wise.cases(TINY)[0]
    bad = replace(good, name="bad", build=lambda setting: replace(good.build(setting), check=wrong))
    run = Run(SETTING, Results(tmp_path / "out.csv", CPU))
    run.all([(case, case.rows([], SETTING)) for case in (bad, good)])
    assert run.failed == ["qk_norm_rope bad reference"]
    assert [row.case.operator for row in run.rows] == ["copy", "matmul", "qk_norm_rope"]
    assert "wrong result" in capsys.readouterr().err


def test_results_keep_their_columns(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("operator,case,median_us\n")
    with pytest.raises(
        ValueError, match=r"old\.csv has the columns operator,case,median_us; allowed: operator,case,impl"
    ):
        Results(old, CPU)
    with (ROOT / "benchmarks/results/operators/run.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(list(row) == list(COLUMNS) and float(row["median_us"]) > 0 for row in rows)


def test_dry_run(tmp_path):
    """The command of the documentation, with every case."""
    output = tmp_path / "results" / "kernels.csv"
    command = [sys.executable, "-m", "benchmarks.operators.run", "--dry-run", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = all_cases(TINY)
    assert [(row["operator"], row["case"]) for row in rows[2:]] == [(case.operator, case.name) for case in cases]
    assert [row["operator"] for row in rows[:2]] == ["copy", "matmul"]
    assert all(row["method"] == "wall" and row["gpu"] == "none" and int(row["read_bytes"]) > 0 for row in rows)
    table = done.stdout.split("\n\n")[-1].splitlines()
    assert len(table) == 1 + sum(len(case.targets) for case in cases)


def test_a_tensor_parallel_rank(tmp_path):
    """A rank of four has a quarter of the query heads and one of the two KV heads."""
    rank = RELEASED.of_rank(4)
    assert (rank.query_heads, rank.kv_heads) == (8, 1) and RELEASED.of_rank(1) == RELEASED
    output = tmp_path / "kernels.csv"
    command = [
        sys.executable,
        "-m",
        "benchmarks.operators.run",
        "--dry-run",
        "--output",
        str(output),
        "--tensor-parallel",
    ]
    done = subprocess.run([*command, "4"], cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS)
    assert done.returncode == 0, done.stderr
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows[2:]] == [case.name for case in sparse.cases(TINY)]
    assert {row["tensor_parallel"] for row in rows} == {"4"}
    done = subprocess.run([*command, "3"], cwd=ROOT, capture_output=True, text=True, timeout=START_SECONDS)
    assert "3 ranks; allowed: divisors of 4 query heads and 2 KV heads, or multiples" in done.stderr


@pytest.mark.gpu
def test_every_case_on_a_gpu(tmp_path):
    """Graphs, events and checks with the kernels that serve, at tiny sizes and with several input sets."""
    device = torch.device("cuda")
    setting = Setting(TINY, device, cache_bytes=2**14)
    run = Run(setting, Results(tmp_path / "out.csv", device))
    chosen = choose(all_cases(TINY), ["triton", "torch"], [], setting)
    run.all(chosen)
    assert not run.failed
    methods = ["graph" if case.captured else "events" for case, found in chosen for _ in found]
    assert [row.timing.method for row in run.rows[2:]] == methods
