"""What result files that are older than some columns do not say of their rows."""

from collections.abc import Mapping

from benchmarks.report.where import Where, beginning, one_of

H100 = "NVIDIA H100 80GB HBM3"
DRIVER = "580.159.04"
OPERATORS = {"weights": "random inputs", "dtype": "bfloat16"}
SALA_TINY = {"weights": "trained weights of sala-tiny"}
ON_CPU = SALA_TINY | {"gpu": "none", "dtype": "float32"}
ON_H100 = SALA_TINY | {"gpu": H100, "dtype": "bfloat16", "commit": "b8cd787"}
CLOCKS = {"gpu": H100, "driver": DRIVER, "dtype": "bfloat16", "weights": "random weights, of usual size"}
RANKS = one_of("4", "8")
LATER = beginning("prefill 2112", "prefill 4224")
SHORT_STEPS = beginning("prefill 544", "prefill 1056", "prefill 1200", "prefill 2256")

# Cases that were measured under another name.
RENAMED = {"qk_norm_rope + lightning_recurrent": "lightning_step"}
# File, which of its rows, values; the first that fits a row wins.
UNRECORDED: tuple[tuple[str, Where, Mapping[str, str]], ...] = (
    ("operators/run_before.csv", {}, OPERATORS),
    ("operators/run.csv", {"case": LATER}, OPERATORS | {"commit": "ca9e53a"}),
    ("operators/run.csv", {"tensor_parallel": RANKS}, OPERATORS | {"commit": "1357007"}),
    ("operators/run.csv", {"case": SHORT_STEPS}, OPERATORS | {"commit": "ca9e53a"}),
    ("operators/run.csv", {"date": one_of("2026-11-25")}, OPERATORS | {"commit": "f6dff56"}),
    ("operators/run.csv", {}, OPERATORS | {"commit": "4d33634"}),
    ("operators/run_regrouped.csv", {}, OPERATORS),
    ("operators/launches.csv", {}, OPERATORS),
    ("operators/crossover.csv", {}, OPERATORS | {"commit": "f6dff56", "driver": DRIVER}),
    ("operators/linear.csv", {}, OPERATORS | {"driver": DRIVER}),
    ("serving/speed_clocks.csv", {}, CLOCKS | {"commit": "ca9e53a", "date": "2026-11-25"}),
    ("evaluation/retrieval.csv", {}, ON_CPU),
    ("evaluation/retrieval_16k.csv", {}, ON_CPU),
    ("evaluation/retrieval_16_bits.csv", {}, ON_CPU | {"commit": "7c9986e", "date": "2026-11-28"}),
    ("evaluation/retrieval_fp8.csv", {}, ON_CPU | {"commit": "015a7a2", "date": "2026-11-28"}),
    ("evaluation/retrieval_w4a16.csv", {}, ON_CPU | {"commit": "015a7a2", "date": "2026-11-28"}),
    ("evaluation/retrieval_gpu.csv", {}, ON_H100),
    ("evaluation/prompts.csv", {}, {"gpu": "none", "weights": "no weights"}),
    ("evaluation/fp8_kv.csv", {}, ON_CPU),
    ("training/sala_tiny_blocks.csv", {}, SALA_TINY),
    ("training/optimizers.csv", {}, {"weights": "sala-tiny in training"}),
    (
        "serving/pipeline_times.csv",
        {},
        {"gpu": "no GPU, computed from kernels of one H100", "weights": "random weights"},
    ),
    ("serving/capacity.csv", {}, {"gpu": "no GPU, computed from shapes", "weights": "full size"}),
)
