"""Filling gaps of real tables: SigmaVAEImputer beside scikit-learn's imputers.

Ten tables (see ``_tables.py``, for what to install), 1,500 rows of each to train and
500 to test, standardised by the former. Both lose entries in the same way:

- mcar20, mcar50: one fifth, one half of them, completely at random;
- mar30: 30 % of all columns but one; a row loses more where that one is greater;
- block: a third of the columns, side by side, in nine rows of ten.

Every row keeps at least one entry. Imputers are tuned on training rows: a further tenth
of the entries is hidden, and the setting that errs least on these is kept. Errors are
over the missing entries of test rows, in standard deviations of the columns. Seconds
are those of one thread.

    python benchmarks/bench_imputation.py run --results FILE
    python benchmarks/bench_imputation.py report --results FILE
    python benchmarks/bench_imputation.py price

The first adds what is missing to a file, and can be broken off and go on; the second
prints the tables of what is there. The third prints what it costs to learn from rows
with gaps: the time of a fit, 30 % of the entries missing, as a multiple of that to
complete rows; and the error of filling digits, 30 % of the pixels missing, beside those
of models fitted to all images without gaps and to 70 % of them.
"""

import argparse
import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _report import (
    Results,
    alternate,
    environment,
    markdown,
    publish,
    run_missing,
)
from _tables import TABLES, continuous_rows
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_absolute_error, root_mean_squared_error
from sklearn.model_selection import ParameterGrid, train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sklearn_sigmavae import MixturePrior, SigmaVAE, SigmaVAEImputer

N_TRAIN, N_TEST = 1500, 500
MECHANISMS = ("mcar20", "mcar50", "mar30", "block")
# By how much the log-odds of a gap grow with a standard deviation of the column.
SLOPE = 2.0

# What our imputers are tuned over; most of their fits find the noise themselves.
SHORT = SigmaVAE(
    sigma="auto",
    hidden_layer_sizes=(128, 128),
    batch_size=256,
    learning_rate=1e-2,
    max_iter=60,
)
OURS = {
    "linear": (
        SigmaVAE(max_iter=0, hidden_layer_sizes=()),
        {"sigma": [0.1, 0.2, 0.3, 0.5, 0.7, 1.0]},
    ),
    "sigma-vae": (
        SHORT,
        [
            {
                "prior": ["normal", MixturePrior(10), MixturePrior(30)],
                "sigma": ["auto", 0.2],
            },
            # For columns that have little to do with each other.
            {"sigma": [1.0]},
            # The start with a mixture is a mixture of linear models.
            {"prior": ["mixture"], "max_iter": [0], "hidden_layer_sizes": [()]},
        ],
    ),
}
MAX_COMPONENTS = 32
# 100 take three times as long, and err by a hundredth less at most where it is close.
N_TREES = 30
GRIDS = {
    "simple": (SimpleImputer(), {"strategy": ["mean", "median"]}),
    "knn": (
        KNNImputer(),
        {"n_neighbors": [3, 5, 10, 20, 40], "weights": ["uniform", "distance"]},
    ),
    "ridge": (
        IterativeImputer(),  # with BayesianRidge
        {"max_iter": [10, 30], "n_nearest_features": [None, 10]},
    ),
    "forest": (
        IterativeImputer(ExtraTreesRegressor(N_TREES)),
        {"estimator__min_samples_leaf": [1, 5], "estimator__max_features": [1.0, 0.5]},
    ),
}
MODELS = (*GRIDS, *OURS)
# Trees are slow, so they are tuned on fewer rows.
ROWS_TO_TUNE = {"forest": 500}
N_DRAWS = 20
# Where a classifier is fitted to what was filled.
CLASSIFIED = ("mcar50", "mar30")


# Data with gaps


def split(name, seed):
    """Training and test rows, standardised by the former, and the classes of both."""
    rows, classes = continuous_rows(name, seed)
    train, test, *classes = train_test_split(
        rows, classes, train_size=N_TRAIN, test_size=N_TEST, random_state=seed
    )
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test), *classes


