"""Mistakes in which kernels are compiled before a server starts."""

from tests.planted.mistake import Mistake

_TEST = "tests/ahead/test_warm.py::test_a_server_launches_nothing_else"

AHEAD = (
    Mistake(
        "warm: the table of token slots is as wide as the context",
        "sala_sglang/ahead/form.py",
        "SPARE_COLUMNS = 4",
        "SPARE_COLUMNS = 0",
        _TEST,
    ),
    Mistake(
        "warm: the embedding's scale is taken for a fraction",
        "sala_sglang/ahead/calls.py",
        "for scale in (config.residual_scale, config.scale_emb)",
        "for scale in (config.residual_scale, float(config.scale_emb))",
        _TEST,
    ),
    Mistake(
        "warm: v of lightning layers lies as q and k do",
        "sala_sglang/ahead/calls.py",
        "chunk = turned, turned, v, states",
        "chunk = turned, turned, turned, states",
        _TEST,
    ),
)
