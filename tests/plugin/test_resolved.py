"""``sala-sglang doctor -- ARGUMENTS``: what a server would make of them, and why it would not start."""

import json
import re

import pytest

from tests.plugin.processes import run_python

REPORT = """
import json, sys
from sala_sglang import cli
for words in json.loads(sys.argv[1]):
    try:
        code = cli.main(["doctor", "--", *words])
    except SystemExit as end:
        code = end.code
    print("CODE", code)
"""
HEAD = "--speculative-algorithm EAGLE3 --speculative-draft-model-path checkpoints/sala-tiny-eagle3"
CASES = {
    "plain": "",
    "lookup": "--speculative-algorithm NGRAM --speculative-num-draft-tokens 6 --max-running-requests 8",
    "head": HEAD,
    "page": "--page-size 16",
    "nowhere": "--model-path no/such/model",
    "unknown": "--no-such-argument",
}


@pytest.fixture(scope="module")
def reports(trained_checkpoint) -> dict[str, tuple[str, int]]:
    """Text and exit code of each case."""
    shared = f"--model-path {trained_checkpoint} --device cpu"
    done = run_python(REPORT, json.dumps([f"{shared} {words}".split() for words in CASES.values()]))
    *texts, rest = re.split(r"CODE (\d)\n", done.stdout)
    assert len(texts) == 2 * len(CASES), done.stderr + rest
    return dict(zip(CASES, zip(texts[::2], map(int, texts[1::2]), strict=True), strict=True))


def test_what_is_chosen(reports):
    text, code = reports["plain"]
    assert code == 0 and text.endswith("A server would start.\n") and "drafts" not in text
    rows = [re.split(r" {2,}", line) for line in text.splitlines()[:-1]]
    assert ["--page-size", "not given -> 64"] in rows
    assert ["--attention-backend", "not given -> sala"] in rows
    assert ["--tool-call-parser", "not given -> minicpm5"] in rows
    assert ["--sampling-backend", "not given -> pytorch"] in rows
    assert not {"--random-seed", "--served-model-name", "--dcp-comm-backend"} & {row[0] for row in rows}


def test_what_speculation_takes(reports):
    text, code = reports["lookup"]
    assert code == 0 and "drafts: prompt lookup in" in text
    assert "up to 6 rows per request, its last token and 5 drafts" in text
    # k and v of 8 heads of 32 in nine layers, two bytes each
    assert "9 KiB per row and GPU, 0 MiB for 8 requests" in text
    text, code = reports["head"]
    assert code == 0 and "drafts: checkpoints/sala-tiny-eagle3, in every step" in text
    assert "up to 4 rows" in text and "for 48 requests" in text


def test_what_is_refused(reports):
    text, code = reports["page"]
    assert code == 1
    assert (
        text
        == "A server would not start: MiniCPM-SALA: page_size = 16 is not supported; allowed: 64, the sparse block\n"
    )
    text, code = reports["nowhere"]
    assert code == 1 and text.startswith("A server would not start: ") and "no/such/model" in text
    assert reports["unknown"] == ("", 2)
