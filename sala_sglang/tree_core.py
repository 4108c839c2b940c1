"""Which of SGLang's two implementations keeps the tree of the prefix cache."""

import logging
import os
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

logger = logging.getLogger(__name__)

VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"


def use_python_with_another_torch() -> None:
    """Choose SGLang's tree in Python, unless the user chose one, where torch is not the one that SGLang requires.

    The tree in Rust is compiled into SGLang's wheel against the C++ interface of that torch. With another one it loads,
    and servers have stopped answering at one of their first prompts (torch 2.11 in place of 2.14.1: docs/lab-notes.md).
    """
    requirements = map(Requirement, requires("sglang") or ())
    pinned = next((one.specifier for one in requirements if one.name == "torch"), SpecifierSet())
    installed = version("torch")
    if VARIABLE in os.environ or pinned.contains(installed, prereleases=True):
        return
    os.environ[VARIABLE] = "python"  # workers inherit the environment
    logger.warning(
        "torch %s is not what SGLang was built for (%s): the prefix cache keeps its tree in Python (%s=python)",
        *(installed, pinned, VARIABLE),
    )
