"""Times as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def to_wire(moment: datetime) -> str:
    """Return a time as RFC 3339 in UTC, without fractions of a second."""
    # metav1.Time has whole seconds: fractions would differ from what is read back.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_wire(text: str | None) -> datetime | None:
    """Read a time in RFC 3339, with fractions and offsets too; None for no text."""
    return datetime.fromisoformat(text) if text else None


def age(since: datetime | None, now: datetime) -> float:
    """Return the seconds since a time; 0 for none, and for one that is to come by a clock that is behind."""
    return max((now - since).total_seconds(), 0.0) if since else 0.0
