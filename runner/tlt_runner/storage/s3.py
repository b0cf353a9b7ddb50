"""Buckets of an S3 server as a backend, and the server itself: downloads, uploads, listings.

boto3 is imported here and nowhere else. Credentials come from the environment (``AWS_*``) or the pod's
identity, are never logged and never leave boto3. Requests are retried (with back-off) by botocore's standard
mode, a body that breaks off by s3transfer. Large objects go up and down in parts, and all transfers of a
process share one pool of connections.
"""

from __future__ import annotations

import hashlib
import shutil
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

from tlt_api.common import S3Storage, is_below_root
from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import sha256_of
from tlt_runner.storage.address import Address
from tlt_runner.storage.backend import StoredFile
from tlt_runner.storage.volumes import inside, remove_files

PART_BYTES = 16 << 20
"""Size of a part; an object that is larger is transferred in parts."""
PARALLEL_REQUESTS = 16
"""Requests in flight, of all transfers together."""
REMOVED_AT_ONCE = 1000
"""Most keys of one DeleteObjects request, by the S3 protocol."""
# Codes of AWS, MinIO and Ceph. A HEAD has no body, so its code is the bare HTTP status.
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_EXISTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}
_UNCONDITIONAL = {"NotImplemented", "501"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}


class Buckets:
    """Files at s3:// addresses. Copies are made below the scratch folder.

    Args:
        store: The server.
        scratch: Folder for copies.
    """

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch

    def local_path(self, address: Address) -> None:
        """Return None: objects are not in the file system."""

    def mount(self, address: Address) -> None:
        """Return None: there are no links in a bucket."""

    def folder(self, address: Address) -> Path:
        """Download every object below the address."""
        return self._store.download_folder(address.root, address.path, self._copy_of(address))

    def fetch(self, address: Address) -> Path:
        """Download the object."""
        return self._store.download(address.root, address.path, self._copy_of(address))

    def at_hand(self, address: Address) -> Path | None:
        """Return a copy that was fetched before; None if there is none."""
        path = self._copy_of(address)
        return path if path.is_file() else None

    def publish(self, local: Path, address: Address) -> StoredFile:
        """Upload a file."""
        # Stored beside the object, because an ETag is no digest of what is uploaded in parts.
        digest = sha256_of(local)
        self._store.upload(local, address.root, address.path, digest)
        return StoredFile(address.uri, digest, local.stat().st_size)

    def create(self, local: Path, address: Address) -> bool:
        """Upload a file unless there is an object; False if there is."""
        return self._store.create(local.read_bytes(), address.root, address.path)

    def stored(self, address: Address) -> StoredFile | None:
        """Return digest and size of the object; one without a digest beside it is downloaded."""
        described = self._store.describe(address.root, address.path)
        if described is None:
            return None
        size, digest = described
        # Uploaded by another program. The copy is removed at once: a model may have gigabytes.
        if digest is None:
            copy = self.fetch(address)
            with storage_errors(address.uri):
                digest = sha256_of(copy)
                copy.unlink()
        return StoredFile(address.uri, digest, size)

    def mirror(self, address: Address) -> Path:
        """Make a fresh copy of the folder; files made there reach the bucket by :meth:`publish`."""
        path = self._copy_of(address)
        with storage_errors(str(path)):
            # Objects that were removed from the bucket since must not live on in an older copy.
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        if self.exists(address):
            self._store.download_folder(address.root, address.path, path)
        return path

    def remove(self, folder: Address, files: Sequence[Address]) -> None:
        """Remove objects and their copies."""
        self._store.remove(folder.root, [file.path for file in files])
        with storage_errors(folder.uri):
            remove_files(self._copy_of(folder), [self._copy_of(file) for file in files])

    def list_files(self, folder: Address) -> list[str]:
        """Return the keys of all objects below a folder, relative to it and sorted."""
        return self._store.list_files(folder.root, folder.path)

    def exists(self, address: Address) -> bool:
        """Return True if there is such an object, or any below it."""
        return self._store.exists(address.root, address.path)

    def missing(self, address: Address) -> str | None:
        """Say what exists instead of the object; None if it exists, or if listing is denied."""
        return self._store.missing(address.root, address.path)

    def _copy_of(self, address: Address) -> Path:
        return inside(self._scratch, f"s3/{address.root}/{address.path}", address.uri)


