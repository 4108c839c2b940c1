"""Mistakes in what writes quantised checkpoints and in what judges them."""

from tests.planted.mistake import Mistake

_WRITER, _COMPARISON = "sala_sglang/quantization/writer", "sala_sglang/quantization/comparison"
_WRITER_TESTS, _COMPARISON_TESTS = "tests/quantization/test_writer.py", "tests/quantization/test_comparison.py"

QUANTIZATION = (
    Mistake(
        "writer: errors go to columns of the wrong sign",
        f"{_WRITER}/hessian.py",
        "columns[:, end:] -= errors",
        "columns[:, end:] += errors",
        f"{_WRITER_TESTS}::test_rounding_by_inputs_costs_less_than_rounding_to_nearest",
    ),
    Mistake(
        "writer: columns stay in the order in which they were rounded",
        f"{_WRITER}/hessian.py",
        "return rounded[:, order.argsort()]",
        "return rounded",
        f"{_WRITER_TESTS}::test_rounding_by_inputs_costs_less_than_rounding_to_nearest",
    ),
    Mistake(
        "writer: gates are quantised as all others",
        f"{_WRITER}/recipes.py",
        "recipe.gates if linear.endswith(GATES) else recipe.others",
        "recipe.others",
        f"{_WRITER_TESTS}::test_every_layer_is_what_the_recipe_says[w4-fp8gates]",
    ),
    Mistake(
        "writer: what was written stays behind after an error",
        f"{_WRITER}/output.py",
        "if kind is not None:",
        "if kind is GeneratorExit:",
        f"{_WRITER_TESTS}::test_a_weight_that_is_not_finite_is_named_and_nothing_is_left",
    ),
    Mistake(
        "writer: all layers are in memory",
        "sala_sglang/quantization/weights.py",
        "return self._open[file].get_tensor(name)",
        "return self.__dict__.setdefault(name, self._open[file].get_tensor(name))",
        f"{_WRITER_TESTS}::test_fp8_takes_one_weight_at_a_time",
    ),
    Mistake(
        "compare: what servers do not name is left out of KL",
        f"{_COMPARISON}/logprobs.py",
        "if rest > LEAST_REST:",
        "if rest > 1:",
        f"{_COMPARISON_TESTS}::test_a_token_that_one_server_does_not_name_counts",
    ),
    Mistake(
        "compare: growth with the position is within every bound",
        f"{_COMPARISON}/checks.py",
        '"all", growth(compared), bounds.growth)',
        '"all", 1.0, bounds.growth)',
        f"{_COMPARISON_TESTS}::test_every_bound_can_be_broken[growth of KL]",
    ),
    Mistake(
        "compare: items that are won do not count against those that are lost",
        f"{_COMPARISON}/checks.py",
        "found[:, 0].double() - found[:, 1].double()",
        "(found[:, 0].double() - found[:, 1].double()).clamp(min=0)",
        f"{_COMPARISON_TESTS}::test_lost_items_are_counted_against_those_that_are_won",
    ),
    Mistake(
        "compare: forced blocks count as the same",
        f"{_COMPARISON}/blocks.py",
        "counted = (free & (current >= geometry.selected_blocks))[:, None]",
        "counted = (blocks <= current)[:, None]",
        "tests/quantization/test_blocks.py::test_forced_blocks_do_not_count",
    ),
    Mistake(
        "rows of FP8: layers with adapters get them",
        "sala_sglang/models/skinny_linear.py",
        "_takes(targets.FLOAT8_ROWS) and not get_lora().enable_lora",
        "_takes(targets.FLOAT8_ROWS)",
        "tests/models/test_products.py::test_methods_of_a_model",
    ),
    Mistake(
        "rows of FP8: their kernels are compiled ahead for cards that do not take them",
        "sala_sglang/ahead/command.py",
        "float8_rows=takes(targets.FLOAT8_ROWS, capability) and any(",
        "float8_rows=any(",
        "tests/ahead/test_warm.py::test_prompts_of_fp8_weights_have_kernels_where_rows_are_written_in_fp8",
    ),
)
