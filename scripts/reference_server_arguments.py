"""Write docs/reference/server_arguments.md from the table of arguments and SGLang's own names for them.

python scripts/reference_server_arguments.py
"""

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec
from sglang.srt.server_args import ServerArgs

from sala_sglang import TESTED_SGLANG_VERSIONS
from sala_sglang.plugin.argument_table import TABLE
from sala_sglang.plugin.argument_table.verdict import OTHER, REFUSED, TESTED, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "server_arguments.md"
LEFT = {OTHER: "no effect", TESTED: "tested"}
TEXT = """\
# Arguments of a server

<!-- Made by scripts/reference_server_arguments.py from sala_sglang/plugin/argument_table. -->

Every argument of SGLang {version}, and what becomes of it with MiniCPM-SALA.

* **refused**: the server does not start with another value than those that are allowed. The message has the argument,
  its value, the reason, and what is allowed.
* **tested**: works, and the test that is named gives it to a server, or resolves it.
* **read**: works, by reading SGLang's source and this package; the remark says what was read.
* **no effect**: the model lacks what the argument is for. A warning at the start of the server names it.

`--dense-as-sparse` is this package's own: [dense and sparse](../explanation/dense_and_sparse.md). [Options that come
from the environment](environment.md) have to be the same on every node of a server: workers compare them, and the
server does not start where they differ.
`--json-model-override-args` may name fields of `config.json` alone, and what it makes of them is checked as the file
is.

{refused}

{rest}
"""


def page() -> str:
    """The page as Markdown."""
    options = cli_options()
    refused = [
        f"| {options[field]} | {_allowed(verdict)} | {verdict.remark} | {_test(verdict)} |"
        for field, verdict in _verdicts(REFUSED)
    ]
    return TEXT.format(
        version=TESTED_SGLANG_VERSIONS[-1],
        refused="\n".join(
            [
                "## Refused",
                "",
                "| argument | allowed | why | allowed ones are tested in |",
                "|---|---|---|---|",
                *refused,
            ]
        ),
        rest="\n\n".join(_tables(options)),
    )


def cli_options() -> dict[str, str]:
    """How an argument is written on the command line, by its field; in Markdown."""
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    found = {}
    for action in parser._actions:
        long = f"--{action.dest.replace('_', '-')}"
        if long in action.option_strings or action.dest not in found:
            found[action.dest] = long if long in action.option_strings else action.option_strings[-1]
    names = [field.name for field in msgspec.structs.fields(ServerArgs)]
    return {name: f"`{found[name]}`" if name in found else f"`{name}` (no option)" for name in names}


def _verdicts(*statuses: str, without: bool = False) -> Iterator[tuple[str, Verdict]]:
    """Fields and their verdicts of some statuses, or all others, in the order of SGLang's namespaces."""
    of_field = {field: verdict for verdict in TABLE for field in verdict.fields}
    for field in sorted(of_field, key=lambda field: (ServerArgs._NS_BY_FIELD[field], TABLE.index(of_field[field]))):
        if (of_field[field].status in statuses) is not without:
            yield field, of_field[field]


def _allowed(verdict: Verdict) -> str:
    if isinstance(verdict.allowed, str):
        return verdict.allowed
    return "unset" if verdict.allowed in ((None,), (False,)) else ", ".join(map(_shown, verdict.allowed))


def _shown(value: object) -> str:
    return "unset" if value is None else f"`{value}`"


def _tables(options: dict[str, str]) -> Iterator[str]:
    """A table of what is not refused for every namespace; arguments that share a verdict share a row."""
    for namespace, fields in groupby(_verdicts(REFUSED, without=True), lambda pair: ServerArgs._NS_BY_FIELD[pair[0]]):
        rows = [
            f"| {', '.join(options[field] for field, _ in group)} | {_verdict(verdict)} | {_remark(verdict)} |"
            for verdict, group in groupby(fields, lambda pair: pair[1])
        ]
        yield "\n".join([f"## {namespace}", "", "| argument | verdict | remark |", "|---|---|---|", *rows])


def _verdict(verdict: Verdict) -> str:
    return LEFT.get(verdict.status, verdict.status)


def _remark(verdict: Verdict) -> str:
    if verdict.status == OTHER:
        return f"is for {verdict.remark}"
    return "; ".join(filter(None, (_test(verdict), verdict.remark)))


def _test(verdict: Verdict) -> str:
    return f"`tests/{verdict.test}`" if verdict.test else ""


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
