"""Programmatic dependent launch: a kernel is set up while the one in front of it on the stream still runs.

A decode step is some hundred kernels of a few microseconds, and a gap of half a microsecond in front of each. On Hopper
and later a kernel that is launched so may start as soon as every program of its predecessor has met its own. Before it
touches memory that others write it waits for that one to end. Kernels of other libraries in the stream need not know of
it.
"""

from functools import cache

import torch
import triton
import triton.language as tl

FIRST_CAPABILITY = 9  # Hopper


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a launch on ``device``.

    Its kernel takes DEPENDENT and calls ``wait_for_predecessor`` before it touches memory that others write.
    DEPENDENT is true on Hopper and later. Elsewhere a launch is an ordinary one:

    >>> dependent_launch(torch.device("cpu"))
    {'DEPENDENT': False}
    """
    return {"DEPENDENT": True, "launch_pdl": True} if _is_supported(device) else {"DEPENDENT": False}


@cache
def _is_supported(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= FIRST_CAPABILITY


@triton.jit
def wait_for_predecessor(DEPENDENT: tl.constexpr):
    """Wait until the previous kernel has ended and its writes can be read, then let the next one start.

    The other way round several kernels would wait at once, and their programs take the place of those that work.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
