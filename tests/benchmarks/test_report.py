"""The pages of results: they say what the CSV files say, all of it, and nothing that was typed."""

import csv
import re
import shutil
from dataclasses import replace
from html import escape

import pytest

from benchmarks.report.catalogue import SECTIONS
from benchmarks.report.facts import FACTS
from benchmarks.report.overview import OVERVIEW
from benchmarks.report.pages import EVERYTHING_ELSE, NAME, PAGES, TEMPLATES, render
from benchmarks.report.rows import RESULTS, by_age, complete, read
from benchmarks.report.surroundings import surroundings
from benchmarks.report.table import Column, Table, markdown, shown
from benchmarks.report.tables import TABLES
from benchmarks.report.tables.history import OTHERS

NOT_SHOWN = {
    "operators/variants.csv": "what was tried belongs to the lab notes",
    "training/tools.csv": "what was tried belongs to the lab notes",
    "training/tools_blocks_gpu_460.csv": "what was tried belongs to the lab notes",
    "training/tools_blocks_gpu_460_cpu_430.csv": "what was tried belongs to the lab notes",
    "training/tools_blocks_cpu_2060.csv": "what was tried belongs to the lab notes",
    "operators/registers.csv": "the compiler's figures, which are no measurement",
    "operators/linear_predicted.csv": "predictions, which are no measurement",
    "serving/imports.csv": "on the page about what a start takes",
    "serving/loading.csv": "on the page about what a start takes",
    "serving/division.csv": "computed, and on the page about context parallelism",
}
ALL = [*TABLES.values(), *OTHERS.values()]
TEMPLATE_NAMES = sorted(path.name for path in TEMPLATES.glob("*.md"))
TYPED = re.compile(r"(?<![\w-])\d")
NOT_TYPED = re.compile(r"`[^`]*`|“[^”]*”|\]\([^)]*\)|^    .*$|\{\{.*?\}\}", re.MULTILINE)


def row(**values):
    return {"gpu": "A", "date": "2026-01-01", "engine": "plugin", "prompt_tokens": "100"} | values


def table(**changes):
    common = {"sources": ("few.csv",), "down": (Column("prompt_tokens", "tokens"),), "across": (Column("engine", ""),)}
    common |= {"values": (Column("ttft_s", "s", 3),), "shapes": "tiny", "baseline": "none", "command": "python"}
    return Table(**common | changes)


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_a_page_is_what_the_script_makes(name):
    made = render((TEMPLATES / name).read_text(), PAGES / name, RESULTS)
    assert (PAGES / name).read_text() == made, "run python -m benchmarks.report.pages"


def test_every_page_has_a_template():
    assert sorted(path.name for path in PAGES.iterdir()) == TEMPLATE_NAMES


def test_the_overview_shows_the_rows_that_there_are():
    if not OVERVIEW.rows(RESULTS):
        assert not OVERVIEW.path.exists()
    else:
        assert escape(OVERVIEW.description(RESULTS)) in OVERVIEW.path.read_text(), (
            "run python -m benchmarks.report.pages"
        )


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_no_number_is_typed(name):
    prose = NOT_TYPED.sub("", (TEMPLATES / name).read_text())
    assert not TYPED.findall(prose), [line for line in prose.splitlines() if TYPED.search(line)]


def test_a_typed_number_is_found():
    found = NOT_TYPED.sub("", "The first token comes 3.5 times sooner than `stock 2` [here](a/1.md)")
    assert TYPED.findall(found) == ["3", "5"]


def test_every_table_and_fact_is_on_a_page():
    asked = {name for path in TEMPLATES.glob("*.md") for name in NAME.findall(path.read_text())}
    assert asked == TABLES.keys() | FACTS.keys() | {"overview", EVERYTHING_ELSE}


def test_every_result_file_is_shown():
    there = {str(path.relative_to(RESULTS)) for path in RESULTS.rglob("*.csv")}
    shown_files = {source for one in ALL for source in one.sources}
    shown_files |= {source for plots in SECTIONS.values() for plot in plots for source in plot.table.sources}
    assert there - shown_files == NOT_SHOWN.keys()


def test_no_row_is_lost():
    """What a newer row supersedes on its page is on the page of the history."""
    pages = {tuple(sorted(one.items())) for which in ALL for one in which.chosen(RESULTS)}
    for which in ALL:
        older = replace(which, superseded=True, show={}).chosen(RESULTS) if which.key else []
        assert {tuple(sorted(one.items())) for one in older} <= pages, which.sources


def test_every_table_has_a_place_for_what_is_superseded():
    older = {(which.sources, which.key) for which in ALL if which.superseded}
    assert {(which.sources, which.key) for which in TABLES.values() if which.key} <= older


