"""The documents: links and anchors lead somewhere, on GitHub and in the site, and tables have what the code has."""

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving.capacity import with_sums
from sala_sglang import cli, environment
from sala_sglang.cards.memory import Load, memory_bytes, snapshot_bytes
from sala_sglang.config import SALAConfig

ROOT = Path(__file__).parents[1]
FOLDERS = "docs", "checkpoints", ".github", "examples"
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SOURCES = "sala_sglang", "kernels", "benchmarks", "testing", "tests", "training", "scripts", "examples", ".github"
NAMED_PAGE = re.compile(r"(?<![\w/])docs/[\w./-]+\.(?:md|svg)\b")
FENCED = re.compile(r"(?ms)^```.*?^```$")
ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//|<link(?![^>]+rel="?canonical)[^>]+href="?(?:https?:)?//"""
)


def name(page):
    return page.relative_to(ROOT).as_posix()


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = FENCED.sub("", page.read_text())
    headings = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"(?m)^#+ (.+)$", text)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{name(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(linked), f"{name(page)} links to {target}: no such heading"


def test_named_pages_are_there():
    """Docstrings, messages and scripts name pages of docs/ by their path."""
    texts = [
        path for folder in SOURCES for suffix in ("py", "sh", "yml") for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    made = {"docs/contributing/planted-mistakes.md"}  # by tests.planted
    named = {(name(path), page) for path in (*texts, *PAGES) for page in NAMED_PAGE.findall(path.read_text())}
    assert len(named) > 10
    assert not [pair for pair in sorted(named) if pair[1] not in made and not (ROOT / pair[1]).exists()]


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md")))  # and the page of what is not found
    for page in pages:
        assert not ELSEWHERE.findall(page.read_text()), f"{page.name} loads from elsewhere"


def test_pictures_are_what_the_scripts_draw():
    script = runpy.run_path(str(ROOT / "scripts" / "architecture_picture.py"))
    assert script["PICTURE"].read_text() == script["picture"](), "run python scripts/architecture_picture.py"


def test_every_command_is_described():
    page = (ROOT / "docs" / "reference" / "command_line.md").read_text()
    commands = cli._parser()._subparsers._group_actions[0].choices
    for command, parser in commands.items():
        assert f"`sala-sglang {command}" in page
        for option in parser._option_string_actions:
            assert option in ("-h", "--help") or option in page, f"{command} {option}"


def test_every_variable_is_described():
    page = (ROOT / "docs" / "reference" / "environment.md").read_text()
    values = [value for constant, value in vars(environment).items() if constant.isupper() and isinstance(value, str)]
    assert len(values) >= 6
    assert not [value for value in values if f"`{value}" not in page]


def test_memory_of_the_guide_is_computed():
    page = (ROOT / "docs" / "guides" / "long_contexts.md").read_text()
    with (ROOT / "benchmarks" / "results" / "serving" / "capacity.csv").open() as file:
        listed = list(csv.DictReader(file))
    for what in dict.fromkeys(row["what"] for row in listed):
        loads = [Load(int(row["context_tokens"]), int(row["requests"])) for row in listed if row["what"] == what]
        sizes = [memory_bytes(SALAConfig(), load) for load in loads]
        for size, load in zip(sizes, loads, strict=True):
            size["snapshots of their prompts"] = snapshot_bytes(SALAConfig(), load)
            size |= with_sums(size, memory_bytes(SALAConfig(), load._replace(cache="fp8"))["keys and values"])
        assert [size[what] for size in sizes] == [int(row["bytes"]) for row in listed if row["what"] == what]
        assert f"| {what} | {' | '.join(f'{size[what] / 2**30:.2f}' for size in sizes)} |" in page


def test_cards_are_what_the_script_writes():
    script = runpy.run_path(str(ROOT / "scripts" / "reference_cards.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/reference_cards.py"


def test_times_of_the_readme_are_measured():
    readme = (ROOT / "README.md").read_text()
    with (ROOT / "benchmarks" / "results" / "serving" / "side_by_side.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["gpu"] == "NVIDIA H200"]
    rows = {(row["engine"], row["prompt_tokens"]): row for row in measured}
    beside = [rows[engine, "262144"] for engine in ("plugin", "plugin-fp8", "qwen3-8b-flashinfer")]
    first = "{:.1f} s, with FP8 weights {:.1f} s, where Qwen3-8B takes {:.1f} s"
    assert first.format(*(float(row["ttft_s"]) for row in beside)) in readme
    assert "{:.1f}, {:.1f} and {:.1f} ms".format(*(float(row["decode_ms_per_token"]) for row in beside)) in readme
    assert f"in {float(rows['plugin', '2097152']['ttft_s']):.1f} s on one GPU" in readme
    assert "one H200 and random weights" in readme
