"""Tables of single operators on random inputs."""

from dataclasses import replace

from benchmarks.operators.harness.sizes import RELEASED
from benchmarks.report import prepare
from benchmarks.report.table import Column, Table, median
from benchmarks.report.where import none_of, one_of

SHAPES = (
    f"{RELEASED.query_heads} query and {RELEASED.kv_heads} KV heads of {RELEASED.head_dim}, "
    f"{RELEASED.query_heads} lightning heads of {RELEASED.head_dim}; one layer"
)
OWN = one_of("triton", "cuda", "triton + cuda")
OPERATOR, CASE = Column("operator", "operator"), Column("case", "case")
IMPLEMENTATION = Column("implementation", "")
TIME = Column("median_us", "µs", 4)
RATE = Column("tflop_per_s", "TFLOP/s", 3)
COPY = Column("copy_share", "% of copy", 3, 100)
CONTEXT = Column("context", "context")
COMMIT = Column("commit", "", verbatim=True)

SERVING = Table(
    sources=("operators/run_before.csv", "operators/run.csv", "operators/run_regrouped.csv"),
    where={"implementation": OWN, "tensor_parallel": one_of("1")},
    prepare=prepare.aims,
    down=(OPERATOR, CASE, Column("implementation", "implementation")),
    values=(TIME, RATE, COPY, Column("aim", "aim")),
    key=("operator", "case"),
    shapes=SHAPES,
    baseline="a device-to-device copy of the same run",
    command="python -m benchmarks.operators.run",
)
CEILINGS = replace(SERVING, where={"operator": one_of("copy", "matmul"), "tensor_parallel": one_of("1")},
                   prepare=None, values=(TIME, RATE, Column("gb_per_s", "GB/s", 4)), baseline="")  # fmt: skip
LIBRARIES = replace(
    SERVING,
    where={"operator": none_of("copy", "matmul"), "tensor_parallel": one_of("1")},
    prepare=prepare.beside_libraries,
    down=(OPERATOR, CASE, Column("library", "library")),
    values=(Column("own_us", "own µs", 4), Column("library_us", "library's µs", 4)),
    key=("operator", "case", "implementation"),
    baseline="the library named in the line, torch being cuBLAS or eager code",
)
ROWS = replace(
    SERVING,
    sources=("operators/run.csv",),
    where={"implementation": one_of("triton", "cuda"), "operator": one_of("sparse_attention")},
    prepare=None,
    down=(Column("tensor_parallel", "GPUs"), CASE),
    across=(IMPLEMENTATION,),
    values=(TIME, RATE),
    key=("tensor_parallel", "case", "implementation"),
    shapes=f"{SHAPES}, divided among GPUs",
    baseline="the implementation in Triton, in the same run",
)
LINEAR = Table(
    sources=("operators/linear.csv",),
    down=(
        Column("product", "product"),
        Column("outputs", "outputs"),
        Column("inputs", "inputs"),
        Column("rows", "rows"),
    ),
    across=(Column("kernel", ""),),
    values=(TIME,),
    key=("product", "rows", "kernel"),
    shapes="those of the table",
    baseline="cuBLAS",
    command="python -m benchmarks.operators.linear",
)
CROSSOVER = Table(
    sources=("operators/crossover.csv",),
    where={"phase": one_of("prefill")},
    down=(CONTEXT,),
    across=(Column("part", ""),),
    values=(Column("median_us", "ms", 3, 1e-3),),
    key=("phase", "rows", "context", "part"),
    shapes=f"{SHAPES}; a chunk of {RELEASED.chunk_tokens:,} rows, independent picks; ms",
    baseline="the same layer attending to everything",
    command="python -m benchmarks.operators.crossover",
)
HOST = Table(
    sources=("operators/launches.csv",),
    down=(OPERATOR, CASE),
    across=(COMMIT,),
    values=(Column("host_us", "µs", 3),),
    shapes=f"{SHAPES}; median of all runs",
    baseline="the commit on the left",
    command="python -m benchmarks.operators.launches",
    reduce=median,
)

CROSSOVER_DECODE = replace(
    CROSSOVER,
    where={"phase": one_of("decode")},
    values=(TIME,),
    shapes=f"{SHAPES}; a step of one request; µs",
)

TABLES = {
    "operators": SERVING,
    "ceilings": CEILINGS,
    "libraries": LIBRARIES,
    "Triton and CUDA C++": ROWS,
    "linear": LINEAR,
    "crossover: prefill": CROSSOVER,
    "crossover: decode": CROSSOVER_DECODE,
}
