"""The number of CPUs that a process may use."""

from pathlib import Path

import pytest

from tlt_runner.cpus import available_cpus


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("50000 100000", 1), ("100000 100000", 1), ("max 100000", None), ("", None)],
)
def test_a_pod_limit_lowers_the_number_of_cpus(tmp_path: Path, limit: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    unlimited = available_cpus(tmp_path / "missing")
    assert available_cpus(tmp_path / "cpu.max") == (unlimited if expected is None else expected)
