"""The number of threads: torch's default, as set by the user, against ours.

Each workload runs with the limit on threads and without it, in turns, on a machine that
is idle and on one whose second core another process keeps busy.
"""

import argparse
import multiprocessing
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from _report import alternate, environment, publish
from sklearn.datasets import load_digits

from sklearn_sigmavae import SigmaVAE, _threads

DIGITS = load_digits().data
RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(2000, 784)).astype(np.float32)


def fit(X, epochs, **params):
    """Function that fits a model."""
    vae = SigmaVAE(sigma=1.0, max_iter=epochs, random_state=0, device="cpu", **params)

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vae.fit(X)

    return run


def call(X, method, **params):
    """Function that calls a method of a fitted model."""
    vae = SigmaVAE(sigma=1.0, max_iter=0, random_state=0, device="cpu", **params).fit(X)
    return lambda: getattr(vae, method)(X)


def workloads():
    """Functions by name."""
    small, wide = {"hidden_layer_sizes": (64, 64)}, {"hidden_layer_sizes": (512, 512)}
    return {
        "digits, 20 epochs, (64, 64)": fit(DIGITS, 20, **small),
        "digits, 5 epochs, (256, 256)": fit(DIGITS, 5),
        "2000 x 784, 2 epochs, (512, 512)": fit(WIDE, 2, **wide),
        "digits, score, (64, 64)": call(DIGITS, "score_samples", **small),
        "digits, score, (256, 256)": call(DIGITS, "score_samples"),
        "2000 x 784, transform, (512, 512)": call(WIDE, "transform", **wide),
    }


def unlimited(run):
    """The same function, with as many threads as the user allows."""

    def without_limit():
        before, _threads.OPERATIONS_PER_THREAD = _threads.OPERATIONS_PER_THREAD, 1e-9
        try:
            run()
        finally:
            _threads.OPERATIONS_PER_THREAD = before

    return without_limit


def _spin():
    while True:
        pass


@contextmanager
def busy_core(busy):
    """Context in which another process keeps a core busy."""
    if not busy:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def report(args):
    """Lines of the report."""
    torch.set_num_threads(args.threads)
    yield f"{args.threads} threads allowed, medians of {args.repeats}, seconds."
    yield ""
    yield "| workload | machine | all threads | limited | all / limited |"
    yield "|---|---|---|---|---|"
    for name, run in workloads().items():
        for busy in (False, True):
            with busy_core(busy):
                pair = {"all": unlimited(run), "limited": run}
                times = alternate(pair, args.repeats)
            ratios = times["all"] / times["limited"]
            yield (
                f"| {name} | {'a core busy' if busy else 'idle'} | "
                f"{np.median(times['all']):.3g} | {np.median(times['limited']):.3g} | "
                f"{np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f}) |"
            )
    yield ""
    yield environment()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    publish(report(parser.parse_args()), parser.parse_args().output)
