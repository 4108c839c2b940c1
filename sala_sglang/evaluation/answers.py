"""The file in which the answers of an evaluation are kept as they come, and from which it goes on."""

import json
from dataclasses import asdict
from pathlib import Path

from sala_sglang.evaluation.client import Outcome

Job = tuple[str, int, float, int]  # task, length in tokens, depth, number of the sample
DATE = "date"


class Unusable(ValueError):
    """The answers there are no part of this evaluation."""


class Answers:
    """JSON lines at ``path``: first what is evaluated (``about``), then an outcome each. Begun if there are none.

    about: what two parts of one evaluation have in common, and the ``date`` on which it began. ``kept`` has the
    outcomes so far. A line that was not written to its end is dropped. Raises Unusable, naming both values, where the
    file has another ``about``; their dates may differ, and the first one stays.
    """

    def __init__(self, path: Path, about: dict):
        about = json.loads(json.dumps(about))
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.splitlines()
        try:
            self.about = json.loads(lines[0]) if lines else about
            self.kept = dict(_parsed(json.loads(line)) for line in lines[1:])
        except (ValueError, KeyError, TypeError) as error:
            raise Unusable(f"{str(path)!r} has a line that is none of an evaluation: {error!r}") from error
        for name, value in about.items():
            if name != DATE and self.about.get(name) != value:
                raise Unusable(f"{name} is {value!r}, but {str(path)!r} was begun with {self.about.get(name)!r}")
        self._file = path.open("ab")
        self._file.truncate(len(whole))
        if not lines:
            self._write(self.about)

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, job: Job, outcome: Outcome) -> None:
        """Keep an outcome; it is in the file when this returns."""
        task, length, depth, number = job
        self._write({"task": task, "length": length, "depth": depth, "number": number} | asdict(outcome))
        self.kept[job] = outcome

    def _write(self, line: dict) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()


def _parsed(line: dict) -> tuple[Job, Outcome]:
    job = tuple(line.pop(name) for name in ("task", "length", "depth", "number"))
    return job, Outcome(**line)
