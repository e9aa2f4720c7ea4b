"""Denoising and filling gaps: how good, and how long it takes.

``denoise``: one model of clean MNIST images, which the first run trains in minutes,
restores 1,000 test images at each noise level, with the default number of steps and
with ten times as many, which is taken for converged; the Wiener filter, the optimal
linear one, stands beside it. Times are medians; leave the machine idle.

``impute``: 30 % of the pixels of digits are missing at random, and filled by models of
the other images: SigmaVAE and its linear start, and scikit-learn's imputers. Numbers of
neighbours, and of components with their sigma, are chosen on gaps of training images.
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
from sklearn.model_selection import GridSearchCV, KFold, train_test_split

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE

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


def fill(model, Y):
    """Rows of Y, with what the model puts in the place of NaN."""
    if not isinstance(model, SigmaVAE):
        return model.transform(Y)
    return np.where(np.isnan(Y), model.denoise(Y, noise_scale=model.sigma_), Y)


def gap_error(model, X, seed=0):
    """Root mean squared error of the model over 30 % of the entries of X."""
    gaps = np.random.RandomState(seed).random_sample(X.shape) < 0.3
    filled = fill(model, np.where(gaps, np.nan, X))
    return np.sqrt(np.square(filled - X)[gaps].mean())


def gap_scorer(model, X, y=None):
    """Score of a search: greater is better."""
    return -gap_error(model, X)


def with_gaps(X, seed):
    """X twice, complete and with gaps, which IterativeImputer needs to iterate."""
    random_state = np.random.RandomState(seed)
    gaps = random_state.random_sample(X.shape) < random_state.uniform(
        0, 0.8, (len(X), 1)
    )
    return np.vstack([X, np.where(gaps, np.nan, X)])


def imputers(X, seed):
    """Name, parameters chosen on gaps of rows of X, and an imputer fitted to X."""

    def choose(search, model, **grid):
        options = {"scoring": gap_scorer, "refit": False}
        folds = KFold(3, shuffle=True, random_state=0)
        return search(model, grid, cv=folds, **options).fit(X).best_params_

    grid = {"n_components": [16, 24, 32], "sigma": [1.0, 2.0, 3.0]}
    # The search takes a smaller network than the default, for time.
    small = SigmaVAE(
        hidden_layer_sizes=(64,), learning_rate=8e-3, max_iter=30, random_state=0
    )
    best = choose(BatchedGridSearchCV, small, **grid)
    yield "SigmaVAE", best, SigmaVAE(**best, random_state=seed).fit(X)
    best = choose(GridSearchCV, SigmaVAE(max_iter=0), **grid)
    yield "SigmaVAE(max_iter=0)", best, SigmaVAE(**best, max_iter=0).fit(X)
    neighbors = [2, 3, 5, 8, 12, 20]
    best = choose(GridSearchCV, KNNImputer(), n_neighbors=neighbors)
    yield "KNNImputer", best, KNNImputer(**best).fit(X)
    iterative = IterativeImputer(random_state=0)  # with BayesianRidge
    yield "IterativeImputer", {}, iterative.fit(with_gaps(X, seed))
    yield "SimpleImputer", {}, SimpleImputer().fit(X)


def imputation(repeats):
    """Rows of the table of filled gaps."""
    X = load_digits().data
    for seed in range(repeats):
        train, test = train_test_split(X, random_state=seed)
        for name, best, model in imputers(train, seed):
            chosen = ", ".join(f"{k} = {v:g}" for k, v in best.items())
            yield f"| {seed} | {name} | {chosen} | {gap_error(model, test, seed):.3f} |"


def report(args):
    """Lines of the report, as they become known."""
    yield environment()
    yield f"{torch.get_num_threads()} threads; medians of {args.repeats} repeats.\n"
    if "denoise" in args.parts:
        yield "| noise | method | error per pixel | of the converged | seconds |"
        yield "|---|---|---|---|---|"
        yield from denoising(args.repeats)
    if "impute" in args.parts:
        yield "\n| split | filled by | chosen | root mean squared error, grey levels |"
        yield "|---|---|---|---|"
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
