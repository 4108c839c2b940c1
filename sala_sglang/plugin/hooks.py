"""Hooks on SGLang's functions: each one stands in the ledger, and each one was applied or the process ends."""

from collections.abc import Callable, Mapping
from typing import Any

from sala_sglang.plugin.touches import TARGETS

_registered: set[str] = set()


def hook(target: str, function: Callable, kind: Any) -> None:
    """Have SGLang run ``function`` with its ``target``; kind: a member of SGLang's HookType.

    Raises KeyError for a target that is not in the ledger.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry

    if target not in TARGETS:
        raise KeyError(f"{target} is not in the ledger, sala_sglang/plugin/touches.py")
    HookRegistry.register(target, function, kind)
    _registered.add(target)


def hook_around(functions: Mapping[str, Callable]) -> None:
    """Have each function run in place of its target, which it gets as first argument."""
    from sglang.srt.plugins.hook_registry import HookType

    for target, function in functions.items():
        hook(target, function, HookType.AROUND)


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
