"""Mistakes with keys and values in FP8: scales, formats, sizes."""

from tests.planted.mistake import Mistake

_ATTEND, _TESTS = "kernels/sala_kernels/sparse_attention", "tests/kernels/test_fp8.py"
_POOL_TESTS = "tests/attention/test_kv_pool.py"

FP8 = (
    Mistake(
        "FP8: parts that rows share have the scale of values twice",
        f"{_ATTEND}/tile_kernel.py",
        "    else:\n        b_output = scale_output(",
        "    if True:\n        b_output = scale_output(",
        f"{_TESTS}::test_attention_of_rows_that_share_blocks",
    ),
    Mistake(
        "FP8: values have the scale of keys",
        f"{_ATTEND}/common.py",
        "tl.load(p_kv_scales + kv_heads + i_kv_head)",
        "tl.load(p_kv_scales + i_kv_head)",
        f"{_TESTS}::test_attention",
    ),
    Mistake(
        "FP8: means of keys without their scale",
        "kernels/sala_kernels/compress_keys/triton.py",
        "b_mean *= tl.load(p_kv_scales + i_kv_head)",
        "b_mean *= 1.0",
        f"{_TESTS}::test_compressed_keys_are_those_of_dequantised_keys",
    ),
    Mistake(
        "FP8: what nobody may read is weighed with zero",
        f"{_ATTEND}/common.py",
        "tl.load(p_value + o_value, mask=m_token, other=0.0)",
        "tl.load(p_value + o_value)",
        f"{_TESTS}::test_attention",
    ),
    Mistake(
        "FP8: numbers are stored without their scale",
        "kernels/sala_kernels/store_kv/triton.py",
        "tl.math.div_rn(b_rows, tl.load(p_scales + i_kv_head))",
        "b_rows",
        f"{_TESTS}::test_triton_stores_the_bytes_of_the_reference",
    ),
    Mistake(
        "FP8: compressed keys have the format of their pages",
        "sala_sglang/attention/kv_pool.py",
        "dtype=self.compressed_dtype",
        "dtype=self.store_dtype",
        f"{_POOL_TESTS}::test_rows_go_to_their_slots_and_layer",
    ),
    Mistake(
        "FP8: compressed keys count with half their bytes",
        "sala_sglang/plugin/worker.py",
        "kvc.model_config.dtype.itemsize",
        "kvc.kv_cache_dtype.itemsize",
        f"{_POOL_TESTS}::test_bytes_of_a_token",
    ),
    Mistake(
        "FP8: every rank has the scales of the first",
        "sala_sglang/quantization/kv_scales.py",
        "copied.chunk(ranks)[rank]",
        "copied.chunk(ranks)[0]",
        "tests/quantization/test_kv_scales.py::test_a_rank_has_the_scales_of_its_heads",
    ),
    Mistake(
        "FP8: layers read keys with the scales of values",
        "sala_sglang/attention/kv_pool.py",
        "return layer.kv_scales if",
        "return layer.kv_scales.flip(0) if",
        "tests/serving/test_fp8_cache.py::test_alone[scales, two ranks]",
    ),
)
