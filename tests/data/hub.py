"""A server on this machine that answers like the Hugging Face hub and the store its files lie in."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable
from typing import Any


class Hub:
    """Serves files as the hub does: the address of a file leads to another server, which understands ranges.

    Attributes:
        files: path, such as ``datasets/<repository>/resolve/main/<file>`` -> content.
        stated: path -> sha256 that the hub states, where it is not that of the content.
        stop_after: a content is cut after so many bytes, and the connection with it; None serves it whole.
        requests: (method, path, value of the Range header) of every request for content.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stated: dict[str, str] = {}
        self.stop_after: int | None = None
        self.on_stop: Callable[[], object] = lambda: None
        self.requests: list[tuple[str, str | None]] = []
        self._store = _Server(self, _StoreHandler)
        self._hub = _Server(self, _HubHandler)
        self.endpoint = self._hub.address
        self.store_address = self._store.address

    def close(self) -> None:
        for server in (self._hub, self._store):
            server.shutdown()
            server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, headers: dict[str, str], length: int = 0) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


class _HubHandler(_Handler):
    def do_HEAD(self) -> None:
        hub, path = self.server.hub, self.path.lstrip("/")
        if path not in hub.files:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        content = hub.files[path]
        self.answer(
            302,
            {
                "Location": f"{hub.store_address}/{path}",
                "X-Repo-Commit": "0" * 40,
                "X-Linked-Etag": f'"{hub.stated.get(path, hashlib.sha256(content).hexdigest())}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    do_GET = do_HEAD


class _StoreHandler(_Handler):
    def do_GET(self) -> None:
        hub, path = self.server.hub, self.path.lstrip("/")
        wanted = self.headers.get("Range")
        hub.requests.append((path.rpartition("/")[2], wanted))
        content = hub.files[path]
        first = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.answer(206 if wanted else 200, headers, len(content) - first)
        if hub.stop_after is None:
            self.wfile.write(content[first:])
            return
        self.wfile.write(content[first : hub.stop_after])
        self.wfile.flush()
        hub.on_stop()
        self.close_connection = True
