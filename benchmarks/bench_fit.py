"""Time SigmaVAE beside a hand-tuned PyTorch loop and other ways to train one.

    python benchmarks/bench_fit.py --mnist FOLDER --output FILE

prints markdown tables on three questions:

fit
    How long does a fit take, for the same network, steps and optimiser?
transform
    How long does encoding take, next to the bare forward pass?
score
    How long does a score take, next to the decoder's bare products at 64 points a row,
    and how far is it from that of many points?
quality
    How long does it take to the held-out score that a plain network reaches?

All competitors run in one process and take turns, so that whatever else the machine
does meets them alike; still, leave it idle: on several threads the slowdown by other
work is out of all proportion. Times are medians. Ratios are taken within each repeat;
their median stands beside their range.
"""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _competitors import BARE, FITS, OURS, fit_bare, fit_pythae, standardise
from _report import against_fastest, alternate, environment, publish, table_rows
from _workloads import Workload, load_images
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from sklearn_sigmavae._model.blocks import infer
from sklearn_sigmavae._model.bound import RowBound
from sklearn_sigmavae._model.points import integration_points

SEEDS = (0, 1, 2)
TRANSFORM_ROWS = 100_000
TRANSFORM_REPEATS = 5
FORWARD_BATCH_SIZES = tuple(2**power for power in range(10, 17))
SCORE_POINTS, EXACT_POINTS = 64, 8192
PRODUCT_BATCH_SIZES = tuple(2**power for power in range(8, 14))


# Workloads


def load_table(n_samples=20_000):
    """Eight correlated factors in 30 features, of unequal strengths, and noise."""
    random_state = np.random.RandomState(0)
    factors = random_state.standard_normal((n_samples, 8))
    loadings = random_state.standard_normal((8, 30)) / np.sqrt(np.arange(1, 9))[:, None]
    noise = 0.5 * random_state.standard_normal((n_samples, 30))
    return (factors @ loadings + noise).astype(np.float32), None


def load_mnist_20k():
    """20,000 training and 2,000 test images."""
    return load_images()[:20_000], load_images()[60_000:62_000]


def load_mnist_repeated():
    """MNIST, and part of it again."""
    X = load_images()
    return np.concatenate([X, X[: TRANSFORM_ROWS - len(X)]]), None


def load_split(load, scaler):
    """Training and test rows of a data set of scikit-learn, scaled."""
    X_train, X_test = train_test_split(load().data, test_size=0.2, random_state=0)
    return scaler.fit_transform(X_train), scaler.transform(X_test)


DIGITS = partial(load_split, load_digits, FunctionTransformer(lambda X: X / 16))
BREAST_CANCER = partial(load_split, load_breast_cancer, StandardScaler())

TABLE = Workload(load_table, 1.0, (64, 64), n_components=16, n_epochs=16, n_threads=1)
MNIST = Workload(
    load_mnist_20k, 0.2, (512, 512), n_components=32, n_epochs=3, n_threads=2
)
# A higher learning rate than the default, as one sets it for a few epochs.
SMALL = replace(
    TABLE,
    hidden=(256, 256),
    n_epochs=20,
    activation="relu",
    params={"learning_rate": 6e-3},
)

FIT = {
    "table-128": TABLE,
    "table-512": replace(TABLE, batch_size=512, n_epochs=40),
    "mnist-128": MNIST,
    "mnist-1024": replace(MNIST, batch_size=1024),
}
TRANSFORM = {
    "transform-table": replace(TABLE, load=partial(load_table, TRANSFORM_ROWS)),
    "transform-mnist": replace(MNIST, load=load_mnist_repeated),
}
SCORE = {
    "score-digits": replace(
        TABLE, load=lambda: (load_digits().data, None), sigma=1.5, hidden=(256, 256)
    ),
    "score-table": replace(TABLE, load=partial(load_table, 5000)),
}
QUALITY = {
    "quality-digits": replace(SMALL, load=DIGITS, sigma=0.2),
    "quality-breast-cancer": replace(
        SMALL, load=BREAST_CANCER, sigma=0.3, n_components=15
    ),
    "quality-mnist": replace(MNIST, n_epochs=5, activation="relu"),
}


# Measurements: each returns times by competitor, the baseline's first, and notes


def bench_fit(workload, X, X_test, repeats):
    """Time the fits of all competitors."""
    competitors, notes = {}, []
    for name, fit in FITS.items():
        try:
            # The warm-up, which also shows whether the competitor runs here.
            fit(replace(workload, n_epochs=1), X)
        except Exception as error:
            if fit is not fit_pythae:
                raise
            notes.append(f"{name} left out: {error!r}")
        else:
            competitors[name] = partial(fit, workload, X)
    notes.append(f"batches of {workload.batch_size}, epochs {workload.n_epochs}")
    return alternate(competitors, repeats), notes


def bench_transform(workload, X, X_test, repeats):
    """Time transform, and the bare forward pass at its best batch size.

    The forward pass is spared the checks, the change of units and NumPy.
    """
    vae = workload.plain_vae(max_iter=0).fit(X[:1000])
    encoder, k = vae.module_.encoder, workload.n_components
    x, _ = standardise(workload, X)

    def forward(batch_size):
        with torch.inference_mode():
            return torch.cat([encoder(rows)[:, :k] for rows in x.split(batch_size)])

    competitors = {
        f"bare forward pass, batches of {size}": partial(forward, size)
        for size in FORWARD_BATCH_SIZES
    }
    competitors[OURS] = partial(vae.transform, X)
    for transform in competitors.values():
        transform()
    # So short that more repeats cost little, and that they are needed.
    repeats *= TRANSFORM_REPEATS
    return against_fastest(OURS, alternate(competitors, repeats)), [
        f"{repeats} repeats"
    ]