def test_the_history_gets_a_section_when_something_is_superseded(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "serving" / "prefix_cache.csv"
    again = next(line for line in path.read_text().splitlines() if "first question" in line and "4.6069" in line)
    path.write_text(path.read_text() + again.replace("4.6069", "4.5").replace("2026-11-24", "2026-12-01") + "\n")
    pages = {
        name: render((TEMPLATES / name).read_text(), PAGES / name, tmp_path / "results")
        for name in ("history.md", "serving.md")
    }
    assert "| 4.5 |" in pages["serving.md"] and "4.607" not in pages["serving.md"]
    assert "## The prefix cache" in pages["history.md"] and "4.607" in pages["history.md"]
    assert "## The prefix cache" not in (PAGES / "history.md").read_text()


def test_a_changed_result_changes_its_page(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "soak" / "run.csv"
    path.write_text(path.read_text().replace("7661477", "7661478"))
    made = render((TEMPLATES / "soak.md").read_text(), PAGES / "soak.md", tmp_path / "results")
    assert "7,661,478" in made and made != (PAGES / "soak.md").read_text()


def test_pages_without_any_rows_say_what_measures_them(tmp_path):
    made = render((TEMPLATES / "serving.md").read_text(), PAGES / "serving.md", tmp_path)
    assert made.count("*No row yet*") > 10
    assert "The first token comes" not in made, "a sentence without its figure"
    assert "{{" not in made and "None" not in made


def test_a_template_cannot_ask_for_what_there_is_not():
    with pytest.raises(KeyError, match="no such table"):
        render("{{ no such table }}", PAGES / "x.md", RESULTS)


def test_the_newest_row_of_each_gpu_counts():
    rows = [
        row(date="2026-01-02", ttft_s="2"),
        row(ttft_s="1"),
        row(ttft_s="9", gpu="B"),
        row(date="2026-01-02", ttft_s="3"),
        row(ttft_s="4", prompt_tokens="200"),
    ]
    newest, older = by_age(rows, ("engine", "prompt_tokens"))
    assert [one["ttft_s"] for one in newest] == ["9", "3", "4"]
    assert [one["ttft_s"] for one in older] == ["2", "1"]


def test_lines_and_columns():
    rows = [row(ttft_s="1.23456"), row(ttft_s="2", engine="stock"), row(ttft_s="30", prompt_tokens="20")]
    assert table().cells(rows) == [["tokens", "plugin", "stock"], ["20", "30", ""], ["100", "1.23", "2"]]
    assert markdown([["a", "b"], ["x", "1,000.5"], ["y", ""]]) == (
        "| a | b |\n| --- | ---: |\n| x | 1,000.5 |\n| y |  |"
    )


def test_gpus_get_a_column_where_there_are_several():
    rows = [row(ttft_s="1"), row(ttft_s="2", gpu="B")]
    assert table().cells(rows) == [["GPU", "tokens", "plugin"], ["A", "100", "1"], ["B", "100", "2"]]


def test_two_rows_for_one_cell_are_refused_unless_reduced():
    rows = [row(ttft_s="1"), row(ttft_s="3")]
    with pytest.raises(ValueError, match="ttft_s has 1, 3 in one cell; allowed: one value"):
        table().cells(rows)
    assert table(reduce=max).cells(rows)[1] == ["100", "3.0"]


@pytest.mark.parametrize(
    ("value", "digits", "most", "text"),
    [(1040000, None, None, "1,040,000"), (15357.25, 3, None, "15,357"), (0.0425, 4, 4, "0.0425"), (6.713, 3, 3, "6.71"),
     (0.000072, 2, None, "0.000072"), (0, 3, 1, "0.0"), (12.5, None, None, "12.5"), (250.0, 4, 0, "250")],
)  # fmt: skip
def test_numbers(value, digits, most, text):
    assert shown(value, digits, most) == text


def test_commits_are_no_numbers():
    assert Column("commit", "commit", verbatim=True).text("4281070") == "4281070"


def test_surroundings_name_everything():
    options = '{"chunked_prefill_size": 8192, "disable_radix_cache": true, "load_format": "auto"}'
    said = dict(gpu="NVIDIA H100", driver="580", torch="2.11.0+cu130", sglang="0.5.23", triton="3.6.0", python="3.12")
    said |= dict(commit="abc", date="2026-01-02", dtype="bfloat16", weights="random", options=options)
    rows = [complete("few.csv", dict(said)), complete("few.csv", said | {"commit": "def", "date": "2026-01-03"})]
    assert surroundings(rows, "tiny", "stock") == (
        "NVIDIA H100; driver 580; torch 2.11.0; SGLang 0.5.23; Triton 3.6.0; Python 3.12; bfloat16; "
        "random weights, of usual size; tiny; baseline: stock; prefix cache off; chunks of 8,192 tokens; "
        "commit abc (2026-01-02), commit def (2026-01-03)"
    )
    assert (
        surroundings([{}], "tiny", "")
        == "tiny; no baseline; GPU not recorded; weights not recorded; commit not recorded"
    )


def test_a_row_is_never_less_than_its_file_says():
    for path in RESULTS.rglob("*.csv"):
        source = str(path.relative_to(RESULTS))
        with path.open(newline="") as file:
            for raw, found in zip(csv.DictReader(file), read(RESULTS, (source,)), strict=True):
                kept = {name: value for name, value in raw.items() if value and name not in ("weights", "operator")}
                assert found.items() >= kept.items()
