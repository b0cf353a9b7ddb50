"""Times as Kubernetes writes them: RFC 3339, UTC, whole seconds."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def to_wire(moment: datetime) -> str:
    """RFC 3339 in UTC, without fractions of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_wire(text: str | None) -> datetime | None:
    """The inverse of :func:`to_wire`, with fractions and offsets understood; None for no text."""
    return datetime.fromisoformat(text) if text else None
