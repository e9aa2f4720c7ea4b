"""Time SigmaVAE on images and on a GPU beside loops written by hand.

    python benchmarks/bench_device.py --mnist FOLDER --output FILE

prints markdown tables. On the CPU:

conv
    How long does a fit with a convolutional network take beside the bare loop?
memory
    How much memory does a fit on 60,000 images of bytes take beside them?
quality
    Which held-out bound do a convolutional and a fully connected network reach in the
    same time?

On CUDA, instead:

epoch
    How long does an epoch take beside the bare loop, the bare loop in a CUDA graph,
    and skorch, and how long would the device need at its own speed?

Competitors run in one process and take turns; leave the machine idle. Times are
medians, ratios are taken within each repeat.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _competitors import BARE, OURS, bare_step, fit_skorch, standardise
from _report import alternate, environment, table_rows
from _workloads import Workload, load_images
from threadpoolctl import threadpool_limits

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae._model.settings import matmul_precision
from sklearn_sigmavae.networks import MLP, Conv

N_THREADS = 2
SIGMA, N_COMPONENTS = 0.2, 32
QUALITY_EPOCHS = 20
BATCH_SIZES = (128, 512, 4096)

# Forward and backward, 60,000 rows of 784 through (512, 512), 32 components; the linear
# path adds 5 %.
FLOP_PER_EPOCH = 447e9
BYTES_PER_STEP = 54e6


@dataclass(frozen=True)
class ImageWorkload(Workload):
    """A workload whose networks see images."""

    recipe: Conv = field(default_factory=Conv)

    def networks(self, input_shape):
        """Encoder and decoder of SigmaVAE without the linear path."""
        return (
            self.recipe.encoder(input_shape, self.n_components),
            self.recipe.decoder(self.n_components, input_shape),
        )


CONV = ImageWorkload(
    load_images, SIGMA, (), N_COMPONENTS, n_epochs=1, n_threads=N_THREADS
)
TABLE = Workload(
    load_images, SIGMA, (512, 512), N_COMPONENTS, n_epochs=6, n_threads=N_THREADS
)


def squares(X):
    """Rows of MNIST as images."""
    return X.reshape(-1, 28, 28)


# On the CPU


def bench_conv(X, X_test, repeats):
    """Time a fit with a convolutional network, of floats and of bytes."""
    n_rows = 20_000
    floats = squares(X[:n_rows])
    integers = np.round(floats * 255).astype(np.uint8)
    scaled = replace(CONV, sigma=255 * SIGMA)

    def fit_bare(workload):
        x, sigma = standardise(workload, floats[:, None])
        step = bare_step(*workload.networks((1, 28, 28)), sigma)
        for _ in range(workload.n_epochs):
            for index in torch.randperm(len(x)).split(workload.batch_size):
                step(x[index], torch.randn(len(index), N_COMPONENTS))

    def fit_ours(workload, images):
        params = {"network": workload.recipe, "max_iter": workload.n_epochs}
        workload.plain_vae(random_state=0, **params).fit(images)

    competitors = {
        BARE: partial(fit_bare, CONV),
        OURS: partial(fit_ours, CONV, floats),
        f"{OURS}, uint8": partial(fit_ours, scaled, integers),
    }
    for run in competitors.values():
        run()
    what = f"{n_rows} images of 28 x 28, {CONV.recipe}, {N_THREADS} threads"
    yield from ("| model | competitor | seconds | ratio |", "|---|---|---|---|")
    yield from table_rows(what, alternate(competitors, repeats))


def bench_memory(X, X_test, repeats):
    """Measure what fits take at their peak, each in a process of its own."""
    yield from ("| network | memory of the fit beyond the images, MB |", "|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, np.round(squares(X) * 255).astype(np.uint8))
        for network in ("mlp", "conv"):
            command = [sys.executable, __file__, "--fit-only", network, str(path)]
            output = subprocess.run(command, capture_output=True, text=True, check=True)
            yield f"| {network} | {output.stdout.strip()} |"


def print_memory_of_fit(network, path):
    """Print the memory that a fit takes beyond its data and what torch has loaded."""
    torch.set_num_threads(N_THREADS)
    X = np.load(path)
    vae = SigmaVAE(N_COMPONENTS, sigma=51, network=network, max_iter=1, device="cpu")
    vae.fit(X[:256])
    before = memory("VmRSS")
    vae.fit(X)
    print(f"{(memory('VmHWM') - before) / 1e6:.0f}")


def memory(name):
    """Bytes that Linux counts for this process under a name."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def bench_quality(X, X_test, repeats):
    """Train both networks for as long as the convolutional one takes."""

    def fit(network, n_epochs, rows=X):
        params = {"sigma": SIGMA, "max_iter": n_epochs, "device": "cpu"}
        vae = SigmaVAE(N_COMPONENTS, network=network, random_state=0, **params)
        start = time.perf_counter()
        vae.fit(squares(rows))
        return vae, time.perf_counter() - start

    yield "| network | epochs | seconds | held-out bound, nats per image |"
    yield "|---|---|---|---|"
    networks = {
        "convolutional, the default": Conv(),
        "fully connected, the default (256, 256)": MLP((256, 256)),
        "fully connected, (512, 512)": MLP((512, 512)),
    }
    fit(Conv(), 1, X[:2000])
    n_epochs, budget = QUALITY_EPOCHS, None
    for name, network in networks.items():
        if budget is not None:
            _, one = fit(network, 1)
            _, three = fit(network, 3)
            n_epochs = round((budget - one) / ((three - one) / 2)) + 1
        vae, seconds = fit(network, n_epochs)
        budget = budget or seconds
        score = vae.score(squares(X_test))
        yield f"| {name} | {n_epochs} | {seconds:.0f} | {score:.1f} |"


