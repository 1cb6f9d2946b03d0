"""A Hugging Face Hub on 127.0.0.1 for the tests: real HTTP, repositories on disk, faults on demand.

    with HubServer(tmp_path / "hub") as hub:
        hub.faults([{"match": {"method": "POST", "path": "/commit/"}, "action": {"status": 503}}])
        subprocess.run([...], env=environment(hub, "hf_alice", tmp_path / "home"))
        hub.state("alice/model")["head"]

A fault rule is `{"match": {"method", "path"}, "skip": 0, "times": 1, "action"}`: `method` is a name, `path` a regular
expression searched in the raw path without its query (either may be left out); the first `skip` matches pass, the
next `times` get the action. Rules are tried in order; the first that is due acts. Actions, combined with `delay`
(seconds) or not: `{"status", "headers", "body"}` answers without doing anything; `{"cut_request_after": n}` resets
the connection after n bytes of the request's body; `{"cut_response_after": n}` closes it after n bytes of the answer's
body; `{"drop_response": true}` does the work, then resets the connection ("close" instead of true: closes in order).

LFS files live behind signed addresses on a second port, as on the Hub: PUT `/lfs-upload/{kind}/{id}/{sha256}` and GET
`/blobs/{kind}/{id}/{sha256}` there, POST `/lfs-verify/...` here; kind is `models` or `datasets`.
Control, exempt from faults and log: `POST /_faults`, `POST /_reset`, `GET /_log`, `GET /_state/{id}` and
`POST /_foreign/{id}`, where a data set's id is `datasets/{owner}/{name}`.
As a program: `python tests/hub_server.py --root DIR --port 0` prints its address and serves until it is killed.
"""

import argparse
import json
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub_api import HubApi, Reply
from hub_storage import HubError

TOKENS = {"hf_alice": "alice", "hf_bob": "bob", "hf_readonly": ("alice", "read")}
FOREIGN_AUTHOR = "mallory"


class Faults:
    """The rules set by a test, with what is left of each."""

    def __init__(self):
        self.rules, self.lock = [], threading.Lock()

    def add(self, rules: list[dict]) -> None:
        for rule in rules:
            unknown = set(rule["action"]) - set("status headers body cut_request_after cut_response_after".split())
            if unknown := unknown - {"drop_response", "delay"}:
                raise HubError(400, f"Unknown fault actions {sorted(unknown)}")
        with self.lock:
            self.rules += [{"skip": 0, "times": 1, "match": {}, **rule} for rule in rules]

    def clear(self) -> None:
        with self.lock:
            self.rules.clear()

    def take(self, method: str, path: str) -> dict | None:
        with self.lock:
            for rule in self.rules:
                match = rule["match"]
                if match.get("method", method) != method or not re.search(match.get("path", ""), path):
                    continue
                if rule["skip"] > 0:
                    rule["skip"] -= 1
                elif rule["times"] > 0:
                    rule["times"] -= 1
                    return rule["action"]
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def log_message(self, format, *args):
        """The log of requests is `GET /_log`; stderr stays free for failures."""

    def handle_request(self):
        hub, url = self.server.hub, urlsplit(self.path)
        self.action, self.entry = {}, {"status": None}
        if not url.path.startswith("/_"):
            self.action = hub.rules.take(self.command, url.path) or {}
            user = hub.api.user_of(self.headers.get("Authorization"))
            self.entry.update(method=self.command, path=url.path, query=url.query, user=user.name if user else None)
            self.entry["fault"] = self.action or None
            hub.requests.append(self.entry)
        try:
            self.serve(url)
        except ConnectionError as error:
            self.entry["lost"], self.close_connection = repr(error), True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def serve(self, url) -> None:
        time.sleep(self.action.get("delay", 0))
        with tempfile.SpooledTemporaryFile(max_size=1 << 20) as body:
            if not self.read_body(body, self.action.get("cut_request_after")):
                return self.reset_connection()
            body.seek(0)
            if "status" in self.action:
                text = self.action.get("body", "")
                text = text if isinstance(text, str) else json.dumps(text)
                reply = Reply(self.action["status"], text.encode(), dict(self.action.get("headers", {})))
            else:
                reply = self.reply_to(url, body)
        self.entry["status"] = reply.status
        if dropped := self.action.get("drop_response"):
            self.close_connection = True
            return None if dropped == "close" else self.reset_connection()
        self.send(reply, self.action.get("cut_response_after"))

    def reply_to(self, url, body) -> Reply:
        hub = self.server.hub
        try:
            if url.path.startswith("/_"):
                return Reply.json(hub.control(self.command, unquote(url.path), body.read()))
            return hub.api.answer(self.command, url.path, parse_qs(url.query), self.headers, body)
        except HubError as error:
            headers = {
                "X-Error-Message": error.message.encode("latin-1", "replace").decode("latin-1"),
                **error.headers,
            }
            if error.code:
                headers["X-Error-Code"] = error.code
            return Reply.json({"error": error.message, **error.body}, error.status, headers)
        except Exception:
            hub.failures.append(traceback.format_exc())
            return Reply.json(
                {"error": traceback.format_exc()},
                500,
                {"X-Error-Message": "The loopback Hub failed on this request; the answer has the traceback"},
            )

    def chunks(self):
        """The request's body piece by piece; a ConnectionError when the client goes away in between."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                raise ConnectionAbortedError(f"the client closed with {left} bytes of the body to come")
            left -= len(piece)
            yield piece

    def read_body(self, body, cut: int | None) -> bool:
        for piece in self.chunks() if cut != 0 else ():
            body.write(piece)
            if cut is not None and body.tell() >= cut:
                return False
        return cut is None

    def send(self, reply: Reply, cut: int | None) -> None:
        size = reply.length if reply.path else len(reply.body)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(size), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = size if cut is None else min(cut, size)
        self.close_connection = self.close_connection or cut is not None
        if not reply.path:
            self.wfile.write(reply.body[:left])
            return
        with open(reply.path, "rb") as file:
            file.seek(reply.start)
            while left > 0:
                left -= self.wfile.write(file.read(min(left, 1 << 18)))

    def reset_connection(self) -> None:
        """Ends the connection the hard way (RST), as a crashed server or a cut cable does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()


