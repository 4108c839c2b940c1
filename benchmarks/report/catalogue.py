"""Which CSV files, which columns, which plots: all plots of the report, by section."""

from dataclasses import replace

from benchmarks.report import prepare
from benchmarks.report.overview import ENGINE, FIRST, FURTHER, PROMPT, ROWS
from benchmarks.report.plot import Plot, engine
from benchmarks.report.table import Column, Table, mean
from benchmarks.report.tables import evaluation, lora, operators, serving, training
from benchmarks.report.where import beginning, none_of, one_of
from benchmarks.serving.capacity import BESIDE

SPEED = replace(serving.SPEED, where=serving.SPEED.where | {"weights": one_of("random weights, of usual size")})
FIRST_BY_COMMIT = replace(
    SPEED,
    where=SPEED.where | {"engine": one_of("plugin"), "prompt_tokens": one_of("131072")},
    key=("commit", "prompt_tokens"),
)
AT_ONCE = Column("at_once", "requests at once")
SIZE = Column("size", "")
GROUP = Column("group", "")
STEP = replace(serving.STEPS, prepare=prepare.groups_of_steps)
SAMPLES = replace(serving.CLOCKS, prepare=prepare.samples, shapes=serving.SHAPES)
SECONDS = Column("seconds", "seconds")
CONTEXT = Column("context", "tokens of the context")
PART = Column("part", "")
LAYER = replace(operators.CROSSOVER, prepare=prepare.whole_layers)
DECODE_LAYER = replace(LAYER, where={"phase": one_of("decode")}, shapes=f"{operators.SHAPES}; a step of one request")
RATES = replace(operators.SERVING, prepare=prepare.share_of_copy)
WHOLE_CHUNK = {"case": beginning("prefill 8192", "prefill 1 x", "prefill 16 x")}
ROWS_OF_BLOCKS = replace(
    operators.ROWS,
    where=operators.ROWS.where | WHOLE_CHUNK | {"tensor_parallel": one_of("1")},
    prepare=prepare.short_cases,
)
CHUNKS = replace(RATES, where=RATES.where | WHOLE_CHUNK, prepare=prepare.rates)
LIGHTNING_PRODUCT = replace(operators.LINEAR, where={"product": one_of("lightning qkvz"), "rows": prepare.at_most(64)})
TOKENS = Column("tokens", "tokens of the conversation")
MODE = Column("mode", "")
DEPTH = Column("depth", "depth")
FOUND = Column("found", "% found")
RULER = replace(evaluation.RULER, show={"harness": one_of("lm-eval")}, reduce=mean)
OPTIMIZERS = Table(
    sources=("training/optimizers.csv",),
    down=(),
    values=(),
    shapes="sala-tiny's shapes",
    baseline="AdamW",
    command="python -m training.train",
)
CAPACITY = replace(serving.CAPACITY, where={"what": none_of("sum", *BESIDE)}, prepare=prepare.requests_of_tokens)


def found_map(attention: str, table: Table, where: str) -> Plot:
    """What an attention finds by depth and length, all tasks together."""
    rows = replace(table, where={"attention": one_of(attention)}, reduce=mean)
    return Plot(f"Found with {attention} blocks, {where}".replace("dense blocks", "dense attention"), rows,
                Column("prompt_tokens", "tokens of the prompt"), FOUND, DEPTH, "heat")  # fmt: skip


