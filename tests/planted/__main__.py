"""Plant every mistake into a copy of the tree and see whether its test finds it.

    python -m tests.planted [NAME ...] [--output FILE [--missing]]

Names choose mistakes; without any, all of them are planted, one after the other. A test must pass without the mistake
and fail with it. Prints a Markdown table; FILE gets one too, after every mistake, with the commit of each verdict and
with the verdicts that it already had. --missing plants those that it does not say "yes" of: so an interrupted run goes
on. Exit code 1: not all were found.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.planted import MISTAKES
from tests.planted.mistake import Mistake

ROOT = Path(__file__).parents[2]
HEADING = 2  # lines of a table
PASSED, FAILED = 0, 1  # exit codes of pytest; others say that no test was run
COLUMNS = "mistake", "test", "found", "commit"
ABOUT = """# Planted mistakes

A test that has never failed proves nothing. {planted} of {all} mistakes were planted, one at a time, into a copy of the
tree at the commit that the table names; their tests passed without them and had to fail with them. The list is
`tests/planted/`, `python -m tests.planted --output docs/contributing/planted-mistakes.md` does it again, and with
`--missing` only those that the table lacks.
"""
PACKAGES = "sala_sglang", "sala_kernels", "training", "benchmarks", "testing"


def main() -> int:
    names = {mistake.name for mistake in MISTAKES}
    parser = argparse.ArgumentParser(prog="python -m tests.planted", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--missing", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.names) - names:
        parser.error(f"{sorted(unknown)} are no mistakes; allowed: {sorted(names)}")
    if options.missing and not options.output:
        parser.error("--missing needs --output")
    page = Page(options.output)
    found = page.found() if options.missing else set()
    chosen = [m for m in MISTAKES if (not options.names or m.name in options.names) and m.name not in found]
    with TemporaryDirectory(prefix="sala-planted-") as folder:
        copy = Path(folder) / "copy"
        copy_tree(copy)
        verdicts = {}
        for name, verdict in plant_all(copy, chosen):
            verdicts[name] = verdict
            page.write(name, verdict)
    print("\n".join(table([(m.name, f"`{m.test}`", verdicts[m.name]) for m in chosen], COLUMNS[:-1])))
    return 0 if set(verdicts.values()) <= {"yes"} else 1


def copy_tree(copy: Path) -> None:
    """Every file that git knows, or would know, as it is now."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)


def environment(copy: Path) -> dict[str, str]:
    """The copy's packages come before the installed ones, also in what tests start; no stale bytecode."""
    return os.environ | {
        "PYTHONPATH": f"{copy}{os.pathsep}{copy / 'kernels'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def plant_all(copy: Path, chosen: list[Mistake]):
    """Pairs of a name and ``yes``, or why the mistake does not count as found."""
    check_packages(copy)
    tests = list(dict.fromkeys(mistake.test for mistake in chosen))
    all_pass = run_tests(copy, *tests) == PASSED
    without = {test: PASSED if all_pass else run_tests(copy, test) for test in tests}
    for mistake in chosen:
        if without[mistake.test] != PASSED:
            verdict = "the test does not pass without it"
        else:
            verdict = {PASSED: "no", FAILED: "yes"}.get(plant(copy, mistake), "the test did not run")
        print(f"{mistake.name}: {verdict}", file=sys.stderr, flush=True)
        yield mistake.name, verdict


def check_packages(copy: Path) -> None:
    """Raise RuntimeError unless another process takes the packages from the copy."""
    code = f"import {', '.join(PACKAGES)}, sys; print(*(sys.modules[n].__file__ for n in {PACKAGES!r}), sep='\\n')"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(copy), cwd="/", capture_output=True, text=True, check=True)
    if strangers := [path for path in done.stdout.split() if not path.startswith(str(copy))]:
        raise RuntimeError(f"not from the copy: {strangers}")


def plant(copy: Path, mistake: Mistake) -> int:
    """Exit code of the mistake's test with the mistake in the copy, which is afterwards what it was."""
    path = copy / mistake.file
    text = path.read_text()
    if text.count(mistake.old) != 1:
        raise ValueError(f"{mistake.name}: {mistake.file} has the old text {text.count(mistake.old)} times")
    path.write_text(text.replace(mistake.old, mistake.new))
    try:
        return run_tests(copy, mistake.test)
    finally:
        path.write_text(text)


def run_tests(copy: Path, *tests: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not gpu", *tests]
    return subprocess.run(command, cwd=copy, env=environment(copy), stdout=subprocess.DEVNULL).returncode


def table(rows: Sequence[tuple[str, ...]], columns: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows)]


class Page:
    """The table of all verdicts in a file; without one nothing is written."""

    def __init__(self, path: Path | None):
        self.path = path
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        self.commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
        text = path.read_text() if path and path.exists() else ""
        lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        self.verdicts = {name: (found, commit) for name, _, found, commit in lines[HEADING:]}

    def found(self) -> set[str]:
        return {name for name, (verdict, _) in self.verdicts.items() if verdict == "yes"}

    def write(self, name: str, verdict: str) -> None:
        self.verdicts[name] = verdict, self.commit
        rows = [(m.name, f"`{m.test}`", *self.verdicts[m.name]) for m in MISTAKES if m.name in self.verdicts]
        if self.path:
            about = ABOUT.format(planted=len(rows), all=len(MISTAKES))
            self.path.write_text("\n".join([about, *table(rows, COLUMNS), ""]))


if __name__ == "__main__":
    sys.exit(main())