def gaps_of(X, mechanism, random_state):
    """Which entries of X are missing."""
    n_rows, n_columns = X.shape
    if mechanism == "block":
        width = max(1, round(n_columns / 3))
        start = random_state.randint(n_columns - width + 1, size=(n_rows, 1))
        place = np.arange(n_columns) - start
        gaps = (place >= 0) & (place < width)
        gaps &= random_state.random_sample((n_rows, 1)) < 0.9
    elif mechanism == "mar30":
        observed = random_state.randint(n_columns)
        odds = SLOPE * X[:, [observed]]
        # The logistic function that is 0.3 on average.
        shift = brentq(lambda shift: expit(odds + shift).mean() - 0.3, -200, 200)
        gaps = random_state.random_sample(X.shape) < expit(odds + shift)
        gaps[:, observed] = False
    else:
        chance = {"mcar20": 0.2, "mcar30": 0.3, "mcar50": 0.5}[mechanism]
        gaps = random_state.random_sample(X.shape) < chance
    empty = np.flatnonzero(gaps.all(axis=1))
    gaps[empty, random_state.randint(n_columns, size=len(empty))] = False
    return gaps


# Imputers


def candidates(model, train):
    """Imputers to choose from."""
    n_columns = train.shape[1]
    if model in OURS:
        vae, grid = OURS[model]
        # Components with less variance than the noise do nothing.
        k = min(n_columns, MAX_COMPONENTS)
        vaes = [clone(vae).set_params(n_components=k, **p) for p in ParameterGrid(grid)]
        return [SigmaVAEImputer(vae) for vae in vaes]
    imputer, grid = GRIDS[model]
    if model == "ridge":
        if n_columns <= 10:
            grid = grid | {"n_nearest_features": [None]}
        low, high = np.nanmin(train, axis=0), np.nanmax(train, axis=0)
        # Regressions on few rows may reach far out.
        grid = [grid, grid | {"min_value": [low], "max_value": [high]}]
    return [clone(imputer).set_params(**params) for params in ParameterGrid(grid)]


def seeded(imputer, seed):
    """A copy of an imputer in which everything random has a seed."""
    imputer = clone(imputer)
    names = [name for name in imputer.get_params() if name.endswith("random_state")]
    return imputer.set_params(**dict.fromkeys(names, seed))


def tune(imputers, X, seed, n_rows=None):
    """The imputer that errs least on entries of X that are hidden, and all errors."""
    random_state = np.random.RandomState(seed)
    X = X[random_state.permutation(len(X))[:n_rows]]
    hidden = ~np.isnan(X) & (random_state.random_sample(X.shape) < 0.1)
    hidden &= ~(np.isnan(X) | hidden).all(axis=1, keepdims=True)
    hiding = np.where(hidden, np.nan, X)
    errors = [
        root_mean_squared_error(
            X[hidden], seeded(imputer, seed).fit_transform(hiding)[hidden]
        )
        for imputer in imputers
    ]
    return imputers[np.argmin(errors)], errors


def coverage(imputer, X, gaps, truth):
    """The share of missing values that lie between the least and the greatest draw."""
    imputer.set_params(sample_posterior=True)
    seeds = range(N_DRAWS)
    draws = [imputer.set_params(random_state=i).transform(X)[gaps] for i in seeds]
    inside = (np.min(draws, axis=0) <= truth) & (truth <= np.max(draws, axis=0))
    return float(inside.mean())


def accuracy(train, classes, test, test_classes):
    """Of logistic regression, on the test rows."""
    classifier = LogisticRegression(max_iter=1000).fit(train, classes)
    return float(classifier.score(test, test_classes))


def run(table, mechanism, seed, model):
    """How well one tuned imputer fills the test rows of one table."""
    whole, whole_test, classes, test_classes = split(table, seed)
    random_state = np.random.RandomState((seed, MECHANISMS.index(mechanism)))
    gaps = gaps_of(np.vstack([whole, whole_test]), mechanism, random_state)
    gaps, test_gaps = gaps[: len(whole)], gaps[len(whole) :]
    train = np.where(gaps, np.nan, whole)
    test = np.where(test_gaps, np.nan, whole_test)

    start = time.perf_counter()
    imputers = candidates(model, train)
    chosen, errors = imputers[0], []
    if len(imputers) > 1:
        chosen, errors = tune(imputers, train, seed, ROWS_TO_TUNE.get(model))
    tuned = time.perf_counter()
    imputer = seeded(chosen, seed).fit(train)
    fitted = time.perf_counter()
    filled = imputer.transform(test)
    done = time.perf_counter()

    truth = whole_test[test_gaps]
    record = {
        "rmse": root_mean_squared_error(truth, filled[test_gaps]),
        "mae": mean_absolute_error(truth, filled[test_gaps]),
        **{"tune_seconds": tuned - start, "fit_seconds": fitted - tuned},
        **{"transform_seconds": done - fitted, "seconds": done - tuned},
        **{"chosen": " ".join(repr(chosen).split()), "errors": errors},
    }
    if mechanism in CLASSIFIED:
        rows = imputer.transform(train), classes, filled, test_classes
        record["accuracy"] = accuracy(*rows)
        record["whole"] = accuracy(whole, classes, whole_test, test_classes)
    if model in OURS:
        record["coverage"] = coverage(imputer, test, test_gaps, truth)
    return record


