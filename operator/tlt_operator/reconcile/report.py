"""Report of the runner in the termination message, and the fields of the status that it completes.

The runner writes its fields itself while it runs (field manager ``tlt-runner``). The termination message
carries the same report, perhaps shortened, and arrives even when the API server was away. At the end of an
attempt the operator therefore applies, as the same field manager, the fields of the status completed by the
message: a field that the message lacks (to save space) is kept; a field that differs is newer in the
message, which was written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tlt_api.runreport import RunReport
from tlt_api.status import RUNNER_FIELDS, JobStatus
from tlt_operator.snapshot import PodState


def parse(message: str) -> RunReport | None:
    """Return the report in a termination message, or None for other text, for example the end of a log."""
    if not message.lstrip().startswith("{"):
        return None
    try:
        # A message that was cut, or comes from another image, is no report.
        return RunReport.model_validate_json(message)
    except ValidationError:
        return None


def from_pods(pods: Sequence[PodState]) -> RunReport | None:
    """Return the report of the pod that ended last; of several that worked together, index 0 reports."""
    # Index 0, or no index at all: the pod of an ordinary Job.
    chiefs = [pod for pod in pods if not pod.index]
    reports = [parse(pod.container.message) for pod in chiefs if pod.container and pod.container.message]
    return next((report for report in reversed(reports) if report), None)


def completed(status: JobStatus, report: RunReport | None) -> dict[str, Any] | None:
    """Return the runner's fields of the status completed by a report, or None if it adds nothing."""
    if report is None:
        return None
    # A report has the fields of all kinds; a status accepts those of its own kind only.
    fields = set(RUNNER_FIELDS & type(status).model_fields.keys())
    current = status.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    # The API server checks reportedFor while the runner reports; in the message nobody has checked it.
    fields -= {"reported_for"}
    reported = report.model_dump(mode="json", by_alias=True, exclude_none=True, include=fields)
    # All fields, not just the new ones: server-side apply removes those that a manager leaves out.
    merged = {
        **current,
        **{name: _completed(name, current.get(name), value) for name, value in reported.items()},
    }
    # Mostly the status has everything already: no write then.
    return merged if merged != current else None


def _completed(name: str, current: Any, reported: Any) -> Any:
    # The message may lack the checkpoints of epochs, to save space: those in the status are kept.
    if name == "artifacts" and current:
        return list({item["name"]: item for item in [*current, *reported]}.values())
    # A section that was shortened for the message says nothing new.
    if isinstance(current, dict) and isinstance(reported, dict) and current.items() >= reported.items():
        return current
    return reported
