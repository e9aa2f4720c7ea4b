"""Models in files, and data in files.

``model``: how long a model for MNIST takes to be saved and loaded, beyond imports, and
how large its file is.

``stream``: one epoch over a file of bytes, mapped into memory, beside the same rows in
memory, in processes that take turns: images per second in the epoch, and the peak of
resident memory that belongs to the process, which leaves out the system's cache of the
file (RssAnon of Linux). The file is made where temporary files go; it is deleted at the
end. With the default 8 GB the parts take about half an hour on two cores.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _report import alternate, environment, publish

from sklearn_sigmavae import SigmaVAE

N_FEATURES = 784
BLOCK = 50_000


def files(repeats):
    """Rows of the table of saved models."""
    X = np.random.default_rng(0).random((2000, N_FEATURES), dtype=np.float32)
    for sizes in ((64,), (512, 512)):
        vae = SigmaVAE(32, sigma=0.2, hidden_layer_sizes=sizes, max_iter=2).fit(X)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            runs = {
                "save": lambda vae=vae, path=path: vae.save(path),
                "load": lambda path=path: SigmaVAE.load(path, device="cpu"),
            }
            alternate(runs, 1)
            times = alternate(runs, repeats)
            size = path.stat().st_size
        n_bytes = sum(value.nbytes for value in vae.module_.state_dict().values())
        milliseconds = " | ".join(f"{1000 * np.median(times[n]):.1f}" for n in runs)
        yield (
            f"| {sizes} | {n_bytes / 1e6:.2f} | {size / n_bytes:.3f} | {milliseconds} |"
        )


def make_file(path, n_rows):
    """Images of bytes near a space of 20 dimensions."""
    rng = np.random.default_rng(0)
    basis = 20 * rng.standard_normal((20, N_FEATURES), dtype=np.float32)
    with open(path, "wb") as file:
        for start in range(0, n_rows, BLOCK):
            codes = rng.standard_normal((min(BLOCK, n_rows - start), 20), np.float32)
            np.clip(128 + codes @ basis, 0, 255).astype(np.uint8).tofile(file)


def epoch(path, n_rows, in_memory):
    """Train for one epoch; print rows per second, seconds of the fit and the peak."""
    X = np.memmap(path, dtype=np.uint8, mode="r", shape=(n_rows, N_FEATURES))
    if in_memory:
        X = np.array(X)
    peak = Peak()
    start = time.perf_counter()
    vae = SigmaVAE(
        16,
        sigma=30.0,
        hidden_layer_sizes=(64,),
        batch_size=1024,
        max_iter=1,
        random_state=0,
    ).fit(X)
    seconds = time.perf_counter() - start
    (in_epoch,) = vae.history_[:, "dur"]
    print(n_rows / in_epoch, seconds, peak.stop())


class Peak:
    """Peak of the memory that belongs to this process, in MB."""

    def __init__(self):
        self.peak, self.runs = 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self):
        status = Path("/proc/self/status")
        while self.runs:
            kilobytes = re.search(r"RssAnon:\s+(\d+)", status.read_text())[1]
            self.peak = max(self.peak, int(kilobytes) / 1024)
            time.sleep(0.02)

    def stop(self):
        """End the watch; return the peak."""
        self.runs = False
        self.thread.join()
        return self.peak


def stream(gigabytes, repeats, threads):
    """Rows of the table of epochs, and the ratio of their throughputs."""
    n_rows = int(gigabytes * 1e9 / N_FEATURES)
    found = {"memory map": [], "in memory": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images.u8")
        make_file(path, n_rows)
        for _ in range(repeats):
            for name, results in found.items():
                task = [str(path), str(n_rows), str(int(name == "in memory"))]
                done = subprocess.run(
                    [sys.executable, __file__, "--epoch", *task],
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                results.append([float(word) for word in done.stdout.split()])
    for name, results in found.items():
        rate, seconds, peak = np.median(results, axis=0)
        yield f"| {name} | {rate:,.0f} | {seconds:.0f} | {peak:,.0f} |"
    rates = [np.array(results)[:, 0] for results in found.values()]
    ratios = rates[0] / rates[1]
    yield (
        f"\nThroughput of the map to that in memory: {np.median(ratios):.2f} "
        f"({ratios.min():.2f}..{ratios.max():.2f})."
    )


def report(args):
    """Lines of the report."""
    yield f"{environment()}"
    yield f"Medians of {args.repeats} repeats, {args.threads} threads."
    if "model" in args.parts:
        yield "\n### A model for 784 features, 32 components\n"
        yield "| hidden | weights, MB | file to weights | save, ms | load, ms |"
        yield "|---|---|---|---|---|"
        yield from files(10 * args.repeats)
    if "stream" in args.parts:
        yield f"\n### One epoch over {args.gigabytes:g} GB of bytes, rows of 784\n"
        yield "| data | rows a second | fit, s | peak memory of its own, MB |"
        yield "|---|---|---|---|"
        yield from stream(args.gigabytes, args.repeats, args.threads)


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    parts = ["model", "stream"]
    add("--parts", nargs="+", choices=parts, default=parts, help="all by default")
    add("--gigabytes", type=float, default=8.0, help="size of the file")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--output", type=Path, help="file to write the tables to as well")
    add("--epoch", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Run the parts that the command line asks for."""
    args = parse_args()
    if args.epoch:
        path, n_rows, in_memory = args.epoch
        epoch(path, int(n_rows), bool(int(in_memory)))
        return
    torch.set_num_threads(args.threads)
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
