"""What the system's allocator costs a process that only predicts: seconds and page faults of a pass.

    python examples/speed_allocator.py --backbone BACKBONE --batch_size 64
    MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=268435456 python examples/speed_allocator.py ...

Medians of the bare backbone and of the model with experts, in turn, in a process that has not trained.
"""

import argparse
import resource
import statistics
from collections.abc import Callable

import torch
from benchmark_speed import Bench

from smope_hf.base.home import expanded


def page_faults(run: Callable[[], object]) -> int:
    """Pages that the system had to give while something ran."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=expanded, default="vit-b16", help="vit-b16 (random), Hub id or folder")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--repetitions", type=int, default=9, help="passes of each model")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(quick=False)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = Bench(args)
    passes = {"bare ViT": bench.inference(bench.bare), "with experts": bench.inference(bench.model())}
    for run in passes.values():
        run()
    seconds, faults = {name: [] for name in passes}, {name: [] for name in passes}
    for _ in range(args.repetitions):
        for name, run in passes.items():
            faults[name].append(page_faults(lambda run=run, name=name: seconds[name].append(bench.seconds(run))))
    print("| inference | seconds | page faults |\n|---|---|---|")
    for name in passes:
        print(f"| {name} | {statistics.median(seconds[name]):.3f} | {statistics.median(faults[name]):.0f} |")


if __name__ == "__main__":
    main()
