"""Mistakes in the documents and in what makes a site of them."""

from tests.planted.mistake import Mistake

SITE = "tests/test_docs.py::test_the_site_builds_and_loads_nothing_from_elsewhere"

DOCUMENTS = (
    Mistake(
        "documents: a link leads nowhere",
        "docs/quickstart.md",
        "](guides/evaluation.md)",
        "](guides/evaluations.md)",
        "tests/test_docs.py::test_links_lead_somewhere",
    ),
    Mistake(
        "documents: links out of docs/ stay as they are in the site",
        "scripts/site_links.py",
        "return LINK.sub(replaced, _inline(markdown))",
        "return markdown",
        SITE,
    ),
    Mistake("documents: the site loads fonts", "mkdocs.yml", "  font: false", "  font: {text: Roboto}", SITE),
    Mistake(
        "documents: a sum of the guide is wrong",
        "docs/guides/long_contexts.md",
        "| sum | 35.69 |",
        "| sum | 35.96 |",
        "tests/test_docs.py::test_memory_of_the_guide_is_computed",
    ),
    Mistake(
        "documents: an option without a line",
        "docs/reference/command_line.md",
        "| `--depths N` |",
        "| depths |",
        "tests/test_docs.py::test_every_command_is_described",
    ),
)
