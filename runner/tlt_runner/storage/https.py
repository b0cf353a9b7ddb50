"""Downloads public files by ``https://``, resumed after an interruption and kept by their digest.

Called by :meth:`tlt_runner.storage.Storage.download`. Requests go through the proxy of the environment
(``HTTPS_PROXY``, ``NO_PROXY``) and trust the authorities of ``REQUESTS_CA_BUNDLE`` or ``SSL_CERT_FILE``, or
those that requests comes with. Trouble of the network or the server is waited for, as with S3. Neither the
query of an address, which may hold a signature, nor the password of a proxy reaches a log or a message.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from tlt_api.failures import Reason
from tlt_runner.errors import NotFoundError, RunnerError, storage_errors
from tlt_runner.files import PARTIAL_SUFFIX, settle, sha256_of, try_lock

log = logging.getLogger(__name__)
ATTEMPTS = 6
"""Attempts in a row that bring not one byte, until the download fails: waits of 1, 2, 4, 8 and 16 seconds."""
TIMEOUT_SECONDS = 60
"""Longest wait for a connection and between two pieces of the body."""
CHUNK_BYTES = 1 << 20
REDIRECTS = 10
"""Most redirects in a row that are followed."""
_LOCK_SECONDS = 0.5


class _TransientError(Exception):
    """A failure that another attempt may not meet."""


def download(
    url: str,
    sha256: str,
    folder: Path,
    sleep: Callable[[float], None] = time.sleep,
    raise_if_stopped: Callable[[], None] = lambda: None,
) -> Path:
    """Return the file with this digest from the folder, after a download if it is not there yet.

    Args:
        url: An https:// address.
        sha256: Digest of the file, hexadecimal.
        folder: Folder of downloads; the file is kept there as ``<sha256>/<its name>``.
        sleep: Waits between two attempts.
        raise_if_stopped: Called between two pieces of the file and before every attempt; what it raises ends
            the download, which a later one resumes.

    Raises:
        NotFoundError: The server has no such file.
        RunnerError: ``ChecksumMismatch`` for another content; ``StorageDenied``, ``StorageUnavailable``; the
            reasons of the folder's file system.
    """
    shown = without_secrets(url)
    target = folder / sha256 / _file_name(url)
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Workers of one training share the folder: one downloads, the others wait for it.
        with (target.parent / ".lock").open("w") as lock:
            while not try_lock(lock):
                raise_if_stopped()
                sleep(_LOCK_SECONDS)
            if target.is_file() and sha256_of(target) == sha256:
                log.info("%s: already at %s", shown, target)
                return target
            partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
            _complete(url, partial, sleep, raise_if_stopped)
            got = sha256_of(partial)
            if got != sha256:
                # Resuming it would never give the right content.
                _forget(partial)
                raise RunnerError(Reason.CHECKSUM_MISMATCH, f"{shown}: expected sha256 {sha256}, got {got}")
            settle(partial, target)
            _etag_file(partial).unlink(missing_ok=True)
    log.info("%s: %d bytes at %s", shown, target.stat().st_size, target)
    return target


def without_secrets(text: str) -> str:
    """Return a text without the queries and the credentials of the addresses in it."""
    # A query may contain any character but white space: all of them go, with a bracket that follows.
    return re.sub(r"\?\S*", "?...", re.sub(r"//[^/\s]*@", "//...@", text))


def _file_name(url: str) -> str:
    name = re.sub(r"[^-A-Za-z0-9._]", "_", urlsplit(url).path.rpartition("/")[2]).lstrip(".")
    return name or "weights"


def _complete(
    url: str, partial: Path, sleep: Callable[[float], None], raise_if_stopped: Callable[[], None]
) -> None:
    """Download into the partial file, from where it ends, until the whole file is there."""
    shown, failures, most = without_secrets(url), 0, _size(partial)
    verify = _authorities()
    with requests.Session() as session:
        while True:
            raise_if_stopped()
            try:
                _attempt(session, url, partial, verify, raise_if_stopped)
                return
            except (requests.RequestException, _TransientError) as error:
                # Only what was never reached before is progress: a file that always starts over is none.
                failures = 1 if _size(partial) > most else failures + 1
                most = max(most, _size(partial))
                text = without_secrets(f"{type(error).__name__}: {error}")
                # A certificate that is not trusted now will not be in a minute.
                if failures >= ATTEMPTS or isinstance(error, requests.exceptions.SSLError):
                    raise RunnerError(
                        Reason.STORAGE_UNAVAILABLE,
                        f"{shown}: {text}; {_size(partial)} bytes so far",
                        "Check the address, the pod's proxy (HTTPS_PROXY, NO_PROXY) and its certificate "
                        "authorities (REQUESTS_CA_BUNDLE or SSL_CERT_FILE); the next attempt resumes the "
                        "download.",
                    ) from None
                wait = 2.0 ** (failures - 1)
                log.warning("%s: %s; resumed at byte %d in %g s", shown, text, _size(partial), wait)
                raise_if_stopped()
                sleep(wait)


def _authorities() -> str | bool:
    """Return the file of certificate authorities that the environment names; True for those of requests.

    Raises:
        RunnerError: StorageUnavailable where there is no such file, which requests reports as an OSError.
    """
    # The first two as requests reads them; SSL_CERT_FILE is OpenSSL's.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        bundle = os.environ.get(name)
        if bundle and not Path(bundle).exists():
            raise RunnerError(
                Reason.STORAGE_UNAVAILABLE,
                f"{name}: expected a file of certificate authorities, got {bundle}, which does not exist",
                "Mount the file into the pod, or remove the variable.",
            )
        if bundle:
            return bundle
    return True


def _request(session: requests.Session, url: str, headers: dict[str, str], verify: Any) -> requests.Response:
    """Return the answer after redirects, of which none leaves https://.

    Raises:
        RunnerError: StorageDenied for a redirect to http://, before it is followed; StorageUnavailable for
            too many of them.
    """
    for _ in range(REDIRECTS + 1):
        answer = session.get(
            url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, verify=verify, allow_redirects=False
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        target = urljoin(url, answer.headers["Location"])
        # Not left to requests: it would have asked the other address, query included, before anyone looks.
        if not target.startswith("https://"):
            raise RunnerError(
                Reason.STORAGE_DENIED,
                # A server may send anything as a query, white space included.
                f"{without_secrets(url)}: expected https://, got a redirect to "
                + without_secrets(target.partition("?")[0]),
            )
        url = target
    raise RunnerError(
        Reason.STORAGE_UNAVAILABLE, f"{without_secrets(url)}: more than {REDIRECTS} redirects in a row"
    )


def _attempt(
    session: requests.Session,
    url: str,
    partial: Path,
    verify: str | bool,
    raise_if_stopped: Callable[[], None],
) -> None:
    size, etag_file = _size(partial), _etag_file(partial)
    etag = json.loads(etag_file.read_text()) if size and etag_file.is_file() else None
    # Without an ETag nothing tells whether the rest is of the same file: it starts over. If-Range has the
    # server send the whole file if it has changed since.
    headers = {"Accept-Encoding": "identity"}
    if etag is not None:
        headers |= {"Range": f"bytes={size}-", "If-Range": etag}
    with _request(session, url, headers, verify) as answer:
        # The partial file is already as long as the file on the server.
        if answer.status_code == 416:
            return
        _check(answer, without_secrets(url))
        resumed = answer.status_code == 206
        # A part that begins elsewhere would be appended in the wrong place; the digest would tell, but late.
        part = answer.headers.get("Content-Range", "")
        if resumed and not part.startswith(f"bytes {size}-"):
            _forget(partial)
            raise _TransientError(f"expected the file from byte {size} on, got Content-Range {part!r}")
        if not resumed:
            _forget(partial)
            # A weak ETag ("W/...") does not promise the same bytes.
            strong = answer.headers.get("ETag", "W/")
            if not strong.startswith("W/"):
                etag_file.write_text(json.dumps(strong))
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(CHUNK_BYTES):
                file.write(chunk)
                raise_if_stopped()
        # requests takes a body that ends early for complete.
        length = answer.headers.get("Content-Length")
        missing = int(length) + (size if resumed else 0) - _size(partial) if length else 0
        if missing > 0:
            raise _TransientError(f"the connection ended {missing} bytes early")


def _check(answer: requests.Response, shown: str) -> None:
    status = f"HTTP {answer.status_code} {answer.reason}"
    if answer.status_code in (404, 410):
        raise NotFoundError(f"{shown}: {status}")
    if answer.status_code in (401, 403, 407):
        raise RunnerError(Reason.STORAGE_DENIED, f"{shown}: {status}")
    if answer.status_code not in (200, 206):
        raise _TransientError(status)


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _etag_file(partial).unlink(missing_ok=True)


def _etag_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
