"""Short floats in Triton's interpreter, which keeps bfloat16 and FP8 as bit patterns.

Its casts to bfloat16 truncate, and sums and products are those of patterns. Its casts from and to FP8 are not IEEE's.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair_bfloat16() -> None:
    """Make the interpreter round float32 to bfloat16 to nearest even and compute with bfloat16 blocks by value."""
    if InterpreterBuilder.cast_impl is not _cast:
        InterpreterBuilder.cast_impl = _cast
        InterpreterBuilder.create_dot = _dot
        InterpreterBuilder.binary_op = _binary
        InterpreterBuilder.get_bf16 = _constant


def repair_float8() -> None:
    """Make the interpreter cast e4m3 from and to other floats as torch does."""
    InterpreterBuilder.create_fp_to_fp = _cast_float


_cast_others, _dot_others = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
_binary_others, _cast_other_floats = InterpreterBuilder.binary_op, InterpreterBuilder.create_fp_to_fp


def _cast(self, handle: TensorHandle, dtype: tl.dtype) -> TensorHandle:
    if (handle.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
        return TensorHandle(_patterns(handle.data), tl.bfloat16)
    return _cast_others(self, handle, dtype)


def _dot(self, left: TensorHandle, right: TensorHandle, *rest) -> TensorHandle:
    return _dot_others(self, _widen(left), _widen(right), *rest)


def _constant(self, value: float) -> TensorHandle:
    return TensorHandle(_patterns(np.array([value], np.float32)), tl.bfloat16)


def _binary(self, left: TensorHandle, right: TensorHandle, operation) -> TensorHandle:
    if left.dtype.scalar != tl.bfloat16 or operation not in (np.add, np.subtract, np.multiply):
        return _binary_others(self, left, right, operation)
    return TensorHandle(_patterns(operation(_widen(left).data, _widen(right).data)), tl.bfloat16)


def _cast_float(self, handle: TensorHandle, dtype: tl.dtype, rounding) -> TensorHandle:
    given, wanted = handle.dtype.scalar, dtype.scalar
    if given == tl.float8e4nv:
        values = torch.from_numpy(np.ascontiguousarray(handle.data)).view(torch.float8_e4m3fn).float()
        return _cast(self, TensorHandle(values.numpy().reshape(handle.data.shape), tl.float32), dtype)
    if (given, wanted) == (tl.float32, tl.float8e4nv):
        codes = torch.from_numpy(np.ascontiguousarray(handle.data)).to(torch.float8_e4m3fn).view(torch.uint8)
        return TensorHandle(codes.numpy().reshape(handle.data.shape), tl.float8e4nv)
    return _cast_other_floats(self, handle, dtype, rounding)


def _widen(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _patterns(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
