"""Serves the page with the guard around everything that answers requests."""

import os
import socket
import threading
import time

import gradio as gr
import uvicorn
from fastapi import FastAPI
from files import Files
from guard import Guard
from limits import Limits
from messages import Messages
from page import HEAD, theme

PORTS = range(7860, 7960)  # the first free one, where none is asked for
IN_LINE = 50  # requests that wait in the queue
PROXIES = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16"  # of a Space: they tell who asks


class Server:
    """A running server.

    Args:
        app: what answers.
        host: to listen on.
        port: to listen on; None for the first free one from 7860.
    """

    def __init__(self, app, host: str, port: int | None):
        self.app = app
        self._socket = _listen(host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{'localhost' if host == '0.0.0.0' else name}:{self._socket.getsockname()[1]}/"
        trusted = os.environ.get("FORWARDED_ALLOW_IPS") or (PROXIES if os.environ.get("SPACE_ID") else "127.0.0.1")
        config = uvicorn.Config(
            app, log_level="error", access_log=False, ws="none", server_header=False, forwarded_allow_ips=trusted,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="server", daemon=True
        )

    def start(self, patience: float = 30.0):
        """Begin to answer.

        Raises:
            OSError: when it did not begin.
        """
        self._thread.start()
        until = time.monotonic() + patience
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise OSError("The server did not start. What it said stands above.")
            time.sleep(0.01)

    def close(self):
        """End it, and wait until it has."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


def serve(page: gr.Blocks, files: Files, limits: Limits, host: str, port: int | None) -> Server:
    """Serve a page from a thread.

    Raises:
        OSError: when the port is taken.
    """
    server = Server(guarded(page, files, limits), host, port)
    server.start()
    return server


def guarded(page: gr.Blocks, files: Files, limits: Limits) -> Guard:
    """The page with the guard around it. The routes that gradio has are closed unless they are on the list."""
    page.queue(max_size=IN_LINE, api_open=False)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, path="/", theme=theme(), head=HEAD,
        max_file_size=limits.image_bytes, blocked_paths=["/"], footer_links=[], run_history=False,
        enable_monitoring=False, show_error=False, pwa=False, ssr_mode=False, mcp_server=False,
    )  # fmt: skip
    return Guard(app, Messages(page, lambda path: files.find(path) is not None, limits), files, limits)


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket of the port asked for, or of the first free one."""
    for wanted in PORTS if port is None else [port]:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, wanted), family=family)
        except OSError as error:
            if port is not None:
                raise OSError(f"Port {port} of {host} cannot be used: {error}. Choose another with --port.") from error
    raise OSError(f"No port from {PORTS[0]} to {PORTS[-1]} of {host} is free. Choose another with --port.")
