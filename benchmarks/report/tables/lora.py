"""Tables of LoRA adapters: what they cost per token, and their answers beside merged weights."""

from dataclasses import replace

from benchmarks.report.surroundings import full_size
from benchmarks.report.table import Column, Table
from benchmarks.report.where import one_of

RANK = Column("rank", "rank")
ENGINE = Column("engine", "engine")
PROMPT = Column("prompt_tokens", "prompt tokens")
COST = Table(
    sources=("serving/lora.csv",),
    where={"measured": one_of("batch")},
    down=(RANK, ENGINE, Column("adapters", "adapters in use"), Column("requests", "requests"), PROMPT),
    values=(Column("decode_ms_per_token", "decode ms/token", 4), Column("peak_memory_mib", "peak MiB")),
    key=("engine", "measured", "rank", "adapters", "requests", "prompt_tokens", "new_tokens"),
    shapes=full_size(),
    baseline="the same engine without adapters (alone), and with one merged into its weights (merged)",
    command="python -m benchmarks.serving.lora",
)
ANSWERS = replace(
    COST,
    where={"measured": one_of("answer")},
    down=(RANK, PROMPT, Column("new_tokens", "new tokens")),
    across=(Column("engine", ""),),
    values=(
        Column("equal_tokens", "equal tokens"),
        Column("max_logprob_difference", "largest difference of log-probabilities", 2),
    ),
    baseline="the engine with the adapter merged into its weights",
)
STEPS = replace(
    COST,
    sources=("serving/lora_profile.csv",),
    where={},
    down=(ENGINE,),
    across=(Column("group", ""),),
    values=(Column("ms_per_step", "ms", 3),),
    key=("engine", "step", "requests", "context_tokens", "group"),
    shapes=f"{full_size()}; a decode step",
)
TABLES = {"adapters": COST, "answers of adapters": ANSWERS, "steps with adapters": STEPS}
