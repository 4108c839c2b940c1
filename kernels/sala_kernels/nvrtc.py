"""Kernels in CUDA C++, compiled by NVRTC at first use: neither nvcc nor CUDA's headers need be there."""

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cuda.bindings import driver, nvrtc
from triton.runtime.cache import get_cache_manager

TENSOR_MAP_WORDS, TENSOR_MAP_ALIGNMENT = 16, 64  # of eight bytes; bytes


class CudaKernel:
    """One function of a compiled source, loaded for one device.

    binary: machine code, as compile_source returns it.
    name: of the function, declared extern "C".
    device: where the function is loaded, and launched.
    shared_bytes: dynamic shared memory of a program, in bytes.

    Raises RuntimeError with CUDA's error where the driver cannot load or launch it.
    """

    def __init__(self, binary: bytes, name: str, device: torch.device, shared_bytes: int) -> None:
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # makes the context of torch the one into which the module is loaded
            module = _checked(driver.cuModuleLoadData(binary))
            self._function = _checked(driver.cuModuleGetFunction(module, name.encode()))
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(self._function, limit, shared_bytes))
        self._device, self._shared_bytes = device, shared_bytes

    def launch(self, grid: tuple[int, int], threads: int, arguments: Sequence) -> None:
        """Launch on torch's current stream; ``arguments`` are ctypes values, as the source declares them.

        ``grid`` counts programs, ``threads`` those of a program.
        """
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with torch.cuda.device(self._device):
            _checked(
                driver.cuLaunchKernel(
                    self._function, *grid, 1, threads, 1, 1, self._shared_bytes, stream, ctypes.addressof(pointers), 0
                )
            )


class Binary(NamedTuple):
    """Compiled source.

    code: machine code.
    found: whether it was there already.

    >>> Binary(b"", found=True).found
    True
    """

    code: bytes
    found: bool


def cached_binary(path: Path, definitions: Mapping[str, int], architecture: str) -> Binary:
    """As compile_source of ``path``, ``definitions`` and ``architecture``, kept where Triton keeps its kernels.

    The next time it is taken from there. Raises RuntimeError with the compiler's words.
    """
    version = _checked(nvrtc.nvrtcVersion())
    described = path.read_text(), sorted(definitions.items()), architecture, version
    manager, name = get_cache_manager(hashlib.sha256(repr(described).encode()).hexdigest()), f"{path.stem}.cubin"
    if kept := manager.get_file(name):
        return Binary(Path(kept).read_bytes(), True)
    code = compile_source(path, definitions, architecture)
    manager.put(code, name)
    return Binary(code, False)


def compile_source(path: Path, definitions: Mapping[str, int], architecture: str) -> bytes:
    """Machine code of ``path`` for ``architecture``, such as sm_90a, with ``definitions`` as macros.

    Raises RuntimeError with the compiler's words.
    """
    program = _checked(nvrtc.nvrtcCreateProgram(path.read_bytes(), path.name.encode(), 0, [], []))
    words = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{k}={v}" for k, v in definitions.items())]
    options = [word.encode() for word in words]
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"{path.name} does not compile for {architecture}:\n{log.decode()}")
        binary = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, binary))
        return binary
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def tensor_map(tensor: torch.Tensor, box: tuple[int, int, int]) -> ctypes.Array:
    """Descriptor of a bfloat16 tensor [N, H, D], to copy boxes [n, h, d] into shared memory with 128-byte swizzle.

    tensor: [N, H, D] bfloat16 on a CUDA device, the last dimension contiguous.
    box: n, h and d, in elements.

    Returns 128 bytes, aligned as the driver wants them, to pass to a kernel by value.
    Raises TypeError on another dtype, and RuntimeError if the driver refuses it: strides have to be multiples of 16
    bytes, and d at most 128 bytes.
    """
    if tensor.dtype != torch.bfloat16:
        raise TypeError(f"a tensor map: expected torch.bfloat16, got {tensor.dtype}")
    size = tensor.element_size()
    shape = (ctypes.c_uint64 * 3)(*reversed(tensor.shape))
    strides = (ctypes.c_uint64 * 2)(tensor.stride(1) * size, tensor.stride(0) * size)
    box_shape, steps = (ctypes.c_uint32 * 3)(*reversed(box)), (ctypes.c_uint32 * 3)(1, 1, 1)
    options = (
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    bfloat16 = driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    # The binding returns an object that need not begin where the driver wants it to.
    room = (ctypes.c_uint64 * (TENSOR_MAP_WORDS + TENSOR_MAP_ALIGNMENT // 8))()
    words = (ctypes.c_uint64 * TENSOR_MAP_WORDS).from_buffer(room, -ctypes.addressof(room) % TENSOR_MAP_ALIGNMENT)
    pointer, rank = ctypes.c_void_p(tensor.data_ptr()), 3
    numbers = (int(option) for option in options)
    error = _driver().cuTensorMapEncodeTiled(
        words, int(bfloat16), rank, pointer, shape, strides, box_shape, steps, *numbers
    )
    if error:
        described = f"shape {list(tensor.shape)}, strides {tensor.stride()}, boxes {box}"
        raise RuntimeError(f"a tensor map of {described}: CUDA says {driver.CUresult(error)!r}")
    return words


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _checked(result: tuple) -> Any:
    """The value of a call of the binding, or its values. Raises RuntimeError if it failed."""
    error, *values = result
    if error.value:
        raise RuntimeError(f"CUDA says {error!r}")
    return values[0] if len(values) == 1 else tuple(values) or None
