"""Proxy in front of a real API server, where requests, streams and the operator that sends them fail."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from operator_ring.access import connection_of

_WRITES = ("POST", "PATCH", "DELETE")
_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "host"}


class FaultProxy:
    """Proxy that lets a victim make one write, and kills it before the answer arrives.

    A context manager. Everything is forwarded. Nobody is killed until there is a ``victim``.
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
        self.deaths = 0
        self.down = False
        self._connections: set[socket.socket] = set()

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
                with contextlib.suppress(OSError):
                    super().finish()

            def _forward(self) -> None:
                if proxy.down:
                    self.close_connection = True
                    return
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else None
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

            do_GET = do_POST = do_PATCH = do_DELETE = _forward  # noqa: N815

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
                while chunk := answer.read1(65536):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _count(self, method: str, path: str, content: bytes) -> None:
        route = path.split("?")[0].removeprefix("/apis/")
        self.writes[f"{method} {route} {_name(content)}"] += 1


def _name(content: bytes) -> str:
    metadata = yaml.safe_load(content).get("metadata") or {}
    return str(metadata.get("name", ""))