# The report


def frame_of(found):
    """A row for each finished run."""
    names = "table", "mechanism", "seed", "model"
    return pd.DataFrame(
        dict(zip(names, key.split("/"), strict=True)) | record
        for key, record in found.items()
    )


def comparable(runs):
    """The runs of those seeds that every model of a table has."""
    n_models = runs.groupby(["table", "mechanism"]).model.transform("nunique")
    n_runs = runs.groupby(["table", "mechanism", "seed"]).model.transform("count")
    return runs[n_runs == n_models]


def over_seeds(runs, field):
    """Means by table and model, and the model of ours that is compared."""
    means = runs.pivot_table(field, "table", "model", sort=False)
    means = means[[model for model in MODELS if model in means]]
    return means, next((us for us in reversed(OURS) if us in means), None)


def comparison(runs, field, sign=-1):
    """Lines of a table of means, the best in bold, where ours is behind first."""
    means, us = over_seeds(runs, field)
    if us:
        lead = sign * means[us] - (sign * means.drop(columns=us)).max(axis=1)
        means = means.loc[lead.sort_values(kind="stable").index]
    shown = means.map("{:.3f}".format)
    best = (sign * (sign * means).max(axis=1)).map("{:.3f}".format)
    shown = shown.where(shown.ne(best, axis=0), "**" + shown + "**").replace("nan", "")
    if field == "accuracy":
        shown["no gaps"] = runs.groupby("table").whole.mean().map("{:.3f}".format)
    shown["splits"] = runs.groupby("table").seed.nunique().map(str)
    complete = means.dropna()
    shown.loc[f"mean of {len(complete)}"] = complete.mean().map("{:.3f}".format)
    yield from markdown(shown.fillna(""))


def counts(runs):
    """Lines of a table: on how many tables ours errs less than each other model."""
    shown = {}
    for mechanism, of_mechanism in runs.groupby("mechanism", sort=False):
        means, us = over_seeds(of_mechanism, "rmse")
        for model in means.columns.drop(us) if us else ():
            # Equal to the digits that are shown is not below.
            both = means[[us, model]].dropna().round(3)
            below = (both[us] < both[model]).sum()
            shown[mechanism, f"{us} below {model}"] = f"{below} of {len(both)}"
    if shown:
        shown = pd.Series(shown).unstack(sort=False).rename_axis("gaps").fillna("")
        yield "Tables on which ours errs less."
        yield ""
        yield from markdown(shown)


def costs(runs):
    """Lines of a table of seconds, and of ours as a multiple of the forest's."""
    keys = ["table", "mechanism", "seed"]
    times = runs.pivot_table("seconds", keys, "model", sort=False)
    times = times[[model for model in MODELS if model in times]]
    for model in OURS if "forest" in times else ():
        if model in times:
            times[f"{model} / forest"] = times[model] / times["forest"]
    medians = times.groupby("table", sort=False).median()
    medians.loc["all"] = times.median()
    yield "Seconds of a fit and of filling the test rows, medians."
    yield ""
    yield from markdown(medians.map("{:.3g}".format).replace("nan", ""))


def coverages(runs):
    """Lines of a table of the shares of values between draws."""
    means = runs.pivot_table("coverage", "table", ["model", "mechanism"], sort=False)
    means = means.sort_index(axis=1, level="model", sort_remaining=False)
    means.columns = [" ".join(names) for names in means.columns]
    means.loc["mean"] = means.mean()
    expected = 100 * (N_DRAWS - 1) / (N_DRAWS + 1)
    yield (
        f"Percent of missing values between the least and the greatest of {N_DRAWS} "
        f"draws; {expected:.1f} are expected."
    )
    yield ""
    yield from markdown((100 * means).map("{:.1f}".format).replace("nan", ""))


