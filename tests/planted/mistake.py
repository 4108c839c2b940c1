"""What a planted mistake is."""

from typing import NamedTuple


class Mistake(NamedTuple):
    """name: unique. file: from the root of the repository. old: text that the file has once, to become ``new``.

    test: a test by its pytest id, or a function with all its parameters; must fail with ``new`` and pass with ``old``.
    """

    name: str
    file: str
    old: str
    new: str
    test: str
