"""What stands before the page: bounded requests, nothing fetched for visitors, a browser that stays on this host."""

import json
import os
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
        if scope["method"] == "POST":
            if scope["path"].rstrip("/").endswith("/upload"):
                refusal = self._upload_refusal(scope)
            else:
                body = await _read(receive, MESSAGE_BYTES)
                refusal = _message_refusal(body)
                receive = _replay(body, receive)
            if refusal is not None:
                return await _answer(send, *refusal)
        return await self.app(scope, receive, _with_policy(send))

    def _upload_refusal(self, scope) -> tuple[int, str] | None:
        """Status and text, where an upload is not taken; the server reads no more than what its header says."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "The size of the upload is missing."
        if int(length) > self.request_bytes:
            return 413, "That is too much at once. Send fewer or smaller images."
        if folder_bytes(self.uploads) + int(length) > self.upload_bytes:
            return 503, "Too many files are here at the moment. Try again in some minutes."
        return None


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder; those that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike rglob it does not mind folders that vanish
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
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


def _message_refusal(body: bytes | None) -> tuple[int, str] | None:
    """Status and text, where a message is too long or holds a file that the server would have to fetch."""
    if body is None:
        return 413, "That is too long a message."
    try:
        content = json.loads(body or b"null")
    except (ValueError, RecursionError):
        return 400, "That is no message of this page."
    if any(path.strip().casefold().startswith(("http:", "https:")) for path in _paths(content)):
        return 400, "Only uploaded files are taken, no addresses."
    return None


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