def report(found):
    """Lines of the report, from the results."""
    order = {name: i for i, name in enumerate((*TABLES, *MECHANISMS))}
    runs = frame_of(found).sort_values(
        ["table", "mechanism"], key=lambda names: names.map(order), kind="stable"
    )
    seen = [name for name in MECHANISMS if name in set(runs.mechanism)]
    fair = comparable(runs)
    for mechanism in seen:
        yield f"Root mean squared error of what is filled, {mechanism}."
        yield ""
        yield from comparison(fair[fair.mechanism == mechanism], "rmse")
    yield from counts(fair)
    yield from costs(runs)
    if "coverage" in runs:
        yield from coverages(runs.dropna(subset="coverage"))
    for mechanism in seen:
        if mechanism in CLASSIFIED:
            yield f"Accuracy of logistic regression on filled rows, {mechanism}."
            yield ""
            yield from comparison(fair[fair.mechanism == mechanism], "accuracy", 1)
    yield environment()


def price(names, seeds, n_repeats=3):
    """Lines of what gaps cost: in time, and in the error of filling digits."""
    yield "| fit to | gaps / complete, seconds |"
    yield "|---|---|"
    for name in names:
        train, *_ = split(name, 0)
        gaps = gaps_of(train, "mcar30", np.random.RandomState(0))
        rows = {"complete": train, "gaps": np.where(gaps, np.nan, train)}
        vae = SigmaVAE(min(train.shape[1], 16), sigma=0.25, max_iter=60, random_state=0)
        fits = {key: partial(clone(vae).fit, X) for key, X in rows.items()}
        times = alternate(fits, n_repeats)
        ratios = times["gaps"] / times["complete"]
        middle, low, high = np.median(ratios), min(ratios), max(ratios)
        yield f"| {name} | {middle:.2f} ({low:.2f}..{high:.2f}) |"
    yield ""
    names = "complete images", "70 % of them", "images with gaps"
    yield f"| digits, seed | {' | '.join(names)} | last / first | last / second |"
    yield "|---|---|---|---|---|---|"
    for seed in seeds:
        train, test = train_test_split(load_digits().data, random_state=seed)
        random_state = np.random.RandomState(seed)
        incomplete, test_gaps = (
            np.where(gaps_of(X, "mcar30", random_state), np.nan, X)
            for X in (train, test)
        )
        hidden = np.isnan(test_gaps)
        # As many pixels as there are with gaps.
        fewer = train[: round(0.7 * len(train))]
        errors = [
            root_mean_squared_error(test[hidden], filled[hidden])
            for filled in (
                SigmaVAEImputer(SigmaVAE(32, sigma="auto"), random_state=seed)
                .fit(X)
                .transform(test_gaps)
                for X in (train, fewer, incomplete)
            )
        ]
        ratios = errors[2] / errors[0], errors[2] / errors[1]
        shown = " | ".join(f"{number:.3f}" for number in (*errors, *ratios))
        yield f"| {seed} | {shown} |"
    yield ""
    yield environment()


def main(args):
    """Run what is missing, or report what is there."""
    if args.part == "price":
        torch.set_num_threads(1)
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return publish(price(args.names, args.seeds), args.output)
    results = Results(args.results)
    if args.part == "report":
        return publish(report(results.found), args.output)
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(1)
    jobs = {
        "/".join(map(str, names)): partial(run, *names)
        for seed in args.seeds
        for names in product(args.names, args.mechanisms, [seed], args.models)
    }
    with threadpool_limits(1):
        return run_missing(jobs, results, args.again)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", nargs="?", choices=["run", "report", "price"], default="run")
    for option, known in ("models", MODELS), ("names", TABLES):
        add(f"--{option}", nargs="+", choices=known, default=known, metavar="NAME")
    add("--mechanisms", nargs="+", choices=MECHANISMS, default=MECHANISMS)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--results", type=Path, default=Path("imputation.json"))
    add("--again", action="store_true", help="run what is finished, too")
    add("--output", type=Path, help="file for what report prints")
    raise SystemExit(main(parser.parse_args()))
