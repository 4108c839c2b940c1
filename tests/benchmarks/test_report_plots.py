"""Plots, the overview and the HTML report, on made-up rows where nothing was measured yet."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from benchmarks.report import html, overview
from benchmarks.report.catalogue import SECTIONS
from benchmarks.report.draw import DARK, LIGHT
from benchmarks.report.pages import PAGES, TEMPLATES, render
from benchmarks.report.plot import engine
from benchmarks.report.rows import RESULTS
from benchmarks.serving import side_by_side

LENGTHS = 8192, 131_072, 262_144, 2_097_152
# Seconds to the first token per 1,000 tokens, milliseconds per further token, longest prompt.
ENGINES = {
    "plugin": (0.033, 6.7, LENGTHS[-1]),
    "plugin-fp8": (0.023, 4.7, LENGTHS[-1]),
    "plugin-w4": (0.025, 2.5, LENGTHS[-1]),
    "stock-dense": (0.060, 12.0, LENGTHS[-1]),
    "qwen3-8b-flashinfer": (0.230, 19.0, LENGTHS[2]),
    "qwen3-8b-fa3": (0.220, 20.0, LENGTHS[2]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results with a made-up comparison of engines, among them one that no measurement has yet."""
    folder = tmp_path_factory.mktemp("made_up") / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns("race.csv"))
    about = {"date": "2026-01-01", "gpu": "made up", "commit": "abcdef1", "weights": "random", "new_tokens": 65}
    about |= {"options": json.dumps({"load_format": "auto"})}
    with (folder / "serving" / "side_by_side.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, side_by_side.COLUMNS)
        writer.writeheader()
        for name, (seconds, decode, longest) in ENGINES.items():
            for tokens in LENGTHS:
                found = {"outcome": "does not fit: the memory holds 300000 tokens"}
                if tokens <= longest:
                    found = {"outcome": "measured", "ttft_s": round(seconds * tokens / 1000, 4)}
                    found |= {"decode_ms_per_token": decode, "needed_memory_mib": 20_000 + tokens // 100}
                writer.writerow(about | found | {"engine": name, "prompt_tokens": tokens})
    return folder


def test_the_overview_has_every_engine_and_qwen_at_its_fastest(results):
    lines = overview.FIRST.points(overview.FIRST.rows(results))
    assert list(lines) == ["sala-sglang, bf16", "sala-sglang, FP8", "sala-sglang, W4", "stock SGLang, full attention",
                           "Qwen3-8B"]  # fmt: skip
    assert lines["Qwen3-8B"] == {"8192": 1.8022, "131072": 28.8358, "262144": 57.6717}, "of FA3, which is sooner"
    further = overview.FURTHER.points(overview.FURTHER.rows(results))
    assert set(further["Qwen3-8B"].values()) == {19.0}, "of FlashInfer, which is faster per token"
    assert lines["sala-sglang, W4"]["2097152"] == 52.4288


def test_the_overview_is_a_picture_for_light_and_dark_that_says_what_it_shows(results):
    text = overview.overview(results)
    root = ElementTree.fromstring(text)
    said = {child.tag.rpartition("}")[2]: child.text or "" for child in root}
    assert "sala-sglang, W4: 0.2048 at 8,192" in said["desc"] and "made up" in said["desc"]
    assert LIGHT in said["style"] and DARK in said["style"]
    drawn = "".join(root.itertext())
    assert "Time per further token" in drawn and "Qwen3-8B" in drawn and "2M" in drawn
    assert "#0a0b" not in text and "#010203" not in text, "colours that only stand for others"


def test_the_overview_is_the_same_every_time(results):
    assert overview.overview(results) == overview.overview(results)


def test_engines_that_are_not_known_yet_have_names():
    assert engine("plugin-eagle") == "sala-sglang, EAGLE" and engine("vllm") == "vllm"


def test_pages_have_the_comparison_as_soon_as_it_is_measured(results):
    front = render((TEMPLATES / "README.md").read_text(), PAGES / "README.md", results)
    assert "* plugin at 262,144 tokens: **6.7 times** sooner at the first token, **2.8 times** faster" in front
    assert "* plugin-w4 at 262,144 tokens: **8.8 times** sooner" in front
    assert "(../overview.svg)" in front
    serving = render((TEMPLATES / "serving.md").read_text(), PAGES / "serving.md", results)
    assert "| 8,192 | 0.2703 | 0.1884 | 0.2048 | 0.4915 |" in serving
    assert "| qwen3-8b-fa3 | 2,097,152 | does not fit: the memory holds 300000 tokens |" in serving


class Parts(HTMLParser):
    """Tags that are open, names of parts, and what refers to something else."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.names, self.references = [], [], []
        self.tags = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.names.append(value)
            elif name in ("src", "href", "xlink:href"):
                self.references.append(value)
            else:
                self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert html.main(["--results", str(results), "--out", str(path)]) == 0
    return path.read_text()


def test_the_report_needs_nothing_beside_itself(report):
    parts = Parts()
    parts.feed(report)
    assert not parts.open and "script" not in parts.tags and "link" not in parts.tags and "@import" not in report
    assert len(set(parts.names)) == len(parts.names), "two parts of the page have one name"
    assert {reference.lstrip("#") for reference in parts.references} <= set(parts.names)
    assert all(reference.startswith("#") for reference in parts.references)


def test_the_report_has_every_plot_that_has_rows(report, results):
    drawn = [plot for plots in SECTIONS.values() for plot in plots if plot.rows(results)]
    assert report.count("<figure ") == report.count("<svg ") == len(drawn) > 25
    assert all(f"<h3>{plot.title}</h3>" in report for plot in drawn)
    assert "<li>Time until the last answer: <code>python -m benchmarks.serving.race</code></li>" in report
    assert "GPU" in report and "commit 9b4751f (2026-11-26)" in report


def test_plots_have_names_of_their_own():
    titles = [plot.title for plots in SECTIONS.values() for plot in plots]
    assert len(set(titles)) == len(titles)


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        html.main(["--results", str(tmp_path / "none"), "--out", str(tmp_path / "x.html")])
    assert "is no folder; allowed: a folder laid out as benchmarks/results" in capsys.readouterr().err


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path, capsys):
    assert html.main(["--results", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 0
    assert "0 plots" in capsys.readouterr().out
    assert "No rows yet" in (tmp_path / "x.html").read_text()
