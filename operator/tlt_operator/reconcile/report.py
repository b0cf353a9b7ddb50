"""The runner's report in the termination message, and what of it the status lacks.

The runner writes its fields itself while it runs (field manager ``tlt-runner``). The termination message
carries the same, perhaps shortened, and arrives even when the API server was away. So at the end of an
attempt the operator applies, as the same field manager, what stands in the status already, completed by the
message. What the message left out for want of space is kept; what it says otherwise is newer, since it was
written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from tlt_api.runreport import RunReport
from tlt_api.status import JobStatus
from tlt_operator.observed import PodState

RUNNER_FIELDS = frozenset(RunReport.model_fields) - {"failure"}


def parse(message: str) -> RunReport | None:
    """The report in a termination message; None where it is something else, for example the end of a log."""
    if not message.lstrip().startswith("{"):
        return None
    try:
        return RunReport.model_validate_json(message)
    except ValidationError:
        return None


def of_pods(pods: Sequence[PodState]) -> RunReport | None:
    """The report of the pod that ended last; of several that worked together, index 0 reports."""
    chiefs = [pod for pod in pods if not pod.index]
    reports = [parse(pod.container.message) for pod in chiefs if pod.container and pod.container.message]
    return next((found for found in reversed(reports) if found), None)


def completed(status: JobStatus, report: RunReport | None) -> dict[str, Any] | None:
    """The runner's fields of the status completed by a report; None where it adds nothing."""
    if report is None:
        return None
    fields = (RUNNER_FIELDS | {"reported_for"}) & set(type(status).model_fields)
    current = status.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(fields))
    told = report.model_dump(mode="json", by_alias=True, exclude_none=True, include=set(fields))
    merged = {**current, **{name: _completed(name, current.get(name), value) for name, value in told.items()}}
    return merged if merged != current else None


def _completed(name: str, current: Any, told: Any) -> Any:
    if name == "artifacts" and current:
        return list({item["name"]: item for item in [*current, *told]}.values())
    if isinstance(current, dict) and isinstance(told, dict) and current.items() >= told.items():
        return current
    return told
