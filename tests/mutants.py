"""Planted mistakes of the operator, each of which a test must find: ``PYTHONPATH=tests python -m mutants``.

A mutant is a copy of the operator with one text replaced. Its tests have to fail; the table that is printed
names the test that failed first. The exit code is 1 if a mutant survives, or if its text is no longer there.
Arguments choose mutants by their names. Not a part of CI: a round takes about a minute of CPU time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
_OPERATOR = ROOT / "operator"


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        file: Module below ``operator/tlt_operator``.
        right: Text of the operator.
        wrong: Text that stands in its place.
        tests: What has to fail, as arguments of pytest.
    """

    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


_SET_TTL = """    for job_name, uid, seconds in plan.ttl:
        with metrics.write(kind, "ttl"), contextlib.suppress(NotFoundError, ConflictError):
            await client.set_job_ttl(snapshot.namespace, job_name, uid, seconds)
"""
_CREATE = """    if plan.create is not None:
        with _as_a_fact(), metrics.write(kind, "job"):
"""
_STATUS_FIRST = """    if plan.create is not None and status is not None:
        early = _merge_patch(operator_fields(snapshot.stored_status), operator_fields(status))
        version = (await client.patch_status(*identity, early, version))["metadata"]["resourceVersion"]
"""

MUTANTS = {
    "a Job is created without a live look at its resource": Mutant(
        "controller.py",
        "            await _require_unchanged(client, snapshot)\n            await _require_no",
        "            await _require_no",
        ("tests/unit/test_operator_histories_found.py",),
    ),
    "a Job of another resource of the same name is adopted": Mutant(
        "snapshot.py",
        "        return self.job if self.job and self.job.owner_uid == self.uid else None\n",
        "        return self.job\n",
        ("tests/unit/test_operator_histories.py", "-k", "adopts"),
    ),
    "the status names an attempt before its Job exists": Mutant(
        "apply.py",
        _CREATE,
        _STATUS_FIRST + _CREATE,
        ("tests/unit/test_operator_crashes.py",),
    ),
    "attempts follow each other without a delay": Mutant(
        "reconcile/retry.py",
        "    if doublings < 0:\n",
        "    if True:\n",
        ("tests/unit/test_operator_retries.py",),
    ),
    "a Job gets its TTL before its outcome is recorded": Mutant(
        "apply.py",
        "    # Each status write is guarded by the version of the one before",
        _SET_TTL + "    # Each status write is guarded by the version of the one before",
        ("tests/unit/test_operator_crashes.py",),
    ),
    "an output is not claimed while its Job is created": Mutant(
        "controller.py",
        "        outputs.claim(key)\n",
        "        pass\n",
        ("tests/unit/test_operator_outputs.py",),
    ),
    "an output is free as soon as its resource is deleted": Mutant(
        "controller.py",
        "(former := await _former_writer(client, key, outputs))",
        "(former := None)",
        ("tests/unit/test_operator_outputs.py",),
    ),
    "a failure counts twice": Mutant(
        "reconcile/plan.py",
        '{"retries": (status.retries or 0) + 1}',
        '{"retries": (status.retries or 0) + 2}',
        ("tests/unit/test_operator_retries.py",),
    ),
    "a write does not ask for the Lease": Mutant(
        "cluster/http.py",
        "        if guarded and not self.may_write():\n",
        "        if False:\n",
        ("tests/unit/test_operator_traffic.py",),
    ),
    "a watch ignores deletions": Mutant(
        "watches.py",
        "            self._changed(objects.deleted(body))\n",
        "            pass\n",
        ("tests/unit/test_operator_cache.py",),
    ),
    "a Job that the user suspended is not resumed": Mutant(
        "reconcile/suspension.py",
        "    if job.suspended_by_us:\n",
        "    if False:\n",
        ("tests/unit/test_operator_suspension.py",),
    ),
}


def main(names: list[str]) -> int:
    """Try mutants, all of them without names; return the exit code."""
    survivors = 0
    print("| mistake | found by |\n|---|---|")
    for name, mutant in MUTANTS.items():
        if names and name not in names:
            continue
        killer = _killer(mutant)
        survivors += not killer
        print(f"| {name} | {f'`{killer}`' if killer else '**nothing**'} |", flush=True)
    return 1 if survivors else 0


def _killer(mutant: Mutant) -> str:
    """Return the test that finds a mutant; empty if there is none."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "operator"
        shutil.copytree(_OPERATOR, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        module = copy / "tlt_operator" / mutant.file
        text = module.read_text()
        count = text.count(mutant.right)
        if count != 1:
            raise SystemExit(
                f"expected the text of the mutant once in {mutant.file}, found {count} times:\n{mutant.right}"
                "Change `right` in tests/mutants.py as the operator was changed."
            )
        module.write_text(text.replace(mutant.right, mutant.wrong))
        # Before the installed operator, which is found by the editable installation.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(copy), str(ROOT / "tests")))}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
    if result.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", result.stdout, re.MULTILINE)
    # Any other end of pytest is no verdict.
    if result.returncode != 1 or failed is None:
        raise SystemExit(f"expected a failed test, got:\n{result.stdout[-3000:]}{result.stderr[-1000:]}")
    return failed[1].removeprefix("tests/unit/")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
