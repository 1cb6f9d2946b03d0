"""The training step through torch.compile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKEND = "inductor"


def check_compiler(device: torch.device):
    """Compile something small, so that a machine that cannot says so before any image is read.

    Raises:
        ValueError: when torch's backend does not work here, on a CPU mostly for want of a C++ compiler.
    """
    try:
        torch.compile(torch.relu, fullgraph=True, backend=BACKEND)(torch.zeros(8, device=device))
    except RuntimeError as error:  # torch's own kinds, which are only known once its compiler is imported
        raise ValueError(
            f"torch_compile = True is not allowed here, as torch cannot compile on this machine: "
            f"{str(error).splitlines()[0]}. Install a C++ compiler (g++, or one that CXX names), or leave it out."
        ) from error


class CompiledBackbone:
    """Runs a model's backbone, with the prompts in its attention, as one compiled graph.

    The head stays outside: it grows with every task, and all that does not grow is compiled once for a run. There is
    one graph for each kind of routing and another once a batch of another size comes.
    """

    def __init__(self):
        self._backbone = self._forward = None

    @contextmanager
    def active(self, model) -> Iterator[None]:
        """Run the model's backbone compiled within.

        Args:
            model: an [`IncrementalClassifier`]; another backbone than before is compiled anew.

        Raises:
            RuntimeError: of torch, at the first step, for a backbone that does not make one graph.
        """
        backbone = model.backbone
        if backbone is not self._backbone:
            self._backbone = backbone
            self._forward = torch.compile(backbone.forward, fullgraph=True, backend=BACKEND)
        backbone.forward = self._forward
        try:
            yield
        finally:
            del backbone.forward
