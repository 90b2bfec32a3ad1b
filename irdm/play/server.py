"""The page and its one question, by the standard library's server. Only this machine reaches it unless asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from irdm.errors import explained
from irdm.play.draw import MOST, Player

LOCAL = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
PAGES = Environment(
    loader=PackageLoader("irdm.play", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True,
    undefined=StrictUndefined,
)  # fmt: skip


class Server(ThreadingHTTPServer):
    """`/` is the page; `/draw?wanted=TEXT&count=N&seed=S` answers with JSON: a list of `irdm.play.draw.Shown`, or
    {"error"}. One request draws at a time.
    """

    daemon_threads = True

    def __init__(self, player: Player, host: str = LOCAL[0], port: int = 0):
        """Port 0 takes a free one. Raises OSError, with what to do, when the address cannot be had."""
        self.player, self.drawing, self.names = player, threading.Lock(), {*LOCAL, host}
        self.open = host not in LOCAL
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise OSError(
                f"{host}:{port} cannot be listened at ({error.strerror}). Give another --host or --port."
            ) from None

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/"

    def page(self) -> str:
        """The page, complete in itself but for the pictures that it asks for."""
        run, style = self.player.run, Environment(loader=PackageLoader("irdm.report", ".")).get_template("style.css")
        return PAGES.get_template("page.html").render(
            name=run.path.resolve().name, step=run.step, choices=self.player.choices, free_text=run.spec.free_text,
            teacher=self.player.teacher is not None, style=style.render(), most=MOST,
        )  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers GET; no request changes anything."""

    server: Server  # type: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """The page, or pictures."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        if not self.server.open and host not in self.server.names:  # a page of another site that points its name here
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", "This page is for this machine alone.")
        address = urlsplit(self.path)
        answer: Callable[[dict[str, str]], None] | None = {"/": self._page, "/draw": self._draw}.get(address.path)
        if answer is None:
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", "There is / and /draw.")
        answer({name: values[-1] for name, values in parse_qs(address.query).items()})

    def _page(self, given: dict[str, str]) -> None:
        self._send(HTTPStatus.OK, "text/html", self.server.page())

    def _draw(self, given: dict[str, str]) -> None:
        try:
            wanted, count, seed = given.get("wanted", ""), given.get("count", "8"), given.get("seed", "0")
            if not (count.isdecimal() and seed.isdecimal()):
                raise ValueError(f"Asked for {count} pictures from seed {seed}; expected whole numbers.")
            with self.server.drawing:
                shown = self.server.player(wanted, int(count), int(seed))
        except Exception as error:
            message = explained(error)
            self._json(HTTPStatus.BAD_REQUEST if message else HTTPStatus.INTERNAL_SERVER_ERROR, {"error": message})
            if message is None:
                raise
        else:
            self._json(HTTPStatus.OK, [asdict(one) for one in shown])

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value))

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def play(player: Player, host: str, port: int) -> None:
    """Serve until Ctrl-C. Raises OSError when the address cannot be had."""
    player("", 1, 0)  # the first picture takes longer than those that follow
    with Server(player, host, port) as server:
        print(f"{server.address}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
