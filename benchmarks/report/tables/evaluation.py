"""Tables of what block selection finds, with the trained checkpoint sala-tiny."""

from dataclasses import replace

from benchmarks.report import prepare
from benchmarks.report.table import Column, Table, mean
from benchmarks.report.where import given, one_of

SHAPES = "sala-tiny, trained; not the released model"
BETWEEN = "at depths from {:.0%} to {:.0%}".format(*prepare.MIDDLE_DEPTHS)
BASELINE = "random blocks, and dense attention"
BLOCKS = Table(
    sources=("training/sala_tiny_blocks.csv",),
    prepare=prepare.percent("found"),
    down=(Column("tokens", "tokens"), Column("answers", "answers")),
    across=(Column("mode", ""),),
    values=(Column("found", "found %", 3), Column("kl", "KL", 3)),
    shapes=SHAPES,
    baseline=BASELINE,
    command="python -m training.evaluate",
)
RETRIEVAL = Table(
    sources=("evaluation/retrieval.csv", "evaluation/retrieval_16k.csv"),
    prepare=prepare.middle_depths,
    down=(Column("prompt_tokens", "prompt tokens"),),
    across=(Column("attention", ""),),
    values=(Column("found", "found %", 3), Column("found_between", BETWEEN, 3)),
    shapes=SHAPES,
    baseline=BASELINE,
    command="python -m benchmarks.evaluation.retrieval",
    reduce=mean,
)
RETRIEVAL_QUANTISED = replace(
    RETRIEVAL,
    sources=tuple(f"evaluation/retrieval_{recipe}.csv" for recipe in ("16_bits", "fp8", "w4a16")),
    down=(Column("tokens", "tokens of prompt and answer"),),
    across=(Column("model", ""),),
    baseline="sala-tiny in sixteen bits",
)
PROMPTS = Table(
    sources=("evaluation/prompts.csv",),
    where={"seconds_per_prompt": given},
    down=(Column("prompt_tokens", "prompt tokens"),),
    across=(Column("counted", ""),),
    values=(Column("seconds_per_prompt", "s", 3), Column("cpu_seconds_per_prompt", "CPU s", 3)),
    key=("tokenizer", "prompt_tokens", "counted"),
    shapes="tokenizer of sala-tiny",
    baseline="encoding the whole prompt",
    command="python -m benchmarks.evaluation.prompts",
)
LENGTH = Column("length", "")
TOKENS = Column("length", "tokens")
SCORE = Column("score", "%", 3, 100)
RULER = Table(
    sources=("evaluation/ruler.csv", "evaluation/ruler_sala_tiny.csv"),
    show={"settings": one_of("recipe", "")},
    down=(Column("model", "model"), Column("harness", "asked by"), Column("task", "task")),
    across=(LENGTH,),
    values=(SCORE,),
    key=("model", "harness", "settings", "task", "length", "samples"),
    shapes="those of the model; lengths in tokens",
    baseline="",
    command="python -m benchmarks.evaluation.ruler",
)
FP8_KV = Table(
    sources=("evaluation/fp8_kv.csv",),
    down=(Column("prompt_tokens", "prompt tokens"), Column("format", "format"), Column("scales", "scales")),
    across=(),
    values=(
        Column("kl_mean", "mean KL", 3),
        Column("kl_p999", "KL, 99.9th percentile", 3),
        Column("top1_equal", "equal first choices %", 4, 100),
        Column("largest_key", "largest key"),
        Column("largest_value", "largest value"),
    ),
    shapes=SHAPES,
    baseline="the same model without rounding",
    command="python -m benchmarks.evaluation.fp8_kv",
)

QUANTISED = Table(
    sources=("evaluation/quantised.csv",),
    down=(
        Column("recipe", "recipe"),
        Column("lengths", "texts of tokens", verbatim=True),
        Column("positions", "positions", verbatim=True),
    ),
    values=(
        Column("kl_mean", "KL, mean", 3),
        Column("kl_tail", "KL, 99.9 %", 3),
        Column("same_choice", "same first choice %", 4, 100),
        Column("perplexity_ratio", "perplexity ratio", 5),
        Column("found_first", "found before %", 3, 100),
        Column("found_second", "found %", 3, 100),
        Column("same_blocks", "same blocks %", 3, 100),
    ),
    shapes="sala-tiny, trained; not the released model",
    baseline="sala-tiny in bfloat16",
    command="python -m benchmarks.evaluation.quantised",
    reduce=mean,
)
TABLES = {
    "quantised": QUANTISED,
    "RULER": RULER,
    "RULER settings": replace(
        RULER,
        show={"harness": one_of("lm-eval")},
        down=(Column("model", "model"), Column("settings", "settings"), Column("samples", "samples of each task")),
        baseline="the recipe",
        reduce=mean,
    ),
    "blocks": BLOCKS,
    "retrieval": RETRIEVAL,
    "retrieval with quantised weights": RETRIEVAL_QUANTISED,
    "retrieval on a GPU": replace(RETRIEVAL, sources=("evaluation/retrieval_gpu.csv",)),
    "building prompts": PROMPTS,
    "keys and values in FP8": FP8_KV,
}
