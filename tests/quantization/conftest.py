"""A small checkpoint of 16 bits to be quantised."""

from pathlib import Path

import pytest

from testing.quantised_checkpoints import make_source


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("quantised") / "source")
