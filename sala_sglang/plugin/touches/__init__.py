"""The ledger: every place where this package reaches into SGLang, why, and when the touch can go.

``sala-sglang doctor --touches`` prints it, ``docs/reference/compatibility.md`` is made from it, and a hook that is not
in it is refused when it is registered. It needs neither SGLang nor torch.

What a hook, a pool or a backend is given it reads, and what SGLang exports is imported: neither is listed. A name that
is gone there ends the start with ImportError, or the tests with AttributeError.
"""

from sala_sglang.plugin.touches import (
    disaggregation,
    every_process,
    frontend,
    hierarchical_cache,
    lora,
    speculation,
    workers,
)
from sala_sglang.plugin.touches.touch import HOOKS, Touch

TOUCHES: tuple[Touch, ...] = (
    *every_process.TOUCHES,
    *frontend.TOUCHES,
    *workers.TOUCHES,
    *hierarchical_cache.TOUCHES,
    *lora.TOUCHES,
    *speculation.TOUCHES,
    *disaggregation.TOUCHES,
)
TARGETS = frozenset(touch.target for touch in TOUCHES)
HOOK_TARGETS = {touch.target: touch.how for touch in TOUCHES if touch.how in HOOKS}

__all__ = ["HOOK_TARGETS", "TARGETS", "TOUCHES", "Touch"]
