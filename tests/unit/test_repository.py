"""Licence, build context, CI workflow, hooks and templates agree with the repository around them."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from cluster import images

ROOT = Path(__file__).parents[2]
APACHE_2_0_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""Digest of the text that the Apache Software Foundation publishes, appendix included."""


def test_the_licence_is_the_published_text_of_apache_2_0() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0_SHA256


def test_the_package_declares_its_licence_and_ships_its_text() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE", "NOTICE"]


def test_files_that_the_notice_names_exist() -> None:
    named = re.findall(r"^(\S+\.\w+)$", (ROOT / "NOTICE").read_text(), re.MULTILINE)
    assert named == ["tests/cluster/kwok-stages.yaml", "CODE_OF_CONDUCT.md"]
    assert [name for name in named if not (ROOT / name).exists()] == []


def _copied_by_the_dockerfile() -> list[str]:
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return sorted({source for sources in copies for source in sources.split()})


@pytest.mark.parametrize("source", _copied_by_the_dockerfile())
def test_what_the_dockerfile_copies_reaches_every_builder(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert source in images._SHIPPED
