"""Tables of whole servers: times, memory, steps, the prefix cache, several GPUs."""

from dataclasses import replace

from benchmarks.report import prepare
from benchmarks.report.surroundings import full_size
from benchmarks.report.table import Column, Table
from benchmarks.report.where import given, none_of, one_of

SHAPES = full_size()
MEASURED = {"outcome": one_of("measured")}
PROMPT = Column("prompt_tokens", "prompt tokens")
NEW = Column("new_tokens", "new tokens")
REQUESTS = Column("requests", "requests")
ENGINE = Column("engine", "")
TTFT = Column("ttft_s", "TTFT s", 4)
DECODE = Column("decode_ms_per_token", "decode ms/token", 4)
PEAK = Column("peak_memory_mib", "peak MiB")
WEIGHTS = Column("weights", "weights")

SIDE_BY_SIDE = Table(
    sources=("serving/side_by_side.csv",),
    show=MEASURED,
    prepare=prepare.by_engine,
    down=(PROMPT,),
    across=(ENGINE,),
    values=(TTFT,),
    key=("engine", "prompt_tokens", "new_tokens"),
    shapes=f"MiniCPM-SALA: {SHAPES}; one request at a time",
    baseline="stock-dense and Qwen3-8B, both on SGLang without the plugin",
    command="python -m benchmarks.serving.side_by_side",
)
RACE = Table(
    sources=("serving/race.csv",),
    prepare=prepare.by_engine,
    down=(Column("at_once", "at once"), REQUESTS, PROMPT, NEW),
    across=(ENGINE,),
    values=(Column("duration_s", "duration s", 4),),
    key=("engine", "at_once", "requests", "seed", "longest", "prompts"),
    shapes=SHAPES,
    baseline="the columns of stock-dense and Qwen3-8B, on SGLang without the plugin",
    command="python -m benchmarks.serving.race",
)
SPEED = Table(
    sources=("serving/speed.csv",),
    where={"ttft_s": given},
    down=(WEIGHTS, PROMPT),
    across=(ENGINE,),
    values=(TTFT, DECODE, PEAK),
    key=("engine", "weights", "requests", "prompt_tokens", "new_tokens"),
    shapes=f"{SHAPES}; one request at a time",
    baseline="stock-dense, SGLang without the plugin, full attention in its sparse layers",
    command="python -m benchmarks.serving.speed",
)
BATCHES = replace(
    SPEED,
    where={"ttft_s": one_of("")},
    down=(WEIGHTS, REQUESTS, PROMPT),
    values=(DECODE, Column("output_tokens_per_s", "output tokens/s, prefill included", 4)),
    shapes=SHAPES,
)
QUANTISED = replace(
    SPEED,
    sources=("serving/quantised.csv",),
    where={},
    down=(WEIGHTS, REQUESTS, PROMPT),
    values=(TTFT, DECODE),
    shapes=SHAPES,
    baseline="plugin-fp8, the products of SGLang",
)
START_MEMORY = replace(
    SPEED,
    sources=("serving/speed_memory.csv",),
    where={},
    down=(Column("what", "MiB after the start"),),
    values=(Column("mib", "MiB"),),
    key=("engine", "weights", "what"),
    shapes=SHAPES,
)
STEPS = replace(
    SPEED,
    sources=("serving/step_profile.csv",),
    where={},
    down=(Column("group", "ms per step"),),
    across=(Column("step", ""), Column("context_tokens", "at")),
    values=(Column("ms_per_step", "ms", 3),),
    key=("engine", "weights", "step", "context_tokens", "group"),
    shapes=SHAPES,
    baseline="",
)
CLOCKS = Table(
    sources=("serving/speed_clocks.csv",),
    prepare=prepare.clocks,
    down=(Column("what", "while the GPU drew more than 450 W"),),
    values=(Column("value", "median or share", 4),),
    shapes=SHAPES,
    baseline="",
    command="nvidia-smi beside python -m benchmarks.serving.speed",
)
PREFIX_CACHE = Table(
    sources=("serving/prefix_cache.csv",),
    down=(Column("measured", "measured"), Column("cache", "cache"), REQUESTS, PROMPT, NEW),
    values=(
        TTFT,
        Column("cached_tokens", "cached tokens"),
        Column("output_tokens_per_s", "output tokens/s", 4),
        Column("compared_percent", "% of what it is compared with", 4),
    ),
    key=("measured", "cache", "requests", "prompt_tokens", "new_tokens"),
    shapes=SHAPES,
    baseline="the same engine without the cache, and the first question",
    command="python -m benchmarks.serving.prefix_cache",
)
RANKS = Table(
    sources=("serving/tensor_parallel.csv",),
    where={"measured": none_of("answer")},
    prepare=prepare.ranks_and_stages,
    down=(Column("measured", "measured"), REQUESTS, PROMPT),
    across=(Column("size", ""),),
    values=(TTFT, DECODE),
    key=("tp", "pp", "measured", "requests", "prompt_tokens", "new_tokens"),
    shapes=SHAPES,
    baseline="one GPU",
    command="python -m benchmarks.serving.tensor_parallel",
)
RANK_ANSWERS = replace(
    RANKS,
    where={"measured": one_of("answer")},
    down=(Column("size", ""), PROMPT, NEW),
    across=(),
    values=(
        Column("equal_tokens", "equal tokens"),
        Column("max_logprob_difference", "largest difference of log-probabilities", 2),
    ),
)
COMPUTED_STAGES = Table(
    sources=("serving/pipeline_times.csv",),
    prepare=prepare.ranks_and_stages,
    down=(Column("size", ""), Column("partition", "layers of the stages")),
    across=(PROMPT,),
    values=(Column("ttft_s", "TTFT s", 3),),
    shapes=f"{SHAPES}; one request, chunks of 8,192 tokens",
    baseline="1 GPU, computed in the same way",
    command="python -m benchmarks.serving.pipeline_times",
)
CAPACITY = Table(
    sources=("serving/capacity.csv",),
    down=(Column("what", "GiB"),),
    across=(Column("requests", ""), Column("context_tokens", "×")),
    values=(Column("bytes", "GiB", 3, 2**-30),),
    shapes=f"{SHAPES}; requests × tokens of each",
    baseline="",
    command="python -m benchmarks.serving.capacity",
)

