"""Images per second of a model in each way to run it, for `benchmark_speed.py`."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from smope_hf.models.export import FORMATS, check_packages, export_model


@torch.no_grad()
def ways_to_run(model, pixels: torch.Tensor, folder: Path, threads: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Name and call of each way to classify the images; ONNX where its packages are installed and on the CPU."""

    def bf16():
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return model(pixels)

    compiled = torch.compile(model, fullgraph=True)
    yield "eager", lambda: model(pixels)
    yield "eager, bf16 autocast", bf16
    yield "torch.compile", lambda: compiled(pixels)
    try:
        check_packages("onnx")
    except ImportError as error:
        print(f"ONNX is left out. {error}")
        return
    if pixels.device.type != "cpu":
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = folder / FORMATS["onnx"]
    export_model(model, tuple(pixels.shape[-2:]), path, "onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"pixel_values": pixels.numpy()}
    yield "ONNX, onnxruntime", lambda: session.run(None, inputs)


@torch.no_grad()
def throughput(bench) -> dict[str, float]:
    """Images per second by way, from the fastest of some passes after one that warms up.

    Args:
        bench: the `Bench` whose model, images and clock are used.
    """
    model, rates = bench.model().eval(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, run in ways_to_run(model, bench.pixels, Path(folder), bench.args.threads):
            run()
            rates[name] = len(bench.pixels) / min(bench.seconds(run) for _ in range(bench.args.repetitions))
    return rates
