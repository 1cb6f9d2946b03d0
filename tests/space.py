"""Where the page of examples/space is, for the tests of it; importing this makes its modules importable."""

import json
import re
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "examples" / "space"

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[demo]'")
if str(SPACE) not in sys.path:
    sys.path.insert(0, str(SPACE))

BOUNDARY = "a-boundary"
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
JSON = {"Content-Type": "application/json"}
CHUNKED = {"Transfer-Encoding": "chunked"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50)  # begins as an image does, which is what an upload is looked at for


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, by path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Clock:
    """A minute goes by with every request, unless it is stopped."""

    now, step = 0.0, 61.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Measured:
    """Seconds and bytes of memory that something took at its peak."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        self._before, self._start = self._peak(), time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds, self.bytes = time.monotonic() - self._start, self._peak() - self._before

    def _peak(self) -> int:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


@dataclass
class Answer:
    """What a server said: of its body the beginning."""

    status: int
    head: str
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclass
class Served:
    """A page that is served, without a model behind it."""

    server: object
    desk: object
    files: object
    page: object

    def connect(self) -> socket.socket:
        host, port = self.server.url.split("/")[2].split(":")
        return socket.create_connection((host, int(port)), timeout=30)

    def ask(self, method: str, path: str, body=b"", headers: dict[str, str] | None = None, whole=False) -> Answer:
        """Send a request byte for byte as given, which no library does; `body` may come in pieces.

        Args:
            method: of HTTP.
            path: with its query.
            body: bytes, or pieces of them, sent until the server has answered.
            headers: beside the length; None as a value leaves one out.
            whole: wait for the whole answer, not for its beginning alone.
        """
        given = {"Host": "127.0.0.1", "Connection": "close"}
        if isinstance(body, bytes):
            given["Content-Length"] = str(len(body))
            body = [body]
        given |= headers or {}
        lines = [f"{name}: {value}\r\n" for name, value in given.items() if value is not None]
        with self.connect() as connection:
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("utf-8", "surrogateescape"))
            try:
                for piece in body:
                    connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered and hung up: the answer is there to be read
            return _read(connection, whole)

    def send(self, *contents: bytes, name: str = "a.png", **more) -> Answer:
        """Upload files."""
        return self.ask("POST", "/gradio_api/upload", form(*contents, name=name), form_headers(), whole=True, **more)

    def join(self, function: str, data: list, key: str = "visitor1", /, **changed) -> Answer:
        """Call a function of the page as its browser does."""
        index = next(index for index, one in self.page.fns.items() if one.name == function)
        message = {"data": data, "fn_index": index, "session_hash": key, "event_data": None}
        message |= {"trigger_id": self.page.fns[index].targets[0][0], **changed}
        return self.post(message)

    def post(self, message, path: str = "/gradio_api/queue/join") -> Answer:
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.ask("POST", path, raw, {"Content-Type": "application/json"}, whole=True)


def form(*contents: bytes, name: str = "a.png", field: str = "files") -> bytes:
    """A multipart form of files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content
        for content in contents
    ]
    return b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def form_headers(**more: str) -> dict[str, str]:
    return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", **more}


def chunked(pieces):
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


@contextmanager
def served(folder: Path, limits=None, clock=None):
    """The page, served at a free port of this machine."""
    from checkpoints import Checkpoint, Models, Place
    from desk import Desk
    from files import Files
    from limits import Limits
    from page import build_page
    from serving import Server, guarded
    from visits import Visits

    limits = limits or Limits()
    kept = Files(folder / "uploads", limits)
    visits, models = Visits(kept, limits), Models()
    revisions = {"task-01": Place("/nowhere/task-01"), "task-02": Place("/nowhere/task-02")}
    desk = Desk({"digits": Checkpoint("digits", revisions)}, visits, models, limits)
    example = folder / "example.png"
    example.write_bytes(PNG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(kept.folder))
        page = build_page(desk, kept.add_own([example]), kept.add_own([example]), "eight")
        guard = guarded(page, kept, limits)
    if clock is not None:
        guard.rates.clock = guard.visitors.clock = clock
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(guard, "127.0.0.1", port)
    server.start()
    yield Served(server, desk, kept, page)
    visits.close()
    server.close()


def _read(connection: socket.socket, whole: bool) -> Answer:
    received = b""
    while whole or b"\r\n\r\n" not in received:
        try:
            piece = connection.recv(2**16)
        except ConnectionResetError:
            break
        if not piece:
            break
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), received[:200]
    return Answer(int(head.split()[1]), head.decode("latin-1"), body)
