"""bfloat16 and e4m3 in Triton's interpreter, which keeps both as bit patterns.

Its casts to bfloat16 truncate, and sums and products are those of patterns; its casts to e4m3 do not carry, and none
knows NaN.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair_short_floats() -> None:
    """Make the interpreter round to nearest even, to bfloat16 and e4m3, and compute with bfloat16 blocks by value."""
    if InterpreterBuilder.cast_impl is not _cast:
        InterpreterBuilder.cast_impl = _cast
        InterpreterBuilder.create_dot = _dot
        InterpreterBuilder.binary_op = _binary
        InterpreterBuilder.get_bf16 = _constant
        InterpreterBuilder.create_fp_to_fp = _fp_to_fp


_cast_others, _dot_others = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
_binary_others = InterpreterBuilder.binary_op
_TORCH = {
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
}


def _cast(self, handle: TensorHandle, dtype: tl.dtype) -> TensorHandle:
    if (handle.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
        return TensorHandle(_patterns(handle.data), tl.bfloat16)
    return _cast_others(self, handle, dtype)


def _fp_to_fp(self, handle: TensorHandle, dtype: tl.dtype, rounding_mode) -> TensorHandle:
    """Casts from and to e4m3, the only ones that come here."""
    values = torch.from_numpy(np.ascontiguousarray(handle.data)).view(_TORCH[handle.dtype.scalar])
    cast = values.to(_TORCH[dtype.scalar])
    patterns = {1: torch.uint8, 2: torch.uint16}
    if dtype.scalar in (tl.float8e4nv, tl.bfloat16):
        cast = cast.view(patterns[cast.itemsize])
    return TensorHandle(cast.numpy().reshape(handle.data.shape), dtype.scalar)


def _dot(self, left: TensorHandle, right: TensorHandle, *rest) -> TensorHandle:
    return _dot_others(self, _widen(left), _widen(right), *rest)


def _constant(self, value: float) -> TensorHandle:
    return TensorHandle(_patterns(np.array([value], np.float32)), tl.bfloat16)


def _binary(self, left: TensorHandle, right: TensorHandle, operation) -> TensorHandle:
    if left.dtype.scalar != tl.bfloat16 or operation not in (np.add, np.subtract, np.multiply):
        return _binary_others(self, left, right, operation)
    return TensorHandle(_patterns(operation(_widen(left).data, _widen(right).data)), tl.bfloat16)


def _widen(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _patterns(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
