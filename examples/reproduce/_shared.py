"""What the experiments share: MNIST, the command line, tables."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _data import load_mnist
from _report import Results, run_missing  # noqa: F401

# Of all experiments: as many components, and as wide.
N_COMPONENTS = 32
HIDDEN = (512, 512)
# Each fit has one thread, and there are as many at a time as there are cores.
N_JOBS = -1


def mnist(quick):
    """MNIST as floats in [0, 1], less of it if it is to be quick."""
    X_train, y_train, X_test, y_test = load_mnist()
    n_train, n_test = (5000, 1000) if quick else (60_000, 10_000)
    X_train, X_test = (
        X[:n].astype(np.float32) / 255
        for X, n in ((X_train, n_train), (X_test, n_test))
    )
    return X_train, y_train[:n_train], X_test, y_test[:n_test]


def parse_args(description):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="minutes, on few images")
    parser.add_argument(
        "--output", type=Path, default=Path("reproduced"), help="folder to write to"
    )
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def fit_wiener(X):
    """The optimal linear filter for a noise level."""
    mean, covariance = X.mean(axis=0), np.cov(X.T, bias=True)

    def denoise(Y, level):
        total = covariance + level**2 * np.eye(len(covariance))
        weights = np.linalg.lstsq(total, covariance, rcond=None)[0]
        return mean + (Y - mean) @ weights.astype(np.float32)

    return denoise


def write_table(path, header, rows):
    """Write a table in markdown, and print it."""
    lines = [header, ["---"] * len(header), *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    path.write_text(text)
    print(f"\n{text}", flush=True)
