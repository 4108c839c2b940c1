"""What becomes of an argument of SGLang's command line with MiniCPM-SALA."""

from dataclasses import dataclass

TESTED, READ, REFUSED, OTHER = "tested", "read", "refused", "other"
OFF = (False,)  # the values of a switch that has to stay off


@dataclass(frozen=True)
class Verdict:
    """What becomes of arguments that share it.

    status: TESTED works, and a test exercises it; READ works, by reading SGLang's source and this package; REFUSED at
    start, except for some values; OTHER cannot touch this model, which is logged where somebody sets it.
    fields: their names in SGLang's ServerArgs.
    remark: what was read, why the others are refused, or what the model lacks.
    allowed: of REFUSED, the values that work; a text where they depend on the checkpoint or on other arguments, and
    ``server_arguments.py`` computes them.
    test: the file under ``tests`` that exercises all of TESTED, or gives values that work to REFUSED.
    """

    status: str
    fields: tuple[str, ...]
    remark: str
    allowed: tuple | str = ()
    test: str = ""


def tested(test: str, fields: str, remark: str = "") -> Verdict:
    """fields: names with blanks between them, as in the functions below."""
    return Verdict(TESTED, tuple(fields.split()), remark, test=test)


def read(remark: str, fields: str) -> Verdict:
    return Verdict(READ, tuple(fields.split()), remark)


def refused(fields: str, allowed: tuple | str, reason: str, test: str = "") -> Verdict:
    return Verdict(REFUSED, tuple(fields.split()), reason, allowed, test)


def other(lacks: str, fields: str) -> Verdict:
    return Verdict(OTHER, tuple(fields.split()), lacks)
