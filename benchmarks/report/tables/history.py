"""Tables of rows that newer ones supersede, and of changes that were measured before and after."""

from dataclasses import replace

from benchmarks.report.prepare import LIBRARIES
from benchmarks.report.table import Column, Table, median
from benchmarks.report.tables import evaluation, lora, operators, serving, training
from benchmarks.report.where import one_of

DATE = Column("date", "date", verbatim=True)
COMMIT = Column("commit", "commit", verbatim=True)
ENGINE = Column("engine", "engine")
PROMPT = Column("prompt_tokens", "")


def superseded(table: Table, *down: Column, values: tuple[Column, ...] = (), across: tuple[Column, ...] = ()) -> Table:
    """Rows that newer ones supersede in ``table``, by date and commit; repeated runs of a commit show their median."""
    return replace(
        table,
        superseded=True,
        show={},
        prepare=None,
        down=(DATE, COMMIT, *down),
        across=across,
        values=values or table.values,
        reduce=median,
    )


REGROUPED = replace(
    operators.SERVING,
    sources=("operators/run_regrouped.csv",),
    key=(),
    prepare=None,
    down=(operators.OPERATOR, operators.CASE),
    across=(operators.COMMIT,),
    values=(operators.TIME,),
    baseline="the commit on the left",
    reduce=median,
)
REGROUPED_SPEED = replace(
    serving.SPEED,
    sources=("serving/speed_regrouped.csv",),
    where={},
    key=(),
    down=(serving.REQUESTS, serving.PROMPT, Column("gpu_of_the_host", "GPU of the host")),
    across=(operators.COMMIT,),
    values=(serving.TTFT, serving.DECODE),
    shapes=serving.SHAPES,
    baseline="the other commit",
    reduce=median,
)
TABLES = {
    "first token by commit": superseded(
        serving.SPEED, ENGINE, serving.WEIGHTS, across=(PROMPT,), values=(serving.TTFT,)
    ),
    "further tokens by commit": superseded(
        serving.SPEED, ENGINE, serving.WEIGHTS, across=(PROMPT,), values=(serving.DECODE,)
    ),
    "batches by commit": superseded(serving.BATCHES, serving.WEIGHTS, serving.REQUESTS, serving.PROMPT),
    "memory by commit": superseded(serving.START_MEMORY, ENGINE, Column("what", "MiB after the start")),
    "steps by commit": superseded(
        serving.STEPS, Column("step", "step"), Column("context_tokens", "at"), across=(Column("group", ""),)
    ),
    "operators by commit": superseded(
        operators.SERVING, operators.OPERATOR, operators.CASE, Column("implementation", "implementation")
    ),
    "linear by commit": superseded(operators.LINEAR, *operators.LINEAR.down, across=operators.LINEAR.across),
    "ceilings by commit": superseded(operators.CEILINGS, operators.OPERATOR, operators.CASE),
    "libraries by commit": superseded(
        replace(operators.LIBRARIES, where=operators.LIBRARIES.where | {"implementation": one_of(*LIBRARIES)}),
        operators.OPERATOR,
        operators.CASE,
        Column("implementation", "library"),
        values=(operators.TIME,),
    ),
    "grouped arguments: operators": REGROUPED,
    "grouped arguments: host": operators.HOST,
    "grouped arguments: servers": REGROUPED_SPEED,
    "variants": replace(
        serving.SPEED,
        sources=("serving/speed_variants.csv",),
        where={},
        key=(),
        down=(Column("variant", "variant"), COMMIT, serving.REQUESTS, serving.PROMPT),
        across=(),
        values=(serving.TTFT, serving.DECODE),
        shapes=serving.SHAPES,
        baseline="as it served",
        reduce=median,
    ),
}
# Sections of the page by their headings, which are left out until something is superseded.
OTHERS = {
    "Side by side": superseded(
        serving.SIDE_BY_SIDE,
        ENGINE,
        serving.PROMPT,
        values=(Column("outcome", "outcome"), serving.TTFT, serving.DECODE),
    ),
    "The race": superseded(serving.RACE, ENGINE, *serving.RACE.down),
    "Quantised weights": superseded(serving.QUANTISED, ENGINE, *serving.QUANTISED.down),
    "The prefix cache": superseded(serving.PREFIX_CACHE, *serving.PREFIX_CACHE.down),
    "Several GPUs": superseded(serving.RANKS, Column("tp", "TP"), *serving.RANKS.down),
    "Answers of several GPUs": superseded(serving.RANK_ANSWERS, *serving.RANK_ANSWERS.down),
    "LoRA adapters": superseded(lora.COST, *lora.COST.down),
    "Answers of adapters": superseded(lora.ANSWERS, ENGINE, *lora.ANSWERS.down),
    "Steps with adapters": superseded(lora.STEPS, ENGINE, across=lora.STEPS.across),
    "Rows that choose blocks": superseded(operators.ROWS, *operators.ROWS.down, Column("implementation", "by")),
    "Sparse and dense layers": superseded(operators.CROSSOVER, operators.CONTEXT, Column("part", "part")),
    "Sparse and dense layers, decode": superseded(
        operators.CROSSOVER_DECODE, operators.CONTEXT, Column("part", "part")
    ),
    "Building prompts": superseded(evaluation.PROMPTS, *evaluation.PROMPTS.down, Column("counted", "counted")),
    "RULER": superseded(evaluation.RULER, *evaluation.RULER.down, Column("settings", "settings"), evaluation.TOKENS),
    "In transformers": superseded(training.SPEED, *training.SPEED.down, Column("kernels", "kernels")),
}