TABLES = {
    "side by side: first token": SIDE_BY_SIDE,
    "side by side: further tokens": replace(SIDE_BY_SIDE, values=(DECODE,)),
    "side by side: memory": replace(SIDE_BY_SIDE, values=(Column("needed_memory_mib", "MiB"),)),
    "side by side: not measured": replace(
        SIDE_BY_SIDE,
        show={"outcome": none_of("measured")},
        down=(Column("engine", "engine"), PROMPT),
        across=(),
        values=(Column("outcome", "outcome"),),
    ),
    "side by side: times faster": replace(
        SIDE_BY_SIDE,
        prepare=prepare.times_faster,
        down=(PROMPT, Column("baseline", "beside")),
        values=(Column("ttft_times", "first token", 3), Column("decode_times", "further tokens", 3)),
    ),
    "race: durations": RACE,
    "race: throughput": replace(RACE, values=(Column("output_tokens_per_s", "output tokens/s", 4),)),
    "race: first token": replace(
        RACE, values=(Column("ttft_mean_s", "mean TTFT s", 3), Column("ttft_p95_s", "p95 TTFT s", 3))
    ),
    "speed": SPEED,
    "batches": BATCHES,
    "quantised weights": QUANTISED,
    "memory after the start": START_MEMORY,
    "steps": STEPS,
    "clocks": CLOCKS,
    "prefix cache": PREFIX_CACHE,
    "several GPUs": RANKS,
    "answers of several GPUs": RANK_ANSWERS,
    "computed stages": COMPUTED_STAGES,
    "capacity": CAPACITY,
}
