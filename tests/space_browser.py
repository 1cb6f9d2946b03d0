"""The page of examples/space in a process of its own, and what a visitor does in a browser."""

import glob
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from space import ROOT, SPACE

SECOND = 1000  # milliseconds
PATIENCE = 90 * SECOND


class Server:
    """The page in a process of its own, with a folder for its cache and one for all it writes besides."""

    def __init__(self, folder: Path, *arguments: str, **environment: str):
        self.cache, self.scratch = folder / "cache", folder / "scratch"
        self.scratch.mkdir()
        given = {**os.environ, "TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        given |= {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "datasets"), **environment}
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, str(SPACE / "app.py"), "--cache", str(self.cache), "--port", str(port), *arguments]
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=given, stdout=log, stderr=log, cwd=folder)
        self.url = self._wait()

    def _wait(self) -> str:
        for _ in range(2400):
            found = re.search(r"^The page is open at (http\S+)", self.log.read_text(), re.MULTILINE)
            if found:
                return found[1]
            try:
                self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        self.process.kill()
        raise AssertionError(self.log.read_text()[-4000:])

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        assert not list(self.scratch.iterdir()), "something was left behind"

    def image(self, name: str) -> str:
        return glob.glob(str(self.cache / "images" / "test" / f"{name}-*.png"))[0]

    def new_class(self, count: int) -> list[str]:
        return sorted(glob.glob(str(self.cache / "images" / "train" / "eight-*.png")))[:count]

    def kept(self) -> set[str]:
        """Names of all files that the server keeps."""
        return {name for _, _, names in os.walk(self.scratch) for name in names}


@contextmanager
def visit(browser, server: Server, width: int = 1280, height: int = 900, scheme: str = "light"):
    """The open page; when it is left, nothing of the visit is there, and nothing was asked for from elsewhere."""
    before = server.kept()
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True
    )
    page, asked, broken = context.new_page(), [], []
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(server.url)
    page.get_by_text("Drop an image, or choose one").wait_for()
    yield page
    page.wait_for_load_state()
    context.close()
    hosts = {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {server.url.split("/")[2]}, hosts
    assert not broken, broken
    for _ in range(100):
        if server.kept() == before:
            return
        try:
            server.process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError(f"left of the visit: {server.kept() - before}")


def check_fits(page, width: int):
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def choose(page, label: str, option: str):
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()


def teach(page, paths: list[str], name: str):
    page.get_by_role("tab", name="Teach").click()
    page.locator("input[type=file]:not([accept*=video])").last.set_input_files(paths)
    page.get_by_text(Path(paths[-1]).stem, exact=False).last.wait_for()
    page.get_by_label("Its name").fill(name)
    page.get_by_role("button", name="Learn", exact=True).click()
