"""The Python of every document runs, block after block, and its requests are answered by a server on sala-tiny."""

import re

import pytest

from tests.documentation import rules
from tests.documentation.blocks import ROOT
from tests.documentation.test_commands import BLOCKS, COMMANDS

ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):\d+")
# Blocks that are compiled and not run, by what they say, and why.
COMPILED_ONLY = {"sglang.Engine(": "starts an engine: tests/examples/test_offline.py does"}
PAGES = sorted(
    {block.file for block in BLOCKS if block.language == "python" and block.file.name != rules.FROM_DOCSTRINGS}
)
CURLS = {name: command for name, command in COMMANDS.items() if command.words[0] == "curl"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs(page, trained_server, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {"path": str(rules.SALA_TINY)}
    for block in (block for block in BLOCKS if block.file == page and block.language == "python"):
        code = compile(ADDRESS.sub(trained_server.base_url, block.text), str(block), "exec")
        if not any(part in block.text for part in COMPILED_ONLY):
            exec(code, names)


@pytest.mark.parametrize("command", CURLS.values(), ids=list(CURLS))
def test_curl_is_answered(command, trained_server):
    path, body = rules.curl_request(command.words)
    if body:
        assert trained_server.post(path, body)
    else:
        trained_server.get(path)  # raises for another status than 200; of /ready that is all there is
