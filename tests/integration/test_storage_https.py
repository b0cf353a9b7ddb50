"""Downloads by https:// from a real server with its own certificate authority: resumed, cached, verified."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.certificates import Authority
from tlt_api.failures import Reason
from tlt_runner.cancel import Stop
from tlt_runner.errors import InterruptedRunError, NotFoundError, RunnerError
from tlt_runner.storage import Storage, https

CONTENT = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SECRET = "X-Amz-Signature=0123456789abcdef"


@dataclass
class Server:
    """A file server.

    Attributes:
        url: Address of the file.
        answers: What the next requests meet, in turn: "cut" (half of what is left), "elsewhere" (a part that
            claims to begin at byte 0), an address to go to instead, or an HTTP status.
        ranges: The Range header of each request.
        content: The file.
        etag: Its ETag; None for a server that gives none.
    """

    url: str = ""
    answers: list[str | int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    content: bytes = CONTENT
    etag: str | None = '"one"'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            answer = state.answers.pop(0) if state.answers else 200
            if isinstance(answer, str) and "://" in answer:
                self.send_response(302)
                self.send_header("Location", answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if isinstance(answer, int) and answer != 200:
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            same = self.headers.get("If-Range") == state.etag
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same else 0
            body = state.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            if start:
                first = 0 if answer == "elsewhere" else start
                self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
            if state.etag is not None:
                self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer == "cut" else body)
            if answer == "cut":
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    authority = Authority(tmp_path / "authority")
    authority.issue("server", hosts=["localhost"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate("server"), authority.key("server"))
    listening = ThreadingHTTPServer(("localhost", 0), Handler)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate("ca")))
    for name in (
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(https, "CHUNK_BYTES", 1000)
    state.url = f"https://localhost:{listening.server_address[1]}/models/resnet18.safetensors?{SECRET}"
    yield state
    listening.shutdown()
    listening.server_close()


class Waits(list[float]):
    """A clock on which a wait takes no time."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_a_file_is_downloaded_once_and_found_by_its_digest(server: Server, tmp_path: Path) -> None:
    cache = f"file://{tmp_path}/out/pretrained"
    for scratch in ("one", "two"):
        path = Storage(scratch=tmp_path / scratch).download(server.url, DIGEST, cache)
        assert path == tmp_path / "out/pretrained" / DIGEST / "resnet18.safetensors"
        assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert sorted(item.name for item in path.parent.iterdir()) == [".lock", "resnet18.safetensors"]


def test_a_damaged_file_of_the_cache_is_replaced(server: Server, tmp_path: Path) -> None:
    path = https.download(server.url, DIGEST, tmp_path / "cache")
    path.write_bytes(b"half")
    assert https.download(server.url, DIGEST, tmp_path / "cache").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut", "cut"]
    waits = Waits()
    path = https.download(server.url, DIGEST, tmp_path / "cache", waits)
    assert path.read_bytes() == CONTENT
    # 256,000 bytes: half of them, then half of the other half.
    assert server.ranges == [None, "bytes=128000-", "bytes=192000-"]
    assert waits == [1, 1]


def test_a_later_run_goes_on_with_the_download_of_one_that_failed(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut", *[503] * 5]
    waits = Waits()
    with pytest.raises(RunnerError, match="HTTP 503 .* 128000 bytes so far") as caught:
        https.download(server.url, DIGEST, tmp_path / "cache", waits)
    assert caught.value.reason == Reason.STORAGE_UNAVAILABLE
    assert waits == [1, 2, 4, 8, 16]
    server.ranges.clear()
    assert https.download(server.url, DIGEST, tmp_path / "cache").read_bytes() == CONTENT
    assert server.ranges == ["bytes=128000-"]


def test_a_file_that_changed_meanwhile_is_downloaded_from_its_beginning(
    server: Server, tmp_path: Path
) -> None:
    server.content, server.answers = b"another content" * 1000, ["cut", 404]
    with pytest.raises(NotFoundError, match="HTTP 404"):
        https.download(server.url, DIGEST, tmp_path / "cache", Waits())
    server.content, server.etag = CONTENT, '"two"'
    assert https.download(server.url, DIGEST, tmp_path / "cache", Waits()).read_bytes() == CONTENT


def test_without_a_strong_etag_a_download_starts_over(server: Server, tmp_path: Path) -> None:
    server.etag, server.answers = 'W/"one"', ["cut"]
    assert https.download(server.url, DIGEST, tmp_path / "cache", Waits()).read_bytes() == CONTENT
    assert server.ranges == [None, None]


def test_another_content_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.content = b"another content"
    got = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(RunnerError, match=f"expected sha256 {DIGEST}, got {got}") as caught:
        https.download(server.url, DIGEST, tmp_path / "cache")
    assert caught.value.reason == Reason.CHECKSUM_MISMATCH
    assert [item.name for item in (tmp_path / "cache" / DIGEST).iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, Reason.STORAGE_DENIED), (403, Reason.STORAGE_DENIED), (404, Reason.INVALID_SPEC)],
)
def test_a_refusal_is_not_tried_again(server: Server, status: int, reason: Reason, tmp_path: Path) -> None:
    server.answers = [status] * 9
    with pytest.raises(RunnerError, match=f"HTTP {status}") as caught:
        https.download(server.url, DIGEST, tmp_path / "cache", Waits())
    assert caught.value.reason == reason
    assert len(server.ranges) == 1


