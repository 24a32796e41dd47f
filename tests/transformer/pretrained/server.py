"""A web server for the tests of downloads, on this machine, that can be told to misbehave."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server has, how it behaves, and what it was asked.

    Attributes:
        content: the file; every path has it but those that end in "missing" (404) and "moved" (a redirect).
        break_after: bytes after which the connection is closed, one entry per answer; then no more breaks.
        ranges: whether "Range" is understood.
        content_range: what to say instead of the true range.
        content_length: whether the length is said before the file comes.
        asked: path and "Range" of each request.
        url: the address.
    """

    content: bytes
    break_after: list[int] = field(default_factory=list)
    ranges: bool = True
    content_range: str | None = None
    content_length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(served: Served) -> Iterator[Served]:
    """Run the server while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            served.asked.append((self.path, wanted))
            if self.path.endswith("missing"):
                self.send_error(404)
                return
            if self.path.endswith("moved"):
                self.send_response(302)
                self.send_header("Location", "/file")
                self.end_headers()
                return
            body, status = served.content, 200
            if wanted and served.ranges:
                first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                body, status = served.content[first:], 206
            self.send_response(status)
            if status == 206:
                size = len(served.content)
                self.send_header("Content-Range", served.content_range or f"bytes {first}-{size - 1}/{size}")
            if served.content_length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: served.break_after.pop(0)] if served.break_after else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
