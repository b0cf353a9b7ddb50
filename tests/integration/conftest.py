"""Fixtures that several files share: the data set of tiny trainings, made once."""

from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of tiny trainings. Tests only read it: records are made at each output address."""
    folder = tmp_path_factory.mktemp("scenes")
    tiny.generate_scenes(folder)
    return folder
