"""bfloat16 in Triton's interpreter, which keeps it as bit patterns: its casts truncate, tl.dot multiplies patterns."""

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair_bfloat16() -> None:
    """Make the interpreter round float32 to bfloat16 to nearest even and multiply bfloat16 blocks by value."""
    if InterpreterBuilder.cast_impl is not _cast:
        InterpreterBuilder.cast_impl = _cast
        InterpreterBuilder.create_dot = _dot


_cast_others, _dot_others = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot


def _cast(self, handle: TensorHandle, dtype: tl.dtype) -> TensorHandle:
    if (handle.dtype.scalar, dtype.scalar) == (tl.float32, tl.bfloat16):
        return TensorHandle(_patterns(handle.data), tl.bfloat16)
    return _cast_others(self, handle, dtype)


def _dot(self, left: TensorHandle, right: TensorHandle, *rest) -> TensorHandle:
    return _dot_others(self, _widen(left), _widen(right), *rest)


def _widen(handle: TensorHandle) -> TensorHandle:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _patterns(values: np.ndarray) -> np.ndarray:
    rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16()
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)
