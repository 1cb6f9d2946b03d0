"""What stands before everything else that serves the page: only the open routes go on, within their bounds."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import unquote

import anyio
from files import Files
from limits import Limits
from messages import Messages, listener
from rates import Rates, Visitors, address_of
from routes import NotTaken, Route, find_route, open_routes
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse
from uploads import take_upload

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "media-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Content-Security-Policy: gradio's own scripts are inline; nothing is loaded from anywhere else."""

PATIENCE = {"join": 30.0, "upload": 600.0}  # seconds for a whole body


class Guard:
    """ASGI application around gradio's. It decides by the bytes of the path as they were sent.

    Args:
        app: gradio's.
        messages: reads what visitors ask for.
        files: those that are taken and handed out.
        limits: of a request.
        rates: of requests.
    """

    def __init__(self, app, messages: Messages, files: Files, limits: Limits, rates: Rates | None = None):
        self.app, self.messages, self.files, self.limits = app, messages, files, limits
        self.routes, self.rates, self.visitors = open_routes(limits), rates or Rates(), Visitors(limits)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        send = _with_policy(send)
        try:
            route = find_route(self.routes, scope["method"], scope["raw_path"])
            address = address_of(scope)
            self.rates.check(route, address)
            headers = _headers(scope)
            _check_headers(route, headers)
            with self.rates.running(address):
                await self._answer(route, headers, address, scope, receive, send)
        except NotTaken as refusal:
            await _refuse(send, refusal)
        except ClientDisconnect:  # nobody is there to be answered
            return

    async def _answer(self, route: Route, headers: dict[bytes, bytes], address: str, scope, receive, send):
        path = scope["raw_path"].decode("latin-1")
        if route.kind == "file":
            return await self._hand_out(path.split("=", 1)[1], scope, receive, send)
        if route.kind == "upload":
            async with _timed(route):
                chunks = _chunks(receive, route.body)
                paths = await take_upload(headers, chunks, self.files, self.limits, address)
            return await _send_all(send, 200, json.dumps(paths).encode(), [(b"content-type", b"application/json")])
        body = b""
        if route.kind == "join":
            async with _timed(route):
                body = b"".join([chunk async for chunk in _chunks(receive, route.body)])
            message = self.messages.read(body)
            self.visitors.check(message.key, address)
            self.messages.check_line(message, address)
            body = message.body
        query = b""
        if route.kind == "listen":
            query = listener(scope["query_string"])
        scope = {**scope, "path": path, "query_string": query, "headers": _as_sent_on(scope["headers"], body)}
        await self.app(scope, _replay(body, receive), send)

    async def _hand_out(self, path: str, scope, receive, send):
        kept = self.files.find(unquote(path, errors="replace"))
        if kept is None or not kept.path.is_file():
            raise NotTaken(404, "There is nothing here.")
        kind = "inline" if kept.media.startswith("image/") else "attachment"
        answer = FileResponse(kept.path, media_type=kept.media, filename=kept.path.name, content_disposition_type=kind)
        await answer(scope, receive, send)


def _headers(scope) -> dict[bytes, bytes]:
    names = [name for name, _ in scope["headers"]]
    for name in (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding"):
        if names.count(name) > 1:
            raise NotTaken(400, "A header is there twice.")
    return dict(scope["headers"])


def _check_headers(route: Route, headers: dict[bytes, bytes]):
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 15:
        raise NotTaken(400, "The size of the request is no number.")
    if int(length) > route.body or not route.body and b"transfer-encoding" in headers:
        raise NotTaken(413, "That is too much at once. Send less.")
    if headers.get(b"content-encoding", b"identity") != b"identity":  # a small body may become a large one
        raise NotTaken(415, "Only bodies that are not compressed are taken.")
    if route.body and headers.get(b"sec-fetch-site") == b"cross-site":
        raise NotTaken(403, "Only this page itself may ask for that.")
    if route.kind == "join" and headers.get(b"content-type", b"").split(b";")[0].strip() != b"application/json":
        raise NotTaken(415, "Only JSON is taken here.")


@asynccontextmanager
async def _timed(route: Route):
    """A body that trickles in is given up."""
    try:
        with anyio.fail_after(PATIENCE[route.kind]):
            yield
    except TimeoutError as late:
        raise NotTaken(408, "That took too long. Try again.") from late


async def _chunks(receive, most: int) -> AsyncIterator[bytes]:
    """The body of a request as it comes, given up where it is longer."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        size += len(message.get("body", b""))
        if size > most:
            raise NotTaken(413, "That is too much at once. Send less.")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def _replay(body: bytes, receive):
    """What was read, and then only whether the visitor has left."""
    given = False

    async def replayed():
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            continue
        return message

    return replayed


def _as_sent_on(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> list[tuple[bytes, bytes]]:
    dropped = (b"content-length", b"transfer-encoding", b"content-encoding", b"expect")
    kept = [(name, value) for name, value in headers if name not in dropped]
    return [*kept, (b"content-length", str(len(body)).encode())] if body else kept


def _with_policy(send):
    """Add the policy, and take away what would let the pages of others read the answers."""

    async def sending(message):
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if not pair[0].startswith(b"access-control-")]
            added = ((b"content-security-policy", POLICY), (b"referrer-policy", "no-referrer"))
            added += ((b"x-content-type-options", "nosniff"),)
            message = {**message, "headers": [*kept, *((name, text.encode()) for name, text in added)]}
        await send(message)

    return sending


async def _refuse(send, refusal: NotTaken):
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    if refusal.wait is not None:
        headers.append((b"retry-after", str(refusal.wait).encode()))
    await _send_all(send, refusal.status, refusal.text.encode(), headers)


async def _send_all(send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]):
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
