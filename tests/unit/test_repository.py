"""Licence, build context, CI workflow, hooks and templates agree with the repository around them."""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def _make_targets() -> dict[str, list[str]]:
    """Prerequisites by target of the Makefile."""
    rules = re.findall(r"^([a-z0-9-]+):([^#=\n]*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target: prerequisites.split() for target, prerequisites in rules}


def _rings(targets: list[str]) -> list[str]:
    """The same targets, with `test` replaced by what it consists of."""
    return [
        ring for target in targets for ring in (_make_targets()["test"] if target == "test" else [target])
    ]


def _workflow() -> dict[Any, Any]:
    # YAML 1.1 reads the key `on` as true.
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


def _workflow_steps() -> list[dict[str, Any]]:
    return [step for job in _workflow()["jobs"].values() for step in job["steps"]]


def _targets_of_the_workflow() -> list[str]:
    commands = "\n".join(step.get("run", "") for step in _workflow_steps())
    return re.findall(r"\bmake ([a-z0-9-]+)", commands)


def test_the_workflow_calls_targets_of_the_makefile_only() -> None:
    targets = _targets_of_the_workflow()
    assert targets
    assert set(targets) <= set(_make_targets())


def test_the_workflow_runs_what_the_ci_script_runs() -> None:
    steps = re.findall(r"^step ([a-z0-9-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "setup" in steps
    assert set(_rings(_targets_of_the_workflow())) == set(_rings(steps))


def test_the_workflow_may_only_read_the_repository() -> None:
    assert _workflow()["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in _workflow()["jobs"].values())


def test_actions_are_pinned_by_their_major_version() -> None:
    actions = [step["uses"] for step in _workflow_steps() if "uses" in step]
    assert actions
    assert [action for action in actions if not re.fullmatch(r"actions/[a-z-]+@v\d+", action)] == []


def test_hooks_download_nothing_and_run_what_setup_installed() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        program, *arguments = hook["entry"].split()
        assert hook["language"] == "system", hook["id"]
        if program == "make":
            assert set(arguments) <= set(_make_targets()), hook["id"]
        else:
            assert program.startswith(".venv/bin/"), hook["id"]


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda f: f.stem
)
def test_issue_forms_have_what_the_forge_demands(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert set(content) <= {"blank_issues_enabled", "contact_links"}
        return
    assert content["name"] and content["description"]
    fields = [element for element in content["body"] if element["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers) > 0


def _pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")]


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
