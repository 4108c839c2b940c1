"""Tables of servers under minutes of random load."""

from dataclasses import replace

from benchmarks.report.surroundings import full_size
from benchmarks.report.table import Column, Table

RUNS = Table(
    sources=("soak/run.csv",),
    down=(Column("date", "date", verbatim=True), Column("commit", "commit", verbatim=True),
          Column("longest_prompt", "longest prompt"), Column("seconds", "seconds")),
    values=(
        Column("requests", "requests"),
        Column("aborts", "aborted"),
        Column("prompt_tokens", "prompt tokens"),
        Column("cached_tokens", "of them cached"),
        Column("evicted_tokens", "evicted"),
        Column("retractions", "retractions"),
        Column("leaks", "leaks"),
        Column("passed", "passed"),
    ),
    shapes=full_size(),
    baseline="the same server at rest",
    command="python -m benchmarks.soak.run",
)  # fmt: skip
TABLES = {
    "soak": RUNS,
    "soak: answers": replace(
        RUNS,
        values=(
            Column("scored", "answers scored"),
            Column("worst_difference", "largest difference", 2),
            Column("mean_difference", "mean", 2),
            Column("worst_decode_noise", "largest at rest", 2),
            Column("mean_decode_noise", "mean at rest", 2),
        ),
    ),
}
