"""sigma="auto" beside a grid of sigma: held-out likelihoods and times.

Ten real tables (see ``_tables.py``, for what to install), digits and breast cancer, cut
into training and test rows several times. The grid is 16 values times 5 folds, its best
by the mean score of the folds fitted again to all training rows; "auto" is one fit, to
the same rows with the same networks and steps. Scores are importance-weighted bounds of
the test rows, which chose nothing. A third fit is at the scale that "auto" found.

    python benchmarks/bench_sigma.py scores --results FILE
    python benchmarks/bench_sigma.py time

The first adds what is missing to a file, and prints the table of what is there; the
second times searches in turns with "auto", for which leave the machine idle.
"""

import argparse
import json
import math
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _report import alternate, environment, publish
from _tables import TABLES, density_rows
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE

SIGMAS = np.geomspace(0.006, 0.8, 16)
N_ROWS, N_TEST, STEPS = 3000, 1000, 1500
NAMES = (*TABLES, "digits", "cancer")


def load(name, seed):
    """Training and test rows; all columns vary, and data has a density."""
    if name in TABLES:
        train, test = density_rows(name, seed)
        return train[:N_ROWS], test[:N_TEST]
    if name == "digits":
        X = load_digits().data
        noise = np.random.RandomState(seed).uniform(size=X.shape)
        X = (X + noise)[:, np.ptp(X, axis=0) > 0] / 4
        return train_test_split(X, test_size=0.25, random_state=seed)
    train, test = train_test_split(
        load_breast_cancer().data, test_size=0.25, random_state=seed
    )
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def build(X, seed, steps=STEPS, **params):
    """The estimator of all fits."""
    n_epochs = math.ceil(steps * 128 / len(X))
    sizes = {"hidden_layer_sizes": (64, 64), "max_iter": n_epochs}
    return SigmaVAE(16, **sizes, random_state=seed, device="cpu", **params)


def measure(estimator, X, X_test):
    """Scale, score and seconds of a fit."""
    start = time.perf_counter()
    vae = estimator.fit(X)
    seconds = time.perf_counter() - start
    vae = getattr(vae, "best_estimator_", vae)
    score = vae.score_samples(X_test, n_importance_samples=500).mean()
    return {"sigma": vae.sigma_, "score": float(score), "seconds": seconds}


def compare(path, names, seeds):
    """Add results to a file, and return all that it has."""
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in seeds:
        for name in names:
            found = results.setdefault(f"{name}/{seed}", {})
            X, X_test = load(name, seed)
            if "grid" not in found:
                grid = BatchedGridSearchCV(build(X, seed), {"sigma": SIGMAS}, cv=5)
                found["grid"] = measure(grid, X, X_test)
            if "auto" not in found:
                found["auto"] = measure(build(X, seed, sigma="auto"), X, X_test)
                fixed = build(X, seed, sigma=found["auto"]["sigma"])
                found["fixed"] = measure(fixed, X, X_test)
            path.write_text(json.dumps(results, indent=1))
    return results


def table(results):
    """Rows of the table, what loses first."""
    rows = []
    for name in NAMES:
        of_name = [v for key, v in results.items() if key.split("/")[0] == name]
        if not of_name:
            continue
        grid, auto, fixed = (
            np.array([[v[kind][x] for x in ("sigma", "score", "seconds")]
                      for v in of_name]).T
            for kind in ("grid", "auto", "fixed")
        )  # fmt: skip
        lead = auto[1] - grid[1]
        rows.append(
            (
                lead.mean(),
                f"| {name} | {len(of_name)} | {np.median(grid[0]):.3f} | "
                f"{np.median(auto[0]):.3f} | {grid[1].mean():.2f} | "
                f"{auto[1].mean():.2f} | {lead.mean():+.2f} "
                f"({lead.min():+.2f}..{lead.max():+.2f}) | {fixed[1].mean():.2f} | "
                f"{np.median(auto[2] / fixed[2]):.2f} |",
            )
        )
    yield (
        "| data | splits | σ of the grid | σ of auto | grid, nats | auto, nats | lead "
        "(range) | one fit at σ of auto, nats | time of auto / that fit |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for _, row in sorted(rows):
        yield row


def race(name, steps, repeats):
    """Rows of the table of times: a grid one by one, in a stack, and one fit."""
    X, _ = load(name, 0)
    grid = {"sigma": SIGMAS}
    searches = {
        "sigma='auto', one fit": lambda: build(X, 0, steps, sigma="auto").fit(X),
        **{
            f"{cls.__name__}, n_jobs={n_jobs}": partial(
                lambda cls, n: cls(build(X, 0, steps), grid, n_jobs=n).fit(X),
                cls,
                n_jobs,
            )
            for cls, n_jobs in (
                (BatchedGridSearchCV, None),
                (GridSearchCV, 2),
                (GridSearchCV, 1),
            )
        },
    }
    # What torch does at its first steps only.
    build(X, 0, 1, sigma="auto").fit(X)
    times = alternate(searches, repeats)
    first = next(iter(times.values()))
    yield "| data | what | seconds | times that of one fit |"
    yield "|---|---|---|---|"
    for what, seconds in times.items():
        ratio = np.median(seconds / first)
        yield f"| {name} | {what} | {np.median(seconds):.1f} | {ratio:.0f} |"


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("part", choices=("scores", "time"))
    add("--results", type=Path, default=Path("sigma.json"))
    add("--names", nargs="+", choices=NAMES, default=NAMES)
    add("--seeds", nargs="+", type=int, default=(0, 1, 2))
    add("--steps", type=int, default=STEPS, help="of the fits that are timed")
    add("--repeats", type=int, default=1)
    args = parser.parse_args()
    # What a grid tries, it should not warn of.
    warnings.simplefilter("ignore")
    lines = [f"{environment()} {torch.get_num_threads()} threads.", ""]
    if args.part == "scores":
        lines += table(compare(args.results, args.names, args.seeds))
    else:
        for name in args.names:
            lines += race(name, args.steps, args.repeats)
    publish(lines)


if __name__ == "__main__":
    main()
