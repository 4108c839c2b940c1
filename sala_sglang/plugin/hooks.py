"""Hooks on SGLang's functions: each one stands in the ledger, and each one was applied or the process ends."""

from collections.abc import Callable, Mapping
from typing import Any

from sala_sglang.plugin.touches import HOOK_TARGETS
from sala_sglang.plugin.touches.touch import AFTER, AROUND

_registered: set[str] = set()


def hook_around(functions: Mapping[str, Callable]) -> None:
    """Have each function run in place of its target, which it gets as first argument.

    Raises KeyError for a target that the ledger does not have as such a hook.
    """
    from sglang.srt.plugins.hook_registry import HookType

    _register(functions, AROUND, HookType.AROUND)


def hook_after(functions: Mapping[str, Callable]) -> None:
    """Have each function run with its target's result as first argument; what it returns replaces that, unless None.

    Raises KeyError for a target that the ledger does not have as such a hook.
    """
    from sglang.srt.plugins.hook_registry import HookType

    _register(functions, AFTER, HookType.AFTER)


def _register(functions: Mapping[str, Callable], how: str, kind: Any) -> None:
    """how: that of the ledger; kind: the same as a member of SGLang's HookType."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    for target, function in functions.items():
        if HOOK_TARGETS.get(target) != how:
            raise KeyError(f"{target} is not in the ledger, sala_sglang/plugin/touches, as {how!r}")
        HookRegistry.register(target, function, kind)
        _registered.add(target)


def apply_hooks() -> None:
    """Apply what has been registered since SGLang applied the hooks of all plugins, and check the outcome."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    HookRegistry.apply_hooks()
    check_hooks()


def check_hooks() -> None:
    """Raise RuntimeError for a hook that SGLang could not apply, which it only logs."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    if failed := _registered - HookRegistry._patched:
        raise RuntimeError(f"SGLang has no {', '.join(sorted(failed))}")
