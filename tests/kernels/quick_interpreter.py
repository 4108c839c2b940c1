"""Triton's interpreter patches the language anew at every call of a nested function, which is most of its time."""

import triton.language as tl
from triton.runtime import interpreter


def patch_once_per_launch() -> None:
    """Make nested functions, tl.sum and its like included, rely on the patches that their launch already made."""
    if interpreter._patch_lang is not _patch_lang:
        interpreter._patch_lang = _patch_lang


_patch_always = interpreter._patch_lang
_patched: set[frozenset[int]] = set()


def _patch_lang(function):
    languages = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
    if languages in _patched:
        return interpreter._LangPatchScope()
    _patched.add(languages)
    scope = _patch_always(function)
    restore = scope.restore  # called at the end of a launch, never for a nested function

    def restore_and_forget():
        restore()
        _patched.clear()

    scope.restore = restore_and_forget
    return scope
