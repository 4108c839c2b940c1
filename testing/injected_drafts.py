"""``sglang.launch_server`` with speculation whose drafts come from a file, which a test rewrites as it goes.

The file, named by the variable SALA_TEST_DRAFTS, is JSON: ``texts``, prompts with the answers that the model gives;
``right``, how many drafts of a step are those of the text, all behind them being wrong, or null for random ones;
``verify``, whether steps verify drafts. Takes the arguments of ``sglang.launch_server``. SGLang's worker processes
import this file again as their main module, and with it the replacement; whoever imports only a name from it replaces
nothing.
"""

import json
import os
import random
import runpy
from collections.abc import Iterable, Sequence
from pathlib import Path

from sala_sglang.speculation import drafts as package

VARIABLE = "SALA_TEST_DRAFTS"


def read() -> dict:
    return json.loads(Path(os.environ[VARIABLE]).read_text())


class FromFile:
    """A Proposer."""

    def __init__(self, count: int):
        self.count = count

    def propose(self, rid: str, tokens: Sequence[int]) -> list[int]:
        given, known = read(), list(tokens[:])
        text = next((text for text in given["texts"] if text[: len(known)] == known), known)
        draft = (text[len(known) :] + [1] * self.count)[: self.count]
        if given["right"] is None:  # the same on every rank
            draw = random.Random(len(known))
            return [draw.randrange(500) for _ in draft]
        return draft[: given["right"]] + [(token + 1) % 500 for token in draft[given["right"] :]]

    def forget(self, rids: Iterable[str]) -> None:
        pass


class InjectedDrafts(package.Drafts):
    def __init__(self, rows: int):
        super().__init__(rows, FromFile(rows - 1))

    def is_worth(self, expected: Sequence[float]) -> bool:
        return read()["verify"]


if __name__ in ("__main__", "__mp_main__"):
    package.Drafts = InjectedDrafts  # type: ignore[assignment, misc]

if __name__ == "__main__":
    runpy.run_module("sglang.launch_server", run_name="__main__")