# On CUDA: functions that return the seconds of each epoch


def time_epochs(workload, epoch):
    """Seconds of each epoch of a function that runs one."""
    seconds = []
    for _ in range(workload.n_epochs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        epoch()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def on_cuda(workload, X):
    """Data, and the module's parts, on the device."""
    x, sigma = standardise(workload, X)
    encoder, decoder = (net.cuda() for net in workload.networks(x.shape[1]))
    return x.cuda(), sigma, encoder, decoder


def epochs_eager(workload, X):
    """The bare loop."""
    x, sigma, encoder, decoder = on_cuda(workload, X)
    step = bare_step(encoder, decoder, sigma)

    def epoch():
        order = torch.randperm(len(x), device="cuda")
        for index in order.split(workload.batch_size):
            eps = torch.randn(len(index), workload.n_components, device="cuda")
            step(x[index], eps)

    return time_epochs(workload, epoch)


def epochs_captured(workload, X):
    """The bare loop, its step captured in a CUDA graph."""
    x, sigma, encoder, decoder = on_cuda(workload, X)
    step = bare_step(encoder, decoder, sigma, capturable=True)
    size = workload.batch_size
    rows = x[:size].clone()
    eps = torch.randn(size, workload.n_components, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(rows, eps)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(rows, eps)

    def epoch():
        order = torch.randperm(len(x), device="cuda")
        for index in order.split(size):
            if len(index) == size:
                torch.index_select(x, 0, index, out=rows)
                eps.normal_()
                graph.replay()
            else:
                step(x[index], torch.randn_like(eps[: len(index)]))

    return time_epochs(workload, epoch)


def epochs_ours(workload, X, **params):
    """SigmaVAE: the times that skorch keeps in its history."""
    vae = workload.plain_vae(max_iter=workload.n_epochs, random_state=0)
    vae.set_params(device="cuda", **params).fit(X)
    return vae.history_[:, "dur"]


def epochs_skorch(workload, X):
    """The net of skorch as it comes, only silent."""
    return fit_skorch(workload, X, device="cuda").history[:, "dur"]


def bench_epoch(X, X_test, repeats):
    """Time an epoch of all competitors at each batch size."""
    bandwidth, rate = device_speeds()
    yield (
        f"{torch.cuda.get_device_name()}: copies {bandwidth / 1e12:.2f} TB/s (read and "
        f"written), multiplies float32 matrices at {rate / 1e12:.1f} TFLOP/s.\n"
    )
    yield "| model | competitor | seconds per epoch | ratio |"
    yield "|---|---|---|---|"
    captured = f"{BARE}, in a CUDA graph"
    # The first is what ratios are to.
    epochs = {
        captured: epochs_captured,
        OURS: epochs_ours,
        f"{OURS}, one_cycle": partial(epochs_ours, lr_schedule="one_cycle"),
        f"{OURS}, with its linear path": partial(epochs_ours, linear_path=True),
        BARE: epochs_eager,
        "skorch": epochs_skorch,
    }
    floors = []
    for batch_size in BATCH_SIZES:
        workload = replace(TABLE, batch_size=batch_size)
        times = {name: [] for name in epochs}
        for _ in range(repeats):
            for name, run in epochs.items():
                with matmul_precision("cuda"):
                    # The first epochs warm up, and capture.
                    times[name].append(statistics.median(run(workload, X)[2:]))
        what = (
            f"{len(X)} x {X.shape[1]}, hidden {TABLE.hidden}, batches of {batch_size}"
        )
        yield from table_rows(what, {name: np.array(t) for name, t in times.items()})
        n_steps = -(-len(X) // batch_size)
        floor = max(FLOP_PER_EPOCH / rate, n_steps * BYTES_PER_STEP / bandwidth)
        both = FLOP_PER_EPOCH / rate + n_steps * BYTES_PER_STEP / bandwidth
        floors.append(
            f"- batches of {batch_size}: the device itself needs {floor:.4f} s for the "
            f"arithmetic or the bytes, whichever takes longer, {both:.4f} s for one "
            "after the other"
        )
    yield "\n".join(["", *floors])


def device_speeds():
    """Bytes per second of a copy on the device, and FLOP per second of a product."""

    def seconds(run):
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    source = torch.empty(2**29, device="cuda")
    target = torch.empty_like(source)
    a = torch.randn(8192, 8192, device="cuda")
    with matmul_precision("cuda"):
        product = seconds(lambda: a @ a)
    return 2 * source.nbytes / seconds(
        lambda: target.copy_(source)
    ), 2 * 8192**3 / product


ON_CPU = {
    "conv": ("A fit with a convolutional network", bench_conv),
    "memory": ("Memory of a fit on 60,000 images of bytes", bench_memory),
    "quality": (f"Held-out bound on MNIST at sigma = {SIGMA}", bench_quality),
}
ON_CUDA = {"epoch": ("An epoch on the GPU", bench_epoch)}


def main():
    """Run the benchmarks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    parts = [*ON_CPU, *ON_CUDA]
    add("--parts", nargs="+", choices=parts, help="all for the device by default")
    add("--repeats", type=int, default=5, help="at least 5 for numbers to publish")
    add("--mnist", help="folder of the MNIST files; else MNIST_DIR, else a download")
    add("--output", type=Path, help="file to write the tables to as well")
    add("--fit-only", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit_only:
        print_memory_of_fit(*args.fit_only)
        return
    if args.mnist:
        os.environ["MNIST_DIR"] = args.mnist
    images = load_images()
    torch.set_num_threads(N_THREADS)
    lines = []

    def tell(line):
        print(line, flush=True)
        lines.append(line)

    tell(environment())
    tell(f"Medians of {args.repeats} repeats; ratios to the first row (range).")
    with threadpool_limits(N_THREADS):
        for name in args.parts or (ON_CUDA if torch.cuda.is_available() else ON_CPU):
            title, bench = (ON_CPU | ON_CUDA)[name]
            tell(f"\n## {title}\n")
            for line in bench(images[:60_000], images[60_000:], args.repeats):
                tell(line)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
