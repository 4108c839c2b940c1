"""Write docs/reference/compatibility.md from the tested versions of SGLang and the ledger of touches.

python scripts/reference_compatibility.py
"""

from pathlib import Path

from sala_sglang import TESTED_SGLANG_VERSIONS
from sala_sglang.plugin.touches import TOUCHES, Touch
from sala_sglang.plugin.touches.touch import MEANS, PROCESSES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "compatibility.md"

TEXT = """\
# Compatibility with SGLang

<!-- Made by scripts/reference_compatibility.py: the text stands there, the touches in sala_sglang/plugin/touches. -->

Tested with SGLang {tested}. The scripts of a checkout install {newest}, with the torch that it requires.

## Other versions

* Every process warns when it starts, and names the tested versions.
* A server does not start where a touch fails: a registry or a hooked function that is gone, or an attention backend,
  model or KV pool that is not this plugin's. The log has the reason. Otherwise SGLang would serve its own
  implementation of the model in silence.
* A function that has kept its name and changed what it does can only be found by tests. So serve with a tested version.

## Policy

* Every release of SGLang is tried within two weeks: first the tests that need no GPU, then those on a GPU and
  `sala-sglang verify`. Release candidates and SGLang's main branch are not.
* Where all pass, the release is added to the tested ones and pinned, and a release of this package follows. Where
  something fails, an issue names the touches that differ, and the older version stays pinned until they are mended.
* The newest tested version is the supported one. An older one stays in the list as long as the same code passes all
  tests with it; it is dropped, with a line in the changelog, when a touch differs. Old versions have no branches.
* A touch goes with the first pinned version that makes it unnecessary. A new one needs its line in the ledger and a
  reason why no extension point of SGLang does; what others could use too is proposed to SGLang.

## How to check

    sala-sglang doctor              # the installed versions, and whether they are tested
    sala-sglang doctor --touches    # the tables below
    scripts/test.sh tests/plugin    # whether the touches hold: names, hooks, registration, whole command lines

## Touches

{means}

A number is that of the issue or pull request at SGLang that asks for the change, provides a part of it, or brought the
extension point.

{tables}
"""


def page() -> str:
    """The page as Markdown."""
    return TEXT.format(
        tested=", ".join(TESTED_SGLANG_VERSIONS),
        newest=TESTED_SGLANG_VERSIONS[-1],
        means="\n".join(f"* {how}: {meaning}" for how, meaning in MEANS.items()),
        tables="\n\n".join(_table(process, meaning) for process, meaning in PROCESSES.items()),
    )


def _table(process: str, meaning: str) -> str:
    rows = [_row(touch) for touch in TOUCHES if touch.process == process]
    head = ["| touched | how | why | until |", "|---|---|---|---|"]
    return "\n".join([f"### {process.capitalize()}", "", f"{meaning.capitalize()}.", "", *head, *rows])


def _row(touch: Touch) -> str:
    names = ", ".join(f"`{name}`" for name in touch.names)
    how = touch.how + (f": {names}" if names else "") + (f"; only: {touch.when}" if touch.when else "")
    return f"| `{touch.target}` | {how} | {touch.why} | {touch.until}{_link(touch.upstream)} |"


def _link(upstream: str) -> str:
    if not upstream:
        return ""
    repository, number = upstream.split("#")
    return f" ([#{number}](https://github.com/{repository}/issues/{number}))"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
