"""An S3 server over a folder of this machine (versitygw), for artifacts in tests and in the demo. No root
needed.

Called by fixtures and the demo. With a node it listens on the host's end of the cluster's network, which pods
and this host both reach; without one on loopback.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import patience
import ports

from . import abilities, binaries, records, steps
from .node import Node

_count = 0


@dataclass(frozen=True)
class ObjectStore:
    """Address of the server, and the keys it accepts."""

    endpoint: str
    access_key: str
    secret_key: str
    directory: Path
    """A bucket is a folder in it, an object a file."""
    region: str = "us-east-1"

    def make_bucket(self, name: str) -> Path:
        """Makes a bucket and returns its folder."""
        bucket = self.directory / name
        bucket.mkdir(exist_ok=True)
        return bucket

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables that boto3 reads."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }


@contextlib.contextmanager
def object_store(node: Node | None = None, directory: Path | None = None) -> Iterator[ObjectStore]:
    """An S3 server for the time of a `with` block.

    Args:
        node: whose pods must reach it.
        directory: holds the buckets; by default one that is deleted at the end.
    """
    global _count
    abilities.require_control_plane()
    program = binaries.binary("versitygw")
    _count += 1
    record = records.create(f"s3-{os.getpid()}-{_count}", "object-store")
    try:
        address = node.host_address if node else "127.0.0.1"
        (port,) = ports.free_ports(1, address)
        buckets = directory or record.directory / "buckets"
        buckets.mkdir(parents=True, exist_ok=True)
        store = ObjectStore(f"http://{address}:{port}", "tlt", secrets.token_urlsafe(24), buckets)
        record.spawn(
            "versitygw",
            *(program, "--port", f"{address}:{port}", "posix", buckets),
            env={"ROOT_ACCESS_KEY": store.access_key, "ROOT_SECRET_KEY": store.secret_key},
        )

        def answers() -> bool:
            record.check("versitygw")
            with socket.socket() as probe:
                return probe.connect_ex((address, port)) == 0

        steps.until("the S3 server to listen", answers, patience.SECONDS)
        yield store
    finally:
        records.undo(record)


@records.undone_by("object-store")
def _undo(record: records.Record) -> None:
    record.stop_all()
    record.remove()
