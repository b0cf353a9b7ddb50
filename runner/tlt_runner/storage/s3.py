"""An S3 server as files: downloads, uploads, listings. Only :mod:`tlt_runner.storage` calls it.

boto3 is imported here and nowhere else. Credentials come from the environment (``AWS_*``) or the pod's
identity, are never logged and never leave boto3. Requests are retried (with back-off) by botocore's standard
mode, a body that breaks off by s3transfer. Large objects go up and down in parts, and all transfers of a
process share one pool of connections.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
import boto3.exceptions
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from s3transfer.exceptions import RetriesExceededError

from tlt_api.common import S3Storage
from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors

PART_BYTES = 16 << 20
"""Size of a part; an object that is larger is transferred in parts."""
PARALLEL_REQUESTS = 16
"""Requests in flight, of all transfers together."""
REMOVED_AT_ONCE = 1000
"""Keys of one request, at most, by the protocol."""
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}


class ObjectStore:
    """One S3 server.

    Args:
        settings: Endpoint and region.
    """

    def __init__(self, settings: S3Storage) -> None:
        own_server = settings.endpoint is not None
        self._where = settings.endpoint or "AWS"
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            config=Config(
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=2 * PARALLEL_REQUESTS,
                s3={"addressing_style": "path" if own_server else "auto"},
                # Servers other than AWS's often refuse the checksum trailers that boto3 adds by default.
                request_checksum_calculation="when_required" if own_server else "when_supported",
                response_checksum_validation="when_required" if own_server else "when_supported",
            ),
        )

        self._transfers: Any = create_transfer_manager(
            self._client,
            TransferConfig(
                multipart_threshold=PART_BYTES,
                multipart_chunksize=PART_BYTES,
                max_concurrency=PARALLEL_REQUESTS,
                num_download_attempts=5,
                max_io_queue=PARALLEL_REQUESTS,  # chunks of 256 KiB that wait for the disk
                preferred_transfer_client="classic",
            ),
        )

    def download(self, bucket: str, key: str, target: Path) -> Path:
        """One object into a file, which appears whole or not at all."""
        uri = f"s3://{bucket}/{key}"
        try:
            with storage_errors(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._errors(uri):
                    self._transfers.download(bucket, key, str(target)).result()
        except NotFoundError as error:
            raise NotFoundError(f"expected an object at {uri}, {self._what_is_there(bucket, key)}") from error
        return target

    def download_folder(self, bucket: str, prefix: str, target: Path) -> Path:
        """Every object below a prefix into a folder, several at a time, while the listing goes on."""
        start = f"{prefix}/" if prefix else ""
        running: deque[tuple[str, Any]] = deque()
        found = False
        try:
            with self._errors(f"s3://{bucket}/{prefix}"):
                for key in self._keys(bucket, start):
                    if key.endswith("/"):
                        continue
                    found = True
                    path = target / _safe(bucket, key[len(start) :])
                    with storage_errors(str(path)):
                        path.parent.mkdir(parents=True, exist_ok=True)
                    running.append((key, self._transfers.download(bucket, key, str(path))))
                    if len(running) >= 2 * PARALLEL_REQUESTS:
                        self._finish(bucket, *running.popleft())
            while running:
                self._finish(bucket, *running.popleft())
        finally:
            for _, transfer in running:
                transfer.cancel()
        if not found:
            raise NotFoundError(
                f"expected objects below s3://{bucket}/{start} ({self._where}), "
                f"{self._what_is_there(bucket, prefix)}"
            )
        return target

    def upload(self, local: Path, bucket: str, key: str, sha256: str) -> None:
        """A file as an object, its digest beside it as metadata. It appears whole or not at all."""
        with self._errors(f"s3://{bucket}/{key}"):
            extra = {"Metadata": {"sha256": sha256}}
            self._transfers.upload(str(local), bucket, key, extra_args=extra).result()

    def remove(self, bucket: str, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        for first in range(0, len(keys), REMOVED_AT_ONCE):
            objects = [{"Key": key} for key in keys[first : first + REMOVED_AT_ONCE]]
            with self._errors(f"s3://{bucket}/{keys[first]}"):
                answer = self._client.delete_objects(
                    Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
                )
            for error in answer.get("Errors", ()):
                raise _of_answer(
                    f"s3://{bucket}/{error['Key']} ({self._where})",
                    ClientError({"Error": error}, "DeleteObjects"),
                )

    def exists(self, bucket: str, key: str) -> bool:
        """Whether there is such an object, or objects below it."""
        with self._errors(f"s3://{bucket}/{key}"):
            for prefix in (key, f"{key}/" if key else ""):
                answer = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
                found = [item["Key"] for item in answer.get("Contents", ())]
                if any(name == key or name.startswith(f"{key}/" if key else "") for name in found):
                    return True
        return False

    def list_files(self, bucket: str, prefix: str) -> list[str]:
        """Keys of all objects below a prefix, relative to it."""
        start = f"{prefix}/" if prefix else ""
        with self._errors(f"s3://{bucket}/{prefix}"):
            return [key[len(start) :] for key in self._keys(bucket, start) if not key.endswith("/")]

    def describe(self, bucket: str, key: str) -> tuple[int, str | None] | None:
        """Size of an object and the digest that :meth:`upload` wrote beside it; None where nothing is."""
        if not self.exists(bucket, key):  # where listing is forbidden, asking for what is not there is too
            return None
        try:
            with self._errors(f"s3://{bucket}/{key}"):
                answer = self._client.head_object(Bucket=bucket, Key=key)
        except NotFoundError:
            return None
        return answer["ContentLength"], answer["Metadata"].get("sha256")

    def _finish(self, bucket: str, key: str, transfer: Any) -> None:
        uri = f"s3://{bucket}/{key}"
        with storage_errors(uri), self._errors(uri):
            transfer.result()

    def _keys(self, bucket: str, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                yield item["Key"]

    def _what_is_there(self, bucket: str, key: str) -> str:
        parent = "/".join(PurePosixPath(key).parts[:-1])
        start = f"{parent}/" if parent else ""
        with self._errors(f"s3://{bucket}/{parent}"):
            answer: dict[str, Any] = self._client.list_objects_v2(
                Bucket=bucket, Prefix=start, Delimiter="/", MaxKeys=11
            )
        names = [item["Prefix"] for item in answer.get("CommonPrefixes", ())]
        names = sorted(names + [item["Key"] for item in answer.get("Contents", ())])
        listed = ", ".join(name[len(start) :] for name in names[:10]) + (
            " and more" if len(names) > 10 else ""
        )
        return f"which does not exist; s3://{bucket}/{start} holds: {listed or 'nothing'}"

    @contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        """Turn botocore's errors into the failure taxonomy."""
        where = f"{uri} ({self._where})"
        try:
            yield
        except ClientError as error:
            raise _of_answer(where, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise RunnerError(
                Reason.STORAGE_DENIED,
                f"{where}: {error}: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
            ) from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, RetriesExceededError, ConnectionError) as error:
            raise RunnerError(Reason.STORAGE_UNAVAILABLE, f"{where}: {error}") from error


def _of_answer(where: str, error: ClientError) -> RunnerError:
    answer = error.response.get("Error", {})
    code = str(answer.get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = f"{where}: {code}: {answer.get('Message') or f'HTTP {status}'}"
    if code in _FULL or status == 507:
        return RunnerError(Reason.STORAGE_FULL, text)
    if code in _MISSING:
        return NotFoundError(text)
    if code in _DENIED or status in (401, 403):
        return RunnerError(Reason.STORAGE_DENIED, text)
    return RunnerError(Reason.STORAGE_UNAVAILABLE, text)


def _safe(bucket: str, relative: str) -> str:
    if ".." in PurePosixPath(relative).parts or os.path.isabs(relative):
        raise RunnerError(
            Reason.INVALID_SPEC, f"s3://{bucket}: expected keys without '..' or '//', got {relative!r}"
        )
    return relative
