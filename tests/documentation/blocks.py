"""The blocks of code in the documents, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*(\w*)")
# What the lines that belong to a list item, an admonition or a tab are indented by.
CONTAINER = re.compile(r"( *)(?:([*+-]|\d+[.)]) +(?=\S)|(?:!!!|\?\?\?|===))")
CODE_INDENT = 4
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
SEPARATORS = {"&&", "||", "|", ";", "&"}


class Block(NamedTuple):
    """line: of its first line, from 1. language: of a fence; None for an indented block."""

    file: Path
    line: int
    language: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """words: as the shell passes them. environment: what is assigned in front of it, or exported earlier."""

    words: tuple[str, ...]
    environment: dict[str, str]


def documents() -> list[Path]:
    """What users and contributors read."""
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
    return [*places, *ROOT.glob("checkpoints/*/README.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(file: Path, text: str) -> Iterator[Block]:
    """Every fenced and every indented block, without the indentation that all of its lines have."""
    lines = text.expandtabs(CODE_INDENT).splitlines()
    container, number = 0, 0
    while number < len(lines):
        line = lines[number]
        after_blank = not number or not lines[number - 1].strip()
        if match := FENCE.match(line):
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == match[2])
            yield Block(file, number + 2, match[3], cut(lines[number + 1 : end], len(match[1])))
            number = end
        elif line.strip() and after_blank and indent(line) >= container + CODE_INDENT:
            end = number + 1
            while end < len(lines) and (not lines[end].strip() or indent(lines[end]) >= container + CODE_INDENT):
                end += 1
            yield Block(file, number + 1, None, cut(lines[number:end], indent(line)).rstrip())
            number = end - 1
        elif (match := CONTAINER.match(line)) and (after_blank or container):
            container = match.end() if match[2] else len(match[1]) + CODE_INDENT
        elif line.strip() and indent(line) < container:
            container = 0
        number += 1


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def cut(lines: list[str], width: int) -> str:
    return "\n".join(line[width:] if not line[:width].strip() else line.lstrip() for line in lines)


def commands(text: str) -> Iterator[Command]:
    """The commands of a shell block, with variables that the block itself sets. Raises ValueError for what it cannot
    read, such as a quote without an end."""
    known: dict[str, str] = {}
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        waiting += line.removeprefix("$ ") if not waiting else f"\n{line}"
        if not is_complete(waiting):
            continue
        for words in split(expand(waiting, known)):
            environment = {}
            while (words and words[0] == "export") or (words and ASSIGNMENT.fullmatch(words[0])):
                word = words.pop(0)
                if found := ASSIGNMENT.fullmatch(word):
                    environment[found[1]] = found[2]
            if words:
                yield Command(tuple(words), known | environment)
            else:
                known |= environment
        waiting = ""
    if waiting:
        raise ValueError(f"a quote has no end: {waiting!r}")


def expand(text: str, known: dict[str, str]) -> str:
    """Variables of the block in place of their names; a value between double quotes stays one word."""
    for name, value in known.items():
        text = text.replace(f'"${name}"', shlex.quote(value))
    return Template(text).safe_substitute(known)


def is_complete(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def split(line: str) -> list[list[str]]:
    """Words of each command of a line, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = list(lexer)
    while words:
        word = words.pop(0)
        if word in SEPARATORS:
            found.append([])
        elif word in {">", ">>", "<"}:
            words.pop(0)
        else:
            found[-1].append(word)
    return [words for words in found if words]
