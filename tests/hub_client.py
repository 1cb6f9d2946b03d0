"""A client of the loopback Hub in a process of its own, that does one thing after another.

    with Client(hub, "hf_alice", tmp_path / "home") as client:
        client("push_run(given['run'], 'alice/model')", run=str(folder))

huggingface_hub reads its settings when it is imported, and importing torch takes seconds: so each client is a process
with its own settings and cache, kept for as long as a test file needs it.
"""

import json
import subprocess
import sys

from hub_server import environment

WORKER = """
import contextlib, io, json, sys
lines = sys.stdin
answers = sys.stdout
sys.stdout = sys.stderr
exec(json.loads(lines.readline()))
for line in lines:
    request = json.loads(line)
    given, said = request["given"], []
    space = {**globals(), "given": given, "say": said.append}
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            *before, last = request["code"].strip().splitlines()
            exec("\\n".join(before), space)
            answer = {"value": eval(last, space)}
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            answer = {"error": str(error), "kinds": kinds}
    print(json.dumps({**answer, "said": said, "output": out.getvalue()}), file=answers, flush=True)
"""
PREPARE = """
import torch
torch.set_num_threads(1)
import smope_hf.sharing.hub
from smope_hf import *
from smope_hf.sharing.hub import *
from smope_hf.sharing.hub import local_checkpoint
from huggingface_hub import HfApi
smope_hf.sharing.hub.RETRY_DELAYS = (0.05, 0.05, 0.05)
"""


class RemoteError(Exception):
    """What the client's code raised: the message, and `kinds`, the names of its classes."""

    def __init__(self, message: str, kinds: list[str], output: str):
        super().__init__(f"{kinds[0]}: {message}")
        self.message, self.kinds, self.output = message, kinds, output


class Client:
    """A client process.

    Args:
        server: the [`HubServer`] or its address.
        token: of the user; None for an anonymous one.
        home: its HF_HOME; a fresh folder is a fresh cache.
        prepare: what it imports.
        python: the interpreter.
    """

    def __init__(self, server, token, home, prepare: str = PREPARE, python: str = sys.executable):
        settings = {**environment(server, token, home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(
            [python, "-c", WORKER], env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._write(prepare)
        self.said: list[str] = []
        self.output = ""

    def _write(self, value):
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def start(self, code: str, **given):
        """Begin to run the code, and do not wait."""
        self._write({"code": code, "given": given})

    def __call__(self, code: str, **given):
        """Run the code in the client; gives the value of its last line. Its `say` calls are in `said` afterwards."""
        self.start(code, **given)
        return self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the client process died: {self.process.stderr.read()[-4000:]}")
        answer = json.loads(line)
        self.said, self.output = answer["said"], answer["output"]
        if "error" in answer:
            raise RemoteError(answer["error"], answer["kinds"], answer["output"])
        return answer["value"]

    def kill(self):
        """End the process at once, whatever it is doing."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.process.stderr.close()