class Listener(ThreadingHTTPServer):
    """Keeps its connections, so that stopping ends those that wait for another request."""

    request_queue_size = 64

    def __init__(self, hub: "HubServer", port: int):
        self.hub, self.open = hub, set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request, client_address):
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave whenever it likes
            self.hub.failures.append(traceback.format_exc())

    def stop(self):
        self.shutdown()
        self.server_close()
        for request in list(self.open):
            super().shutdown_request(request)


class HubServer:
    """The Hub on a free port of 127.0.0.1, served from a daemon thread while the context lasts.

    Args:
        root: Folder of its state; a second server on the same root goes on from there.
        tokens: token -> user, or (user, "read") for a token that may not write. Default `TOKENS`.
        port: Port to listen on. Default 0: a free one.

    `failures` lists the tracebacks of requests that the server itself stumbled over; a test expects none.
    """

    def __init__(self, root: str | Path, tokens: dict | None = None, port: int = 0):
        self.api = HubApi(root, TOKENS if tokens is None else tokens)
        self.rules, self.requests, self.failures = Faults(), [], []
        self.listener = Listener(self, port)
        self.storage_listener = Listener(self, 0)
        self.url = self.api.url = f"http://127.0.0.1:{self.listener.server_port}"
        self.api.storage_url = f"http://127.0.0.1:{self.storage_listener.server_port}"

    def __enter__(self) -> "HubServer":
        for listener in (self.listener, self.storage_listener):
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.listener.stop()
        self.storage_listener.stop()

    def faults(self, rules: list[dict]) -> None:
        """Adds fault rules (see the top of the file)."""
        self.rules.add(json.loads(json.dumps(rules)))

    def reset(self) -> None:
        """Forgets the fault rules and the log; repositories stay."""
        self.rules.clear()
        self.requests.clear()

    def log(self) -> list[dict]:
        """The requests so far: method, path, query, status (None: unanswered), user, fault (its action or None)."""
        return [dict(entry) for entry in self.requests]

    def state(self, repo: str) -> dict:
        """`head`, `private`, `commits` of main (oldest first, files as path: sha256), `tags`, `blobs` (stored LFS)."""
        with self.api.storage.lock:
            repository = self.api.load(*self.api.split(repo))
            commits = [
                {**commit, "files": {path: entry["sha256"] for path, entry in commit["files"].items()}}
                for commit in reversed(repository.history("main"))
            ]
            blobs = sorted(p.name for p in (repository.folder / "lfs").glob("*") if not p.name.startswith("."))
            data = repository.data
            return {"head": data["branches"]["main"], "private": data["private"], "commits": commits} | {
                "tags": data["tags"],
                "blobs": blobs,
            }

    def foreign_commit(self, repo: str, message: str, files: dict[str, str]) -> str:
        """Somebody else's commit on main: by "mallory", with text files. Returns its oid."""
        with self.api.storage.lock:
            repository = self.api.load(*self.api.split(repo))
            tree = dict(repository.tree("main"))
            tree.update({path: repository.store_file(text.encode()) for path, text in files.items()})
            return repository.record("main", FOREIGN_AUTHOR, message, "", tree)

    def control(self, method: str, path: str, body: bytes):
        """The same over HTTP."""
        match (method, *path.strip("/").split("/", 1)):
            case ("POST", "_faults"):
                return self.faults(json.loads(body))
            case ("POST", "_reset"):
                return self.reset()
            case ("GET", "_log"):
                return self.log()
            case ("GET", "_state", repo):
                return self.state(repo)
            case ("POST", "_foreign", repo):
                return {"oid": self.foreign_commit(repo, **json.loads(body))}
        raise HubError(404, f"No control at {method} {path}")


def environment(server: HubServer | str, token: str | None, home: str | Path) -> dict[str, str]:
    """The whole environment for a client subprocess: this one's, pointed at the server and online.

    Args:
        server: The server or its address.
        token: Token to log in with; None for an anonymous client.
        home: The client's `HF_HOME`; a fresh folder is a fresh cache.
    """
    client = {
        "HF_ENDPOINT": server if isinstance(server, str) else server.url,
        "HF_TOKEN": token or "",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(Path(home) / "hub"),
        "HF_TOKEN_PATH": str(Path(home) / "token"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",  # the client reads both spellings, the small one first
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HUGGING", "TRANSFORMERS_"))}
    return {**inherited, **client}


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on 127.0.0.1 for tests.")
    parser.add_argument("--root", required=True, help="folder of its state")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    arguments = parser.parse_args()
    with HubServer(arguments.root, port=arguments.port) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
