"""Denoising and filling gaps: how good, and how long it takes.

``denoise``: one model of clean MNIST images, which the first run trains in minutes,
restores 1,000 test images at each noise level, with the default number of steps and
with ten times as many, which is taken for converged; the Wiener filter, the optimal
linear one, stands beside it. Times are medians; leave the machine idle.

``impute``: 30 % of the pixels of digits are missing at random, and filled by models of
the other images: SigmaVAE, and scikit-learn's imputers at their defaults.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from _data import load_mnist
from _report import alternate, environment, publish
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.model_selection import train_test_split

from sklearn_sigmavae import SigmaVAE

LEVELS = (0.5, 1.0, 1.5)
N_IMAGES = 1000


def denoising(repeats):
    """Rows of the table of denoising."""
    X, _, X_test, _ = load_mnist()
    X, X_test = (images.astype(np.float32) / 255 for images in (X, X_test))
    vae = SigmaVAE(
        32,
        sigma=0.3,
        hidden_layer_sizes=(512, 512),
        max_iter=15,
        early_stopping=False,
        random_state=0,
    ).fit(X)
    clean = X_test[:N_IMAGES]
    noise = np.random.RandomState(0).standard_normal(clean.shape).astype(np.float32)
    mean, covariance = X.mean(axis=0), np.cov(X.T, bias=True)
    for level in LEVELS:
        Y = clean + level * noise
        weights = np.linalg.solve(covariance + level**2 * np.eye(784), covariance)
        restored = {"Wiener filter": mean + (Y - mean) @ weights}

        def run(name, max_iter, Y=Y, level=level, restored=restored):
            restored[name] = vae.denoise(Y, noise_scale=level, max_iter=max_iter)

        names = {"denoise, 40 steps (default)": 40, "denoise, 400 steps": 400}
        runs = {name: (lambda n=name, i=i: run(n, i)) for name, i in names.items()}
        times = alternate(runs, repeats)
        errors = {name: np.square(x - clean).mean() for name, x in restored.items()}
        for name, error in errors.items():
            seconds = f"{np.median(times[name]):.2f}" if name in times else ""
            ratio = error / errors["denoise, 400 steps"]
            yield f"| {level} | {name} | {error:.4f} | {ratio:.3f} | {seconds} |"


def imputation(repeats):
    """Rows of the table of filled gaps."""
    X = load_digits().data
    for seed in range(repeats):
        train, test = train_test_split(X, random_state=seed)
        gaps = np.random.RandomState(seed).random_sample(test.shape) < 0.3
        Y = np.where(gaps, np.nan, test)

        def by_vae(train=train, Y=Y, seed=seed):
            vae = SigmaVAE(16, sigma=2.0, random_state=seed).fit(train)
            return vae.denoise(Y)

        def by(imputer, train=train, Y=Y):
            return imputer.fit(train).transform(Y)

        filled = {"SigmaVAE(16, sigma=2)": by_vae}
        for imputer in (IterativeImputer(), KNNImputer(), SimpleImputer()):
            filled[type(imputer).__name__] = lambda i=imputer: by(i)
        for name, fill in filled.items():
            error = np.sqrt(np.square(fill() - test)[gaps].mean())
            yield f"| {seed} | {name} | {error:.3f} |"


def report(args):
    """Lines of the report, as they become known."""
    yield environment()
    yield f"{torch.get_num_threads()} threads; medians of {args.repeats} repeats.\n"
    if "denoise" in args.parts:
        yield "| noise | method | error per pixel | of the converged | seconds |"
        yield "|---|---|---|---|---|"
        yield from denoising(args.repeats)
    if "impute" in args.parts:
        yield "\n| split | filled by | root mean squared error, grey levels |"
        yield "|---|---|---|"
        yield from imputation(args.repeats)


def main():
    """Run the benchmarks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["denoise", "impute"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="file to write the tables to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # At its default number of rounds IterativeImputer has not converged.
    warnings.simplefilter("ignore", ConvergenceWarning)
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