def test_a_server_of_an_unknown_authority_is_refused_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    waits = Waits()
    with pytest.raises(RunnerError, match="certificate verify failed") as caught:
        https.download(server.url, DIGEST, tmp_path / "cache", waits)
    assert "REQUESTS_CA_BUNDLE or SSL_CERT_FILE" in caught.value.hint
    assert waits == []


def test_requests_go_through_the_proxy_of_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing listens there: that the address is asked for at all is what shows.
    monkeypatch.setenv("HTTPS_PROXY", "http://me:password@localhost:9")
    with pytest.raises(RunnerError, match="ProxyError") as caught:
        https.download(server.url, DIGEST, tmp_path / "cache", Waits())
    assert server.ranges == []
    assert "password" not in caught.value.message


def test_no_message_and_no_log_line_shows_the_query_of_an_address(
    server: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("DEBUG", logger="tlt_runner")
    server.answers = ["cut", 503]
    https.download(server.url, DIGEST, tmp_path / "cache", Waits())
    server.answers = [404]
    with pytest.raises(NotFoundError) as caught:
        https.download(server.url, "0" * 64, tmp_path / "cache", Waits())
    assert "/models/resnet18.safetensors?..." in caught.value.message
    assert "0123456789abcdef" not in caught.value.message + caplog.text
    assert caplog.text.count("resumed at byte") == 2


def test_of_two_workers_on_one_volume_one_downloads(server: Server, tmp_path: Path) -> None:
    paths: list[Path] = []

    def work() -> None:
        paths.append(https.download(server.url, DIGEST, tmp_path / "cache"))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(paths) == 2
    assert server.ranges == [None]


def test_a_redirect_is_followed_within_https_only(server: Server, tmp_path: Path) -> None:
    server.answers = [server.url.replace("resnet18", "moved")]
    assert https.download(server.url, DIGEST, tmp_path / "one").read_bytes() == CONTENT
    # No server listens on port 1: the address is refused before anyone asks it.
    server.answers = [f"http://localhost:1/weights?a &{SECRET}"]
    with pytest.raises(RunnerError, match="got a redirect to http://localhost:1/weights") as caught:
        https.download(server.url, DIGEST, tmp_path / "two", Waits())
    assert caught.value.reason == Reason.STORAGE_DENIED
    assert SECRET not in str(caught.value)
    server.answers = [server.url] * 11
    with pytest.raises(RunnerError, match="more than 10 redirects"):
        https.download(server.url, DIGEST, tmp_path / "two", Waits())


def test_a_part_from_another_place_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.answers = ["cut", "elsewhere"]
    waits = Waits()
    assert https.download(server.url, DIGEST, tmp_path / "cache", waits).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=128000-", None]
    assert waits == [1, 2]


def test_a_stop_ends_a_download_that_the_next_run_resumes(server: Server, tmp_path: Path) -> None:
    stop, pieces = Stop(), iter(range(100))

    def raise_if_stopped() -> None:
        # The first call comes before the request, then one follows each piece of 1,000 bytes.
        if next(pieces) == 3:
            stop.request()
        stop.raise_if("while downloading")

    with pytest.raises(InterruptedRunError):
        https.download(server.url, DIGEST, tmp_path / "cache", Waits(), raise_if_stopped)
    assert https.download(server.url, DIGEST, tmp_path / "cache").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-"]


def test_authorities_that_do_not_exist_are_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(RunnerError, match="REQUESTS_CA_BUNDLE: expected a file .* which does not exist"):
        https.download(server.url, DIGEST, tmp_path / "cache", Waits())


def test_no_character_of_a_query_is_shown() -> None:
    text = https.without_secrets("""GET https://me:w@rd@host/a?x='1")&token=abc: refused""")
    assert text == "GET https://...@host/a?... refused"
