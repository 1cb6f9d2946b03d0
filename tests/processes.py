"""Starting a script on several processes."""

import os
import subprocess
import sys
from pathlib import Path


def launch(processes: int, script: Path, *arguments: str) -> str:
    """Start processes over gloo, as docs/guides/many-processes.md says for a CPU; gives what they print."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*command, str(script), str(Path(__file__).parent), *arguments, str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
