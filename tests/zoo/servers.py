"""Servers on this machine that behave as servers elsewhere do, well and badly."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Site:
    """What a server gives, and what it was asked.

    Attributes:
        url: of its root.
        files: bytes by path; or a function that answers with the handler.
        asked: paths, in order.
        headers: of the requests, in order.
        ranges: whether it gives parts of files, and names their version.
        cut: the number of bytes after which it breaks off, None for never.
        slow: it sends a little and waits until the event is cleared.
    """

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes | Callable[[Any], None]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.ranges = False
        self.cut: int | None = None
        self.slow = threading.Event()


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            site.asked.append(self.path)
            site.headers.append(dict(self.headers))
            self.close_connection = True
            content = site.files.get(self.path.partition("?")[0])
            try:
                if content is None:
                    self.send_error(404)
                elif callable(content):
                    content(self)
                else:
                    self._give(content)
            except OSError:  # the client left
                pass

        def _give(self, content: bytes) -> None:
            tag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
            begin, asked = 0, self.headers.get("Range", "")
            if site.ranges and asked and self.headers.get("If-Range", tag) == tag:
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header(
                    "Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}"
                )
            if site.ranges:
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("ETag", tag)
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if self.command == "HEAD":
                return
            rest = content[begin:]
            if site.slow.is_set():
                self.wfile.write(rest[:100_000])
                self.wfile.flush()
                while site.slow.is_set():
                    time.sleep(0.01)
                rest = rest[100_000:]
            self.wfile.write(rest if site.cut is None else rest[: site.cut])

    return Handler


@contextlib.contextmanager
def serving(certificate: Path | None = None) -> Iterator[Site]:
    """A server; with a certificate (key and chain in one file) over TLS."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        site.slow.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(folder: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, for SSL_CERT_FILE and a server."""
    both = folder / "both.pem"
    how = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(both), "-out", str(folder / "chain.pem")]
    command = ["openssl", *how.split(), *named, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    both.write_bytes(both.read_bytes() + (folder / "chain.pem").read_bytes())
    return both


def redirect(to: str) -> Callable[[Any], None]:
    """Answers with another address."""

    def answer(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def status(code: int) -> Callable[[Any], None]:
    """Answers with an error."""
    return lambda handler: handler.send_error(code)


def dripping(headers: bool, every: float = 0.05, count: int = 400) -> Callable[[Any], None]:
    """Sends a byte now and then: of the headers, or of a file of a megabyte."""

    def answer(handler: Any) -> None:
        if headers:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        else:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        for _ in range(count):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(every)

    return answer


def silent(seconds: float = 20.0) -> Callable[[Any], None]:
    """Takes a request and never answers."""

    def answer(handler: Any) -> None:
        handler.connection.settimeout(seconds)
        handler.rfile.read(1)  # until the client leaves

    return answer
