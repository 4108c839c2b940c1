"""Tensor-parallel sizes that the model divides by, and the error of the others."""

import pytest

from sala_sglang.config import SALAConfig
from sala_sglang.models.sharding import check_tensor_parallel


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_released_sizes(size):
    check_tensor_parallel(SALAConfig(), size)


@pytest.mark.parametrize("size", [-1, 0, 3, 6, 64])
def test_error_names_field_value_and_what_is_allowed(size):
    with pytest.raises(ValueError) as error:
        check_tensor_parallel(SALAConfig(), size)
    assert f"tp_size = {size} is not supported; allowed: 1, 2, 4, 8, 16, 32 (" in str(error.value)
    for reason in ("num_attention_heads = 32", "lightning_nh = 32", "intermediate_size = 16384"):
        assert reason in str(error.value)


@pytest.mark.parametrize(
    "fields, allowed",
    [
        ({"lightning_nh": 12, "lightning_nkv": 12}, "1, 2, 4"),
        ({"intermediate_size": 24}, "1, 2, 4, 8"),
        ({"num_key_value_heads": 8}, "1, 2, 4, 8, 16, 32"),
        # Four KV heads go to 1, 2 or 4 ranks, or to 12 with 3 copies of each, but not to 3 or 6.
        (
            {
                "num_attention_heads": 12,
                "num_key_value_heads": 4,
                "lightning_nh": 12,
                "lightning_nkv": 12,
                "intermediate_size": 24,
            },
            "1, 2, 4, 12",
        ),
    ],
)
def test_heads_are_never_split(fields, allowed):
    with pytest.raises(ValueError, match=rf"allowed: {allowed} \("):
        check_tensor_parallel(SALAConfig(**fields), 7)