class ObjectStore:
    """An S3 server.

    Args:
        settings: Endpoint and region.
    """

    def __init__(self, settings: S3Storage) -> None:
        # Servers other than AWS's (MinIO, Ceph) differ in what they support, see below.
        custom_server = settings.endpoint is not None
        self._server = settings.endpoint or "AWS"
        self._client = boto3.session.Session().client(
            "s3",
            endpoint_url=settings.endpoint,
            region_name=settings.region,
            config=Config(
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=2 * PARALLEL_REQUESTS,
                # A bucket as host name needs wildcard DNS, which servers other than AWS's rarely have.
                s3={"addressing_style": "path" if custom_server else "auto"},
                # Servers other than AWS's often refuse the checksum trailers that boto3 adds by default.
                request_checksum_calculation="when_required" if custom_server else "when_supported",
                response_checksum_validation="when_required" if custom_server else "when_supported",
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
                # "auto" would take another client (CRT), with other errors, on some of AWS's machines.
                preferred_transfer_client="classic",
            ),
        )

    def download(self, bucket: str, key: str, target: Path) -> Path:
        """Download an object to a file, which appears whole or not at all."""
        uri = f"s3://{bucket}/{key}"
        try:
            # S3's errors name the address, the disk's the local file: each has its own translation.
            with storage_errors(str(target)):
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._errors(uri):
                    self._transfers.download(bucket, key, str(target)).result()
        except NotFoundError as error:
            raise NotFoundError(f"expected an object at {uri}, {self._absence(bucket, key)}") from error
        return target

    def download_folder(self, bucket: str, prefix: str, target: Path) -> Path:
        """Download every object below a prefix into a folder, several at a time, during the listing."""
        start = f"{prefix}/" if prefix else ""
        running: deque[tuple[str, Any]] = deque()
        empty = True
        try:
            with self._errors(f"s3://{bucket}/{prefix}"):
                for key in self._keys(bucket, start):
                    # Consoles store an empty object of this name to show an empty folder.
                    if key.endswith("/"):
                        continue
                    empty = False
                    path = target / _safe(bucket, key[len(start) :])
                    with storage_errors(str(path)):
                        path.parent.mkdir(parents=True, exist_ok=True)
                    running.append((key, self._transfers.download(bucket, key, str(path))))
                    # Bounded, or a bucket of a million objects would queue a million futures.
                    if len(running) >= 2 * PARALLEL_REQUESTS:
                        self._finish(bucket, *running.popleft())
            while running:
                self._finish(bucket, *running.popleft())
        # After an error, transfers in flight would go on writing below a folder that the caller removes.
        finally:
            for _, transfer in running:
                transfer.cancel()
        if empty:
            raise NotFoundError(
                f"expected objects below s3://{bucket}/{start} ({self._server}), "
                f"{self._absence(bucket, prefix)}"
            )
        return target

    def upload(self, local: Path, bucket: str, key: str, sha256: str) -> None:
        """Upload a file as an object, with its digest as metadata. It appears whole or not at all."""
        with self._errors(f"s3://{bucket}/{key}"):
            # S3 shows an object only when it is complete, also one of several parts: no rename is needed.
            extra = {"Metadata": {"sha256": sha256}}
            self._transfers.upload(str(local), bucket, key, extra_args=extra).result()

    def create(self, content: bytes, bucket: str, key: str) -> bool:
        """Upload an object unless there is one; return False if there is."""
        digest = {"sha256": hashlib.sha256(content).hexdigest()}
        with self._errors(f"s3://{bucket}/{key}"):
            try:
                self._client.put_object(
                    Bucket=bucket, Key=key, Body=content, Metadata=digest, IfNoneMatch="*"
                )
            except ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", ""))
                if code in _EXISTS:
                    return False
                if code not in _UNCONDITIONAL:
                    raise
                # This server writes without a condition only: look first.
                if self.exists(bucket, key):
                    return False
                self._client.put_object(Bucket=bucket, Key=key, Body=content, Metadata=digest)
            # A server that ignores the condition shows here that somebody else has written since.
            return bool(self._client.get_object(Bucket=bucket, Key=key)["Body"].read() == content)

    def remove(self, bucket: str, keys: Sequence[str]) -> None:
        """Remove objects; those that do not exist are skipped."""
        for first in range(0, len(keys), REMOVED_AT_ONCE):
            objects = [{"Key": key} for key in keys[first : first + REMOVED_AT_ONCE]]
            with self._errors(f"s3://{bucket}/{keys[first]}"):
                answer = self._client.delete_objects(
                    Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
                )
            # The request as a whole succeeds with 200 even if some keys were refused.
            for error in answer.get("Errors", ()):
                raise _of_answer(
                    f"s3://{bucket}/{error['Key']} ({self._server})",
                    ClientError({"Error": error}, "DeleteObjects"),
                )

    def exists(self, bucket: str, key: str) -> bool:
        """Return True if the object exists, or any object below it."""
        with self._errors(f"s3://{bucket}/{key}"):
            # Two listings: the first key with the prefix a/b may be a/b-c, which sorts before a/b/.
            for prefix in (key, f"{key}/" if key else ""):
                answer = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
                names = [item["Key"] for item in answer.get("Contents", ())]
                if any(name == key or name.startswith(f"{key}/" if key else "") for name in names):
                    return True
        return False

    def list_files(self, bucket: str, prefix: str) -> list[str]:
        """Return the keys of all objects below a prefix, relative to it and sorted."""
        start = f"{prefix}/" if prefix else ""
        with self._errors(f"s3://{bucket}/{prefix}"):
            return sorted(key[len(start) :] for key in self._keys(bucket, start) if not key.endswith("/"))

    def missing(self, bucket: str, key: str) -> str | None:
        """Say what exists instead of an object; None if the object exists, or if listing is denied."""
        try:
            return None if self.exists(bucket, key) else self._absence(bucket, key)
        except NotFoundError as error:  # no such bucket
            return error.message
        except RunnerError as error:
            if error.reason != Reason.STORAGE_DENIED:
                raise
            # Keys that may read an object need not be allowed to list: only reading tells whether it exists.
            return None

    def describe(self, bucket: str, key: str) -> tuple[int, str | None] | None:
        """Return the size of an object and the digest that :meth:`upload` stored with it.

        None if there is no such object; a digest of None if another program uploaded it.
        """
        # Where listing is forbidden, a HEAD of a missing object is too: both then leave as StorageDenied.
        if not self.exists(bucket, key):
            return None
        try:
            with self._errors(f"s3://{bucket}/{key}"):
                # exists() has also found folders; only an object answers HEAD.
                answer = self._client.head_object(Bucket=bucket, Key=key)
        except NotFoundError:  # a folder: only keys below it exist
            return None
        return answer["ContentLength"], answer["Metadata"].get("sha256")

    def _finish(self, bucket: str, key: str, transfer: Any) -> None:
        uri = f"s3://{bucket}/{key}"
        # Both: the transfer fails for the server's reasons or for the disk's.
        with storage_errors(uri), self._errors(uri):
            transfer.result()

    def _keys(self, bucket: str, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                yield item["Key"]

    def _absence(self, bucket: str, key: str) -> str:
        """Say that a key does not exist, and list the names beside it for comparison."""
        # What lies beside a misspelt name tells most often how it is spelt.
        parent = "/".join(PurePosixPath(key).parts[:-1])
        start = f"{parent}/" if parent else ""
        # Ten names are shown; the eleventh tells that there are more.
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
        subject = f"{uri} ({self._server})"
        try:
            yield
        except ClientError as error:
            raise _of_answer(subject, error) from error
        # Before BotoCoreError, of which both are subclasses: the server is not unavailable.
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise RunnerError(
                Reason.STORAGE_DENIED,
                f"{subject}: {error}: expected AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY in the environment",
            ) from error
        except (BotoCoreError, boto3.exceptions.Boto3Error, RetriesExceededError, ConnectionError) as error:
            raise RunnerError(Reason.STORAGE_UNAVAILABLE, f"{subject}: {error}") from error


def _of_answer(subject: str, error: ClientError) -> RunnerError:
    answer = error.response.get("Error", {})
    code = str(answer.get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    text = f"{subject}: {code}: {answer.get('Message') or f'HTTP {status}'}"
    # The code decides before the HTTP status: Ceph, for one, answers QuotaExceeded with 403.
    if code in _FULL or status == 507:
        return RunnerError(Reason.STORAGE_FULL, text)
    if code in _MISSING:
        return NotFoundError(text)
    if code in _DENIED or status in (401, 403):
        return RunnerError(Reason.STORAGE_DENIED, text)
    return RunnerError(Reason.STORAGE_UNAVAILABLE, text)


def _safe(bucket: str, relative: str) -> str:
    # S3 allows any key, also ../x: joined to the scratch folder it would be written outside of it.
    if not is_below_root(relative) or "\0" in relative:
        raise RunnerError(
            Reason.INVALID_SPEC,
            f"s3://{bucket}: expected keys without empty ('//'), '.' and '..' names, got {relative!r}",
            "Rename the object, or remove it: it cannot be a file of a folder.",
        )
    return relative
