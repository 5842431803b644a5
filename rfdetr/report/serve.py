"""Show the page of runs that are still training, to browsers of this machine alone."""

import logging
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from rfdetr.errors import InputError
from rfdetr.report.page import make_page, state_of
from rfdetr.report.read import open_runs

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"


class ReportServer(ThreadingHTTPServer):
    """Answers ``/`` with the page, made anew when the files of the runs have changed, and ``/state`` with what changes then.

    Raises:
        InputError: the port is taken, or a folder holds no run.
    """

    daemon_threads = True

    def __init__(self, folders: Sequence[str | Path], port: int, *, defaults: Mapping[str, Any]) -> None:
        self.folders, self.defaults = folders, defaults
        open_runs(folders)
        self._made: tuple[str, str] = ("", "")
        self._lock = Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}: cannot be used ({error.strerror}); choose another, or 0 for a free one") from error
        logger.info("the report is at http://%s:%d, until Ctrl+C", HOST, self.server_address[1])

    def answer(self, path: str) -> tuple[str, str] | None:
        """Return the content and its type; None: there is nothing of this path."""
        runs = open_runs(self.folders)  # files are read anew
        state = state_of(runs)
        if path == "/state":
            return state, "text/plain"
        if path != "/":
            return None
        with self._lock:
            if self._made[0] != state:
                self._made = state, make_page(runs, self.defaults, live=state)
            return self._made[1], "text/html"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.headers.get("Host", "").rpartition(":")[0]
        if name not in (HOST, "localhost"):  # a page elsewhere that has its own name lead here
            self.send_error(403)
            return
        try:
            answer = self.server.answer(self.path)
        except Exception as error:  # a file that is being replaced; the next request finds it whole
            logger.warning("the report could not be made (%s: %s)", type(error).__name__, error)
            self.send_error(503)
            return
        if answer is None:
            self.send_error(404)
            return
        content, kind = answer
        body = content.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)
