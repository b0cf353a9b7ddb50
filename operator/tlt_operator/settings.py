"""Settings of an installation, from environment variables ``TLT_*``; ``__main__`` reads them once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """Settings of the operator.

    Attributes:
        runner_image: Image of runner pods whose resource does not choose one.
        namespaces: Namespaces to serve; empty means all of the cluster.
        workers: Resources that are reconciled at the same time.
        sweep_seconds: Time between two sweeps, which find what the watches missed.
        retry_base_seconds: Delay before the first retry; each further one doubles it.
        retry_limit_seconds: Longest delay between two attempts, or between two tries to create a Job.
        health_port: Port of ``/healthz``.
        metrics_port: Port of ``/metrics``.
        request_timeout_seconds: Longest time for one request to the API server.
        lease_namespace: Namespace of the Lease that one of several replicas holds; empty for one replica.
        lease_seconds: Time after which another replica takes the Lease of one that died.
        log_level: Level of the operator's log.
    """

    runner_image: str = "tlt-runner:latest"
    namespaces: tuple[str, ...] = ()
    workers: int = 32
    sweep_seconds: float = 300
    retry_base_seconds: float = 10
    retry_limit_seconds: float = 600
    health_port: int = 8080
    metrics_port: int = 9090
    request_timeout_seconds: float = 30
    lease_namespace: str = ""
    lease_seconds: float = 10
    log_level: str = "INFO"


class SettingsError(ValueError):
    """Error of an environment variable whose value cannot be used."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read the settings from ``TLT_*`` variables: the attribute in capitals; unset ones keep their default.

    Raises:
        SettingsError: A value is not a number, out of range, or not a known level.
    """
    default = Settings()
    namespaces = environment.get("TLT_NAMESPACES", "")
    return Settings(
        runner_image=environment.get("TLT_RUNNER_IMAGE") or default.runner_image,
        # Sorted and without repetition: each namespace is watched and swept once.
        namespaces=tuple(sorted({name.strip() for name in namespaces.split(",") if name.strip()})),
        workers=int(_number(environment, "TLT_WORKERS", default.workers, least=1)),
        sweep_seconds=_number(environment, "TLT_SWEEP_SECONDS", default.sweep_seconds, least=1),
        retry_base_seconds=_number(environment, "TLT_RETRY_BASE_SECONDS", default.retry_base_seconds),
        retry_limit_seconds=_number(environment, "TLT_RETRY_LIMIT_SECONDS", default.retry_limit_seconds),
        health_port=int(_number(environment, "TLT_HEALTH_PORT", default.health_port)),
        metrics_port=int(_number(environment, "TLT_METRICS_PORT", default.metrics_port)),
        request_timeout_seconds=_number(
            environment, "TLT_REQUEST_TIMEOUT_SECONDS", default.request_timeout_seconds, least=1
        ),
        lease_namespace=environment.get("TLT_LEASE_NAMESPACE") or default.lease_namespace,
        lease_seconds=round(_number(environment, "TLT_LEASE_SECONDS", default.lease_seconds, least=5)),
        log_level=_level(environment.get("TLT_LOG_LEVEL") or default.log_level),
    )


def usage() -> str:
    """Return the variables and their defaults, a line each."""
    default = Settings()
    # From the dataclass: a new setting is listed without being written here.
    lines = [f"TLT_{field.name.upper()}={_shown(getattr(default, field.name))}" for field in fields(Settings)]
    return "Environment variables and their defaults:\n  " + "\n  ".join(lines)


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _number(environment: Mapping[str, str], name: str, default: float, least: float = 0) -> float:
    # Empty counts as unset: a template of a Deployment may render an empty value.
    text = environment.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name}: expected a number, got {text!r}") from None
    if value < least:
        raise SettingsError(f"{name}: expected at least {least:g}, got {text}")
    return value


def _level(text: str) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR")
    if text.upper() not in levels:
        raise SettingsError(f"TLT_LOG_LEVEL: expected one of {', '.join(levels)}, got {text!r}")
    return text.upper()
