"""What stands before the page: bounded requests, nothing fetched for visitors, and a browser that stays on this host."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "media-src 'self' data: blob:; object-src 'none'"
)
"""Content-Security-Policy: gradio's own scripts are inline; nothing is loaded from anywhere else."""

CLOSED = re.compile(r"/gradio_api/(deep_link|proxy=|file=https?:)", re.IGNORECASE)
MESSAGE_BYTES = 2**20  # of a request that is no upload: names and paths


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        uploads: folder that gradio keeps uploaded files in.
        request_bytes: of one upload.
        upload_bytes: of all files in that folder.
    """

    def __init__(self, app, uploads: Path, request_bytes: int, upload_bytes: int):
        self.app, self.uploads = app, uploads
        self.request_bytes, self.upload_bytes = request_bytes, upload_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if CLOSED.search(scope["path"]):  # they keep a visitor's state, or fetch what a visitor names
            return await _answer(send, 404, "There is nothing here.")
        uploads = scope["path"].rstrip("/").endswith("/upload")
        if scope["method"] == "POST":
            if uploads and folder_bytes(self.uploads) > self.upload_bytes:
                return await _answer(send, 503, "Too many files are here at the moment. Try again in some minutes.")
            body = await _read(receive, self.request_bytes if uploads else MESSAGE_BYTES)
            if body is None:
                return await _answer(send, 413, "That is too much at once. Send fewer or smaller images.")
            if not uploads and _names_another_host(body):
                return await _answer(send, 400, "Only uploaded files are taken, no addresses.")
            receive = _replay(body, receive)
        return await self.app(scope, receive, _with_policy(send))


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder; those that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


async def _read(receive, most: int) -> bytes | None:
    """The body of a request; None where it is longer."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive):
    given = False

    async def replayed():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _with_policy(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"content-security-policy", POLICY.encode())]
            message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
        await send(message)

    return sending


async def _answer(send, status: int, text: str):
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


def _names_another_host(body: bytes) -> bool:
    """Whether a message holds a file that the server would have to fetch."""
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return False  # gradio refuses it
    return any(path.strip().casefold().startswith(("http:", "https:")) for path in _paths(content))


def _paths(content) -> Iterator[str]:
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
