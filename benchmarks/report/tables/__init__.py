"""All tables by the names under which the templates ask for them."""

from benchmarks.report.tables import evaluation, history, lora, operators, serving, soak, training

TABLES = (
    serving.TABLES | operators.TABLES | evaluation.TABLES | soak.TABLES | lora.TABLES | training.TABLES | history.TABLES
)
