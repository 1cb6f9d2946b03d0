"""The routes that are open, each with its methods, the largest body and its rate. Everything else is 404."""

import re
from dataclasses import dataclass

from limits import Limits

PREFIX = "/gradio_api"
KEY = "[a-z0-9]{6,16}"  # of a visit, as the browser draws it
_PIECE = r"[A-Za-z0-9_@-][A-Za-z0-9_@.-]*"  # of a path to a file of the page's own; never begins with a dot


class NotTaken(Exception):
    """A request that is not taken.

    Args:
        status: of HTTP.
        text: for whoever sent it, with what to do.
        wait: seconds after which to try again; None where that is of no use.
    """

    def __init__(self, status: int, text: str, wait: int | None = None):
        super().__init__(text)
        self.status, self.text, self.wait = status, text, wait


@dataclass(frozen=True)
class Route:
    """A route that is open.

    Args:
        name: as the documentation writes it.
        methods: of HTTP.
        body: most bytes of a request.
        each: most requests a minute from one address.
        all: most requests a minute from all addresses.
        kind: who answers: "page" (gradio as it is), "join", "listen", "upload" or "file".
        pattern: of the path as it was sent, before any decoding.
    """

    name: str
    methods: tuple[str, ...]
    body: int
    each: int
    all: int
    kind: str
    pattern: re.Pattern


def open_routes(limits: Limits) -> list[Route]:
    """The list. A route that gradio has and that is not here is closed, also one of a later version."""

    def route(name, methods, body, each, everybody, kind, pattern):
        return Route(name, tuple(methods.split()), body, each, everybody, kind, re.compile(pattern))

    return [
        route("/", "GET HEAD", 0, 120, 1200, "page", "/"),
        route("/assets/...", "GET", 0, 12000, 60000, "page", rf"/assets(/{_PIECE})+"),
        route("/static/...", "GET", 0, 1200, 12000, "page", rf"/static(/{_PIECE})+"),
        route("/theme.css", "GET", 0, 120, 1200, "page", r"/theme\.css"),
        route("/favicon.ico", "GET", 0, 120, 1200, "page", r"/favicon\.ico"),
        route(f"{PREFIX}/heartbeat/KEY", "GET", 0, 120, 1200, "page", f"{PREFIX}/heartbeat/{KEY}"),
        route(f"{PREFIX}/queue/join", "POST", limits.message_bytes, 120, 600, "join", f"{PREFIX}/queue/join"),
        route(f"{PREFIX}/queue/data", "GET", 0, 240, 1200, "listen", f"{PREFIX}/queue/data"),
        route(f"{PREFIX}/upload", "POST", limits.request_bytes, 60, 300, "upload", f"{PREFIX}/upload"),
        route(f"{PREFIX}/file=PATH", "GET", 0, 1200, 12000, "file", rf"{PREFIX}/file=[!-~]+"),
    ]


def find_route(routes: list[Route], method: str, raw_path: bytes) -> Route:
    """The route of a request, by its path exactly as it was sent: no spelling but the page's own is known.

    Raises:
        NotTaken: for a path that is not open (404), or not for this method (405).
    """
    path = raw_path.decode("latin-1")
    for route in routes:
        if route.pattern.fullmatch(path):
            if method in route.methods:
                return route
            raise NotTaken(405, "This is not open for that method.")
    raise NotTaken(404, "There is nothing here.")


def table(routes: list[Route]) -> str:
    """The list as the documentation shows it."""
    lines = ["| route | method | largest body | requests a minute: one address | all |", "|---|---|---|---|---|"]
    lines += [
        f"| `{route.name}` | {', '.join(route.methods)} | {_size(route.body)} | {route.each} | {route.all} |"
        for route in routes
    ]
    return "\n".join(lines)


def _size(count: int) -> str:
    if not count:
        return "none"
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count // 2**10} KiB"
