"""Checks and choice shared by the operators' contracts."""

import importlib
import logging
from functools import cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = "reference", "triton", "cuda"  # the last one where CUDA C++ was faster


def check_shapes(sizes: dict[str, int] | None = None, **tensors: tuple[torch.Tensor, str]) -> dict[str, int]:
    """Check tensors against shapes written with shared symbols, such as ``queries=(q, "T Hq D")``.

    A symbol takes the size it meets first, or has from ``sizes``, and must keep it; a number stands for itself
    and ``_`` for anything. Returns the symbols. Raises ValueError naming tensor, dimension, expected and got.

    >>> queries, keys = torch.zeros(5, 4, 8), torch.zeros(64, 2, 8)
    >>> check_shapes(queries=(queries, "T Hq D"), keys=(keys, "S Hkv D"))
    {'T': 5, 'Hq': 4, 'D': 8, 'S': 64, 'Hkv': 2}
    >>> check_shapes({"D": 16}, keys=(keys, "S Hkv D"))
    Traceback (most recent call last):
    ValueError: keys: expected D = 16, got shape [64, 2, 8]
    """
    sizes = dict(sizes or {})
    for name, (tensor, shape) in tensors.items():
        symbols = shape.split()
        if tensor.ndim != len(symbols):
            raise ValueError(f"{name}: expected shape [{', '.join(symbols)}], got {list(tensor.shape)}")
        for symbol, size in zip(symbols, tensor.shape, strict=True):
            expected = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size)
            if symbol != "_" and size != expected:
                raise ValueError(f"{name}: expected {symbol} = {expected}, got shape {list(tensor.shape)}")
    return sizes


def check_dtypes(dtype: torch.dtype, **tensors: torch.Tensor) -> None:
    """Raise TypeError unless every tensor has ``dtype``; the names of the ``tensors`` are those of the message.

    >>> check_dtypes(torch.float32, keys=torch.zeros(2), values=torch.zeros(2, dtype=torch.float16))
    Traceback (most recent call last):
    TypeError: values: expected dtype torch.float32, got torch.float16
    """
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")


def check_groups(query_heads: int, kv_heads: int) -> None:
    """Raise ValueError unless the query heads divide evenly over the KV heads: ``query_heads = G·kv_heads``.

    >>> check_groups(query_heads=32, kv_heads=2)
    >>> check_groups(query_heads=6, kv_heads=4)
    Traceback (most recent call last):
    ValueError: query heads 6 must be a multiple of KV heads 4
    """
    if query_heads % kv_heads:
        raise ValueError(f"query heads {query_heads} must be a multiple of KV heads {kv_heads}")


def implementation_of(operator: str, name: str | None, tensor: torch.Tensor) -> ModuleType:
    """The module that computes ``operator``: ``name`` if given, else Triton on CUDA and the reference elsewhere.

    operator: name of the operator's package.
    tensor: of any shape and dtype; its device decides where ``name`` is None.

    An explicit name never falls back. Raises ValueError for one that the operator does not have.

    >>> implementation_of("sala_kernels.sigmoid_gate", None, torch.zeros(1)).__name__
    'sala_kernels.sigmoid_gate.reference'
    >>> implementation_of("sala_kernels.sigmoid_gate", "cuda", torch.zeros(1))
    Traceback (most recent call last):
    ValueError: implementation: got 'cuda', which sala_kernels.sigmoid_gate does not have
    """
    chosen = name or default_implementation(tensor.device)
    if chosen not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: got {chosen!r}, allowed are {', '.join(map(repr, IMPLEMENTATIONS))}")
    module = f"{operator}.{chosen}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ValueError(f"implementation: got {chosen!r}, which {operator} does not have") from None


def default_implementation(device: torch.device) -> str:
    """Name of the implementation that serves tensors on ``device``.

    >>> default_implementation(torch.device("cpu")), default_implementation(torch.device("cuda"))
    ('reference', 'triton')
    """
    return "triton" if device.type == "cuda" else "reference"


@cache
def has_cuda_compiler() -> bool:
    """Whether CUDA C++ can be compiled when it is needed; where it cannot, a warning says so once."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        logger.warning("Triton serves in place of kernels in CUDA C++, because NVRTC cannot be loaded: %s", error)
        return False
    return True


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The precision in which a reference computes: float32, or float64 for float64 inputs.

    tensor: of any shape and floating dtype.

    >>> working_dtype(torch.zeros(1, dtype=torch.bfloat16)), working_dtype(torch.zeros(1, dtype=torch.float64))
    (torch.float32, torch.float64)
    """
    return torch.promote_types(tensor.dtype, torch.float32)