ATTENTIONS = "selected", "random", "dense"
ON_GPU = replace(evaluation.RETRIEVAL, sources=("evaluation/retrieval_gpu.csv",))
SECTIONS: dict[str, tuple[Plot, ...]] = {
    "Side by side": (
        FIRST,
        FURTHER,
        Plot("Memory that a request needs, weights included", ROWS, PROMPT,
             Column("needed_memory_mib", "GiB", scale=2**-10), ENGINE, log="x", label=engine),
    ),
    "The race": (
        Plot("Time until the last answer", serving.RACE, AT_ONCE, Column("duration_s", "seconds"), ENGINE, "bars",
             label=engine),
        Plot("Output tokens per second", serving.RACE, AT_ONCE, Column("output_tokens_per_s", "tokens/s"), ENGINE,
             "bars", label=engine),
    ),
    "Beside stock SGLang": (
        Plot("Time to first token of one request", SPEED, PROMPT, Column("ttft_s", "seconds"), ENGINE, log="xy",
             label=engine),
        Plot("Time per further token of one request", SPEED, PROMPT, Column("decode_ms_per_token", "ms"), ENGINE,
             log="x", label=engine),
        Plot("Time to first token after 131,072 tokens, by commit", FIRST_BY_COMMIT, Column("commit", "commit"),
             Column("ttft_s", "seconds"), None, "bars"),
        Plot("Memory after the start", replace(serving.START_MEMORY, where={"what": lambda what: "sum" not in what}),
             Column("engine", ""), Column("mib", "GiB", scale=2**-10), Column("what", ""), "stacked"),
    ),
    "Steps": (
        Plot("What a step consists of", STEP, Column("step", ""), Column("ms_per_step", "% of the step"), GROUP,
             "stacked"),
        Plot("Clock of the GPU under load", SAMPLES, SECONDS, Column("sm_clock_mhz", "MHz")),
        Plot("Power of the GPU under load", SAMPLES, SECONDS, Column("power_w", "W")),
    ),
    "Several GPUs, the prefix cache, adapters, memory": (
        Plot("Time to first token by number of GPUs", replace(serving.RANKS, where={"measured": one_of("one request")}),
             Column("prompt_tokens", "tokens of the prompt"), Column("ttft_s", "seconds"), SIZE, "bars"),
        Plot("Time per further token of a batch by number of GPUs",
             replace(serving.RANKS, where={"measured": one_of("batch")}),
             Column("requests", "requests of 8,192 tokens"), Column("decode_ms_per_token", "ms"), SIZE, "bars"),
        Plot("Time to first token of two questions over one document",
             replace(serving.PREFIX_CACHE, where={"measured": one_of("first question", "second question")}),
             Column("measured", ""), Column("ttft_s", "seconds"), None, "bars"),
        Plot("Time per further token with adapters of LoRA", replace(lora.COST, prepare=prepare.used_adapters),
             Column("engine", ""), Column("decode_ms_per_token", "ms"), Column("rank", ""), "bars", label=prepare.rank),
        Plot("Memory computed from shapes", CAPACITY, Column("load", "requests × tokens"),
             Column("bytes", "GiB", scale=2**-30), Column("what", ""), "stacked"),
    ),
    "Operators": (
        Plot("Sparse layer, a prefill chunk", LAYER, CONTEXT, Column("median_us", "ms", scale=1e-3), PART, log="xy"),
        Plot("Sparse layer, a decode step", DECODE_LAYER, CONTEXT, Column("median_us", "ms", scale=1e-3), PART,
             log="xy"),
        Plot("Decode and row-wise operators: share of copy bandwidth", RATES, Column("short", ""),
             Column("copy_share", "%", scale=100), None, "ranked"),
        Plot("Prefill operators: operations per second", CHUNKS, Column("short", ""),
             Column("tflop_per_s", "TFLOP/s"), None, "ranked"),
        Plot("Rows that choose blocks: Triton and CUDA C++", ROWS_OF_BLOCKS,
             Column("short", ""), Column("median_us", "ms", scale=1e-3), Column("implementation", ""), "ranked"),
        Plot("Product of q, k, v and gate of a lightning layer", LIGHTNING_PRODUCT, Column("rows", "rows"),
             Column("median_us", "µs"), Column("kernel", ""), "bars"),
    ),
    "Evaluation": (
        Plot("Answers found in the plain model", evaluation.BLOCKS, TOKENS, FOUND, MODE, log="x"),
        *(found_map(attention, evaluation.RETRIEVAL, "on a CPU") for attention in ATTENTIONS),
        *(found_map(attention, ON_GPU, "on a GPU") for attention in ATTENTIONS),
        Plot("RULER by how it is asked, mean of the tasks", RULER, Column("length", "tokens"),
             Column("score", "%", scale=100), Column("settings", ""), log="x"),
        Plot("Building a prompt of an evaluation", evaluation.PROMPTS, PROMPT, Column("seconds_per_prompt", "seconds"),
             Column("counted", ""), log="xy"),
    ),
    "Training": (
        Plot("Prefill in transformers", replace(training.SPEED, where={"measured": one_of("prefill")}), PROMPT,
             Column("seconds", "seconds"), Column("kernels", ""), log="xy"),
        Plot("Training step in transformers", replace(training.SPEED, where={"measured": one_of("training step")}),
             PROMPT, Column("seconds", "seconds"), Column("kernels", ""), log="xy"),
        Plot("Loss by optimizer", OPTIMIZERS, Column("step", "steps"), Column("loss", "loss"), Column("run", "")),
        Plot("Digits right by optimizer", OPTIMIZERS, Column("step", "steps"), Column("digits", "%", scale=100),
             Column("run", "")),
    ),
}  # fmt: skip
