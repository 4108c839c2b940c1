"""Programmatic dependent launch: a kernel is set up while the one in front of it on the stream still runs.

A decode step is some hundred kernels of a few microseconds, and a gap of half a microsecond in front of each. On Hopper
and later a kernel that is launched so may start as soon as every program of its predecessor has met its own. Before it
touches memory that others write it waits for that one to end. Kernels of other libraries in the stream need not know of
it.
"""

import torch
import triton
import triton.language as tl

from sala_kernels import targets


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of a launch on ``device``.

    Its kernel takes DEPENDENT and calls ``wait_for_predecessor`` before it touches memory that others write.
    DEPENDENT is true where ``targets`` chooses EARLY_LAUNCH, on Hopper and later. Elsewhere a launch is ordinary:

    >>> dependent_launch(torch.device("cpu"))
    {'DEPENDENT': False}
    """
    early = targets.uses(targets.EARLY_LAUNCH, device)
    return {"DEPENDENT": True, "launch_pdl": True} if early else {"DEPENDENT": False}


@triton.jit
def wait_for_predecessor(DEPENDENT: tl.constexpr):
    """Wait until the previous kernel has ended and its writes can be read, then let the next one start.

    The other way round several kernels would wait at once, and their programs take the place of those that work.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
