"""The breakdown of a step by groups of kernels, on a small trace made by hand."""

import gzip
import json
import re
from pathlib import Path

import pytest

from benchmarks.common.kernel_trace import GROUPS, OTHER, Kernel, breakdown, group_of, read, step_starts
from benchmarks.serving import step_profile
from benchmarks.serving.step_profile import decode_rows, prefill_rows

ROOT = Path(__file__).parents[2]
OURS = (
    *("sparse_attention", "select_blocks", "compress_keys", "store_kv"),
    *("lightning", "norms, rope, gates", "matrix products"),
)
# Microseconds after the start of a step, duration, stream. The second stream prepares the next step.
STEP = (
    ("vectorized_gather_kernel", 0, 10, 7),
    *(("nvjet_tst_128x256", 10 + at, 1, 7) for at in range(40)),
    ("_tile_kernel", 60, 20, 7),
    ("nvjet_tst_128x256", 80, 10, 7),
    ("alloc_extend_kernel", 85, 10, 9),
)


def steps(count: int, start: int = 0) -> list[Kernel]:
    found = []
    for step in range(start, start + count):
        found += [Kernel(name, step * 100 + at, step * 100 + at + took, on) for name, at, took, on in STEP]
    return found


def test_a_trace_is_read_in_order_without_what_the_host_does(tmp_path):
    def event(name: str, category: str, at: float, **more) -> dict:
        return {"ph": "X", "cat": category, "name": name, "ts": at, "dur": 2.5, **more}

    events = [
        event("second", "kernel", 9.0, args={"stream": 7}),
        event("aten::mm", "cpu_op", 1.0),
        event("Memcpy HtoD", "gpu_memcpy", 3.0, args={"stream": 8}),
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "x.trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert read(path, "cuda") == [Kernel("Memcpy HtoD", 3.0, 5.5, 8), Kernel("second", 9.0, 11.5, 7)]
    assert [kernel.name for kernel in read(path, "cpu")] == ["aten::mm"]


def test_a_step_is_divided_into_groups_busy_and_idle_time():
    rows = {row["group"]: row for row in breakdown(steps(3), 100, 300, 2)}
    assert rows["matrix products"]["ms_per_step"] == 0.05
    assert rows["matrix products"]["share_percent"] == 50
    assert rows["matrix products"]["launches_per_step"] == 41
    assert rows["sparse_attention"]["ms_per_step"] == 0.02
    assert rows["elementwise, indexing"]["kernels"] == "vectorized_gather_kernel"
    assert rows[OTHER]["kernels"] == "alloc_extend_kernel"
    # 85 to 95 overlaps with the last product up to 90
    assert (rows["busy"]["ms_per_step"], rows["busy"]["launches_per_step"]) == (0.085, 44)
    assert (rows["idle"]["ms_per_step"], rows["idle"]["share_percent"]) == (0.015, 15)
    assert next(iter(rows)) == "matrix products"


def test_a_kernel_that_runs_beyond_the_interval_is_busy_within_it_only():
    rows = breakdown([Kernel("a", 0, 50, 7), Kernel("b", 10, 20, 7), Kernel("c", 80, 120, 7)], 0, 100, 1)
    assert next(row["ms_per_step"] for row in rows if row["group"] == "busy") == 0.07


def test_steps_begin_at_the_first_kernel_of_the_main_stream_that_comes_once_in_each():
    extra = [Kernel("rare", at, at + 1, 7) for at in (1, 2, 201, 301)]  # as often, but not once per step
    trace = sorted(steps(4) + extra, key=lambda kernel: kernel.start)
    assert step_starts(trace, range(4, 6)) == [0, 100, 200, 300]


def test_a_trace_without_such_a_kernel_is_an_error():
    with pytest.raises(RuntimeError, match="none of 172 kernels comes once in each of 7 to 8 steps"):
        step_starts(steps(4), range(7, 9))


def test_the_first_decode_steps_are_left_out():
    """Of eight steps the first two; the last one only ends the interval."""
    rows = decode_rows(steps(8), 8)
    assert {row["steps"] for row in rows} == {5}
    assert next(row for row in rows if row["group"] == "sparse_attention")["launches_per_step"] == 1


def test_the_last_chunk_ends_where_a_decode_step_begins():
    longer = [Kernel("_top_k_kernel", 350, 360, 7)]  # in the last of four chunks
    trace = sorted(steps(5) + longer, key=lambda kernel: kernel.start)
    rows = prefill_rows(trace, tokens=32, chunk=8)
    groups = {at: {row["group"]: row for row in rows if row["context_tokens"] == at} for at in (0, 24)}
    assert groups[24].keys() - groups[0].keys() == {"select_blocks"}
    assert groups[24]["busy"]["launches_per_step"] == 45
    assert all(row.keys() <= set(step_profile.COLUMNS) for row in rows)


def test_every_kernel_of_this_project_has_a_group():
    sources = (ROOT / "kernels" / "sala_kernels").rglob("*.py")
    names = {name for path in sources for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.MULTILINE)}
    assert len(names) > 10
    assert not {name: group_of(name) for name in names if group_of(name) not in OURS}
    assert set(OURS) <= GROUPS.keys()


@pytest.mark.parametrize(
    "name, group",
    [
        ("nvjet_tst_192x192_64x3_2x1_v_bz_coopB_TNN", "matrix products"),
        (
            "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps",
            "sampling, logits",
        ),
        ("void flashinfer::norm::FusedAddRMSNormKernel<8, __nv_bfloat16>", "norms, rope, gates"),
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<", "dense attention"),
        ("Memcpy DtoH (Device -> Pinned)", "copies, memsets"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda", "copies, memsets"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add", "elementwise, indexing"),
        ("create_flashinfer_kv_indices_triton", OTHER),
    ],
)
def test_kernels_of_libraries(name, group):
    assert group_of(name) == group
