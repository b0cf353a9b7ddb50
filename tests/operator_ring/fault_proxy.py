"""Proxy in front of a real API server, where requests, streams and the operator that sends them fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from operator_ring.access import connection_of

_WRITES = ("POST", "PUT", "PATCH", "DELETE")
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Storm:
    """Refusal of a share of the requests: 409 of writes, 429 with Retry-After, or 500."""

    share: float
    codes: Sequence[int]


class FaultProxy:
    """Proxy of which a test makes faults: it kills, refuses, delays, cuts and freezes.

    A context manager. Without a fault, everything is forwarded. With a ``victim``, each write that succeeds
    is its last one: it is killed before the answer arrives.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._access = connection_of(kubeconfig)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # its clients are killed
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._lock = threading.Lock()
        self.victim: Callable[[], int | None] | None = None
        """Function that returns the process to kill, or None if it is gone already."""
        self.writes: Counter[str] = Counter()
        """Writes that succeeded, by method, path and name of what was created."""
        self.created: Callable[[dict[str, Any]], None] = lambda body: None
        """Told every object that was created."""
        self.deaths = 0
        self.down = False
        self.storm: Storm | None = None
        self.delay_seconds = 0.0
        """Time by which every request is late."""
        self.gone_watches = 0
        """Number of watches to come that are answered with 410."""
        self._random = random.Random(1)
        self._connections: set[socket.socket] = set()
        self._streams: dict[socket.socket, Stream] = {}

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, original: Path, path: Path) -> Path:
        """Write a kubeconfig like the original one, with the address of this proxy."""
        config = yaml.safe_load(original.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self._server.server_port}"}
        path.write_text(yaml.safe_dump(config))
        return path

    def cut(self) -> None:
        """Break all connections and forward nothing from now on."""
        self.down = True
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut_streams(self) -> None:
        """Break all watches in the middle of a line."""
        for connection, stream in list(self._streams.items()):
            with contextlib.suppress(OSError), stream.lock:
                part = b'{"type":"MODIFIED","object":{"kind":"'
                connection.sendall(b"%x\r\n%s\r\n" % (len(part), part))
                connection.shutdown(socket.SHUT_RDWR)

    def freeze_streams(self) -> int:
        """Let nothing more through on the watches that are open, which stay open; return their number."""
        for stream in list(self._streams.values()):
            stream.frozen = True
        return len(self._streams)

    def refusal(self, method: str, path: str) -> tuple[int, dict[str, str]] | None:
        """Return the answer to a request that is not forwarded, as code and headers."""
        if "watch=true" in path and self.gone_watches > 0:
            self.gone_watches -= 1
            return 410, {}
        storm = self.storm
        if storm is None or self._random.random() >= storm.share:
            return None
        code = self._random.choice(storm.codes)
        if code == 409 and method not in ("POST", "PATCH"):
            return None
        return code, {"Retry-After": "1"} if code == 429 else {}

    def is_dead(self) -> bool:
        """Tell whether there is a victim whose process is gone; its last requests are not forwarded."""
        return self.victim is not None and self.victim() is None

    def strike(self) -> bool:
        """Kill the victim; return True if there was one."""
        pid = self.victim() if self.victim else None
        if pid is None:
            return False
        self.deaths += 1
        os.kill(pid, signal.SIGKILL)
        return True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self
        address = urllib.parse.urlsplit(self._access.server)
        context: ssl.SSLContext = self._access.as_ssl_context()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy._connections.add(self.connection)

            def finish(self) -> None:
                proxy._connections.discard(self.connection)
                proxy._streams.pop(self.connection, None)
                with contextlib.suppress(OSError):
                    super().finish()

            def _forward(self) -> None:
                if proxy.delay_seconds:
                    time.sleep(proxy.delay_seconds)
                if proxy.down:
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
                if refusal := proxy.refusal(self.command, self.path):
                    code, more = refusal
                    status = {
                        "kind": "Status",
                        "code": code,
                        "message": "refused by the test",
                        "reason": "Test",
                    }
                    self._answer(
                        code,
                        [("Content-Type", "application/json"), *more.items()],
                        json.dumps(status).encode(),
                    )
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                upstream = http.client.HTTPSConnection(address.hostname or "", address.port, context=context)
                try:
                    if self.command in _WRITES:
                        # One write at a time, so that the write that kills is the last one.
                        with proxy._lock:
                            if proxy.is_dead():
                                return
                            upstream.request(self.command, self.path, body, headers)
                            answer = upstream.getresponse()
                            content = answer.read()
                            if answer.status < 300:
                                proxy._count(self.command, self.path, content)
                                if proxy.strike():
                                    return
                        self._answer(answer.status, answer.getheaders(), content)
                        return
                    # Reads may be watches, whose answer does not end.
                    upstream.request(self.command, self.path, body, headers)
                    self._stream(upstream.getresponse())
                except OSError:
                    self.close_connection = True
                finally:
                    upstream.close()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _stream(self, answer: http.client.HTTPResponse) -> None:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                stream = Stream()
                if "watch=true" in self.path:
                    proxy._streams[self.connection] = stream
                while chunk := answer.read1(65536):
                    if not stream.frozen:
                        with stream.lock:
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                while stream.frozen:
                    time.sleep(0.5)
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _count(self, method: str, path: str, content: bytes) -> None:
        if method == "POST":
            self.created(json.loads(content))
        route = path.split("?")[0].removeprefix("/apis/")
        self.writes[f"{method} {route} {_name(content)}"] += 1


@dataclass
class Stream:
    """Watch that is being forwarded."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    frozen: bool = False


def _name(content: bytes) -> str:
    metadata = yaml.safe_load(content).get("metadata") or {}
    return str(metadata.get("name", ""))