def bench_score(workload, X, X_test, repeats):
    """Time score, and the bare products of the decoder at their best batch size.

    The products are spared biases, activations, the likelihood and the refinement.
    """
    X = X.astype(np.float32)
    vae = workload.vae(max_iter=workload.n_epochs).fit(X)
    layers = vae.module_.decoder.network.modules()
    weights = [each.weight.detach() for each in layers if hasattr(each, "weight")]
    z = torch.randn(len(X) * SCORE_POINTS, workload.n_components)

    def products(batch_size):
        for rows in z.split(batch_size):
            for weight in weights:
                rows = rows @ weight.T

    competitors = {
        f"bare products at {SCORE_POINTS} points a row, batches of {size}": partial(
            products, size
        )
        for size in PRODUCT_BATCH_SIZES
    }
    competitors[OURS] = partial(vae.score, X)
    for run in competitors.values():
        run()
    repeats *= TRANSFORM_REPEATS
    times = against_fastest(OURS, alternate(competitors, repeats))

    rows = X[:500].astype(np.float64)
    model, k = vae._model, workload.n_components
    bound = RowBound(model.noise, model.scale, k, None, model.beta)
    found = infer(vae.module_, bound, rows)
    points = integration_points(k, EXACT_POINTS)
    bound.points = torch.from_numpy(points).unsqueeze(1)
    bound.weights = torch.full((len(points),), 1 / len(points), dtype=torch.float64)
    error = found - infer(vae.module_, bound, rows)
    return times, [
        f"{repeats} repeats; mean of {len(rows)} rows off by {error.mean():+.4f} nats "
        f"from that of {EXACT_POINTS} points, a row by {error.std():.4f}"
    ]


def bench_quality(workload, X, X_test, repeats):
    """Time SigmaVAE to the score of the plain network, and the plain network.

    The plain network's score is that of SigmaVAE with that network, so that both are
    the same bound. Its time is that fit's or the bare loop's, whichever is less.
    """

    def mean_score(make_vae):
        fits = (make_vae(random_state=seed).fit(X) for seed in SEEDS)
        return np.mean([vae.score(X_test) for vae in fits])

    make_plain = partial(workload.plain_vae, max_iter=workload.n_epochs)
    target = mean_score(make_plain)
    for n_epochs in range(2 * workload.n_epochs + 1):
        make_ours = partial(workload.vae, max_iter=n_epochs, **workload.params)
        score = mean_score(make_ours)
        if score >= target:
            break
    else:
        note = f"{OURS} reached {score:.2f} in {n_epochs} epochs, short of {target:.2f}"
        return {}, [note]

    plain = f"plain network, {target:.2f} nats after {workload.n_epochs} epochs"
    given = "".join(f", {name}={value}" for name, value in workload.params.items())
    ours = f"{OURS}{given}, {score:.2f} nats after {n_epochs} epochs"
    fit_bare(replace(workload, n_epochs=1), X)
    times = alternate(
        {
            f"{plain} ({BARE})": lambda: fit_bare(workload, X),
            f"{plain} ({OURS})": lambda: make_plain(random_state=0).fit(X),
            ours: lambda: make_ours(random_state=0).fit(X),
        },
        repeats,
    )
    return against_fastest(ours, times), [f"scores are means of {len(SEEDS)} fits"]


# Report

TABLES = {
    "Fit: the same network, steps and optimiser": (bench_fit, FIT),
    "Transform": (bench_transform, TRANSFORM),
    "Score": (bench_score, SCORE),
    "Time to the plain network's held-out score": (bench_quality, QUALITY),
}


def report(names, repeats, quick):
    """Lines of the report, as they become known."""
    yield environment()
    yield f"Medians of {repeats} repeats; ratios to the first of each workload (range)."
    for title, (bench, workloads) in TABLES.items():
        selected = [name for name in workloads if name in names]
        if not selected:
            continue
        yield f"\n## {title}\n"
        yield "| workload | data and model | competitor | seconds | ratio |"
        yield "|---|---|---|---|---|"
        all_notes = []
        for name in selected:
            workload = workloads[name]
            X, X_test = workload.load()
            if quick:
                workload, X = replace(workload, n_epochs=1), X[:2000]
            torch.set_num_threads(workload.n_threads)
            # For NumPy and SciPy, which SigmaVAE starts with.
            with threadpool_limits(workload.n_threads):
                times, notes = bench(workload, X, X_test, repeats)
            yield from table_rows(f"{name} | {workload.describe(X)}", times)
            all_notes += [f"- {name}: {note}" for note in notes]
        yield "\n".join(["", *all_notes])


def parse_args():
    """Parse the command line."""
    names = [*FIT, *TRANSFORM, *SCORE, *QUALITY]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workloads", nargs="+", choices=names, default=names, help="all by default")
    add("--repeats", type=int, default=5, help="at least 5 for numbers to publish")
    add("--mnist", help="folder of the MNIST files; else MNIST_DIR, else a download")
    add("--output", type=Path, help="file to write the tables to as well")
    add("--quick", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    """Run the benchmarks that the command line asks for."""
    args = parse_args()
    if args.mnist:
        os.environ["MNIST_DIR"] = args.mnist
    if any("mnist" in name for name in args.workloads):
        # Should MNIST be missing, let it be known now.
        load_images()
    publish(report(args.workloads, args.repeats, args.quick), args.output)


if __name__ == "__main__":
    main()
