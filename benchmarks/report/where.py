"""Which rows are meant: conditions on the values of columns."""

from collections.abc import Callable

Row = dict[str, str]
Where = dict[str, Callable[[str], bool]]


def given(value: str) -> bool:
    return value != ""


def one_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def none_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value not in values


def beginning(*starts: str) -> Callable[[str], bool]:
    return lambda value: value.startswith(starts)


def matches(row: Row, where: Where) -> bool:
    """Whether all conditions hold; a column that the row lacks is empty."""
    return all(allowed(row.get(column, "")) for column, allowed in where.items())
