"""Tables of the model in transformers, without a server."""

from benchmarks.report.surroundings import full_size
from benchmarks.report.table import Column, Table

SPEED = Table(
    sources=("training/speed.csv",),
    down=(Column("measured", "measured"), Column("prompt_tokens", "tokens")),
    across=(Column("kernels", ""),),
    values=(
        Column("repetitions", "calls"),
        Column("seconds", "s", 3),
        Column("tokens_per_s", "tokens/s", 4),
        Column("peak_memory_mib", "peak MiB"),
    ),
    key=("measured", "prompt_tokens", "kernels"),
    shapes=f"{full_size()}; one sample",
    baseline="",
    command="python -m benchmarks.training.speed",
)
TABLES = {"transformers": SPEED}
