"""Every argument of SGLang's command line, and what becomes of it with MiniCPM-SALA.

``server_arguments.py`` refuses by this table, ``docs/reference/server_arguments.md`` is made from it, and
``tests/plugin/test_argument_table.py`` compares it with the arguments that SGLang has. Nothing here imports SGLang.
"""

from sala_sglang.plugin.argument_table import (
    absent,
    disaggregation,
    execution,
    memory,
    model,
    operation,
    parallel,
    scheduling,
    speculation,
)
from sala_sglang.plugin.argument_table.verdict import OTHER, REFUSED, Verdict

TABLE: tuple[Verdict, ...] = (
    *model.VERDICTS,
    *memory.VERDICTS,
    *scheduling.VERDICTS,
    *speculation.VERDICTS,
    *parallel.VERDICTS,
    *execution.VERDICTS,
    *operation.VERDICTS,
    *absent.VERDICTS,
    *disaggregation.VERDICTS,
)


def fixed_limits() -> tuple[tuple[str, tuple, str], ...]:
    """(field, the values that work, what is missing for the others), where these depend on nothing else."""
    return tuple(
        (field, verdict.allowed, verdict.remark)
        for verdict in TABLE
        if verdict.status == REFUSED and isinstance(verdict.allowed, tuple)
        for field in verdict.fields
    )


def without_effect() -> dict[str, str]:
    """What the model lacks, by the arguments that cannot touch it."""
    return {field: verdict.remark for verdict in TABLE if verdict.status == OTHER for field in verdict.fields}
