"""Searching over sigma: a stack of models, a path, and one fit after another.

Sixteen values of sigma times five folds, each with the same network and the same number
of epochs, but for the path:

- ``BatchedGridSearchCV``, in two processes, and in one;
- ``GridSearchCV`` in two processes over SigmaVAE;
- ``GridSearchCV`` in two processes over a VAE in skorch, as people write it;
- ``sigma_path`` with five folds, a few epochs at each sigma.

The searches take turns, after one of each that is not timed: it starts the processes,
which takes seconds. skorch, by far the slowest, runs once. Times are medians; ratios
are taken within each repeat, and their median stands beside their range. Leave the
machine idle.
"""

import argparse
import multiprocessing
import os
import resource
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import skorch
import torch
from _competitors import PlainLoss, PlainVAE
from _report import alternate, environment, publish
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE, sigma_path
from sklearn_sigmavae.networks import MLP

BATCHED = "BatchedGridSearchCV, 2 processes"
ONE_PROCESS = "BatchedGridSearchCV, 1 process"
GRID = "GridSearchCV over SigmaVAE, 2 processes"
SKORCH = "GridSearchCV over skorch, 2 processes"
PATH = "sigma_path, 2 processes"


@dataclass(frozen=True)
class Workload:
    """Data, a grid and a model."""

    X: np.ndarray
    sigmas: np.ndarray
    hidden: tuple
    n_components: int = 16
    n_epochs: int = 20
    n_path_epochs: int = 2

    def vae(self, **params):
        """The estimator of all searches over SigmaVAE."""
        return SigmaVAE(
            self.n_components,
            hidden_layer_sizes=self.hidden,
            max_iter=self.n_epochs,
            random_state=0,
            **params,
        )


def digits(hidden):
    """Handwritten digits of 8 x 8 pixels, 16 grey levels."""
    return Workload(load_digits().data, np.geomspace(0.5, 5, 16), hidden)


def breast_cancer(hidden):
    """Thirty measurements of 569 samples, standardised."""
    X = StandardScaler().fit_transform(load_breast_cancer().data)
    return Workload(X, np.geomspace(0.1, 1, 16), hidden)


WORKLOADS = {
    "digits-128": partial(digits, (128, 128)),
    "digits-64": partial(digits, (64, 64)),
    "breast-cancer-64": partial(breast_cancer, (64, 64)),
}


# The competitors: each returns the best sigma and its mean held-out score


def search(cls, workload, n_jobs=2, sigmas=None):
    """A search of SigmaVAE."""
    grid = {"sigma": workload.sigmas if sigmas is None else sigmas}
    found = cls(workload.vae(), grid, cv=5, n_jobs=n_jobs, refit=False).fit(workload.X)
    return found.best_params_["sigma"], found.best_score_, found


def path(workload):
    """A path of SigmaVAE."""
    found = sigma_path(
        workload.X,
        workload.sigmas,
        # As one sets it for a few epochs: no rows to choose the best of them by.
        estimator=workload.vae(learning_rate=1e-2, early_stopping=False),
        cv=5,
        max_iter=workload.n_path_epochs,
        n_jobs=2,
    )
    return found.best_sigma, found.test_scores.mean(axis=1).max(), found


class SkorchVAE(skorch.NeuralNet):
    """A VAE in skorch, trained and scored as people do it: with one draw a row."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        """Loss against the input."""
        return super().get_loss(y_pred, y_pred[3], *args, **kwargs)

    def score(self, X, y=None):
        """Mean bound of rows, in nats, normalised."""
        x = torch.from_numpy(X)
        with torch.no_grad():
            loss = self.criterion_(self.module_.eval()(x), x)
        log_normalizer = np.log(self.criterion_.sigma) + 0.5 * np.log(2 * np.pi)
        return -float(loss) - X.shape[1] * log_normalizer


class SelfTarget(PlainVAE):
    """A VAE whose output carries its input, the target."""

    def __init__(self, n_features, workload):
        recipe = MLP(workload.hidden)
        k = workload.n_components
        super().__init__(
            recipe.encoder((n_features,), k), recipe.decoder(k, (n_features,))
        )

    def forward(self, x):
        """Outputs, and the input."""
        return *super().forward(x), x


class LossOfOutputs(PlainLoss):
    """The loss of a VAE."""

    def forward(self, outputs, x):
        """Mean loss of rows."""
        return super().forward(outputs[:3], x)


def skorch_search(workload):
    """A search of skorch over the same scales, on data scaled beforehand."""
    X = workload.X - workload.X.mean(axis=0)
    scale = np.sqrt(np.square(X).mean())
    net = SkorchVAE(
        SelfTarget,
        module__n_features=X.shape[1],
        module__workload=workload,
        criterion=LossOfOutputs,
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=2e-3,
        batch_size=128,
        max_epochs=workload.n_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    grid = {"criterion__sigma": workload.sigmas / scale}
    found = GridSearchCV(net, grid, cv=5, n_jobs=2, refit=False)
    found.fit((X / scale).astype(np.float32))
    # Scores of data divided by one number, in the units of the data.
    shift = -X.shape[1] * np.log(scale)
    sigma = found.best_params_["criterion__sigma"] * scale
    return sigma, found.best_score_ + shift, found


COMPETITORS = {
    GRID: partial(search, GridSearchCV),  # first, since the ratios are to it
    BATCHED: partial(search, BatchedGridSearchCV),
    ONE_PROCESS: partial(search, BatchedGridSearchCV, n_jobs=None),
    SKORCH: skorch_search,
    PATH: path,
}


# Report


def compare(name, workload, repeats):
    """Rows of the table of one workload."""
    results = {}

    def run(competitor):
        results[competitor] = COMPETITORS[competitor](workload)

    quick = Workload(workload.X, workload.sigmas[:2], workload.hidden, n_epochs=1)
    for competitor in COMPETITORS.values():
        competitor(quick)
    runs = {key: partial(run, key) for key in COMPETITORS}
    # By far the slowest, and so timed once.
    slowest = {SKORCH: runs.pop(SKORCH)}
    times = alternate(runs, repeats) | alternate(slowest, 1)
    for competitor, seconds in times.items():
        sigma, score, _ = results[competitor]
        ratios = times[GRID] / seconds
        yield (
            f"| {name} | {competitor} | {np.median(seconds):.1f} | "
            f"{np.median(ratios):.1f} ({ratios.min():.1f}..{ratios.max():.1f}) | "
            f"{sigma:.3g} | {score:.2f} |"
        )
    stacked, alone = (
        results[key][2].cv_results_["mean_test_score"] for key in (BATCHED, GRID)
    )
    yield (
        f"\nStacked against one by one, {name}: mean test scores differ by at most "
        f"{np.abs(stacked - alone).max():.1e} nats "
        f"({1e-3 * workload.X.shape[1]:.1e} allowed); the best is "
        f"{'the same' if results[BATCHED][0] == results[GRID][0] else 'another'}.\n"
    )


def scaling(workload, repeats):
    """Rows of the table of numbers of candidates."""
    for n in (1, 4, 16, 64):
        sigmas = np.geomspace(workload.sigmas[0], workload.sigmas[-1], n)
        times = alternate(
            {
                cls: partial(search, cls, workload, sigmas=sigmas)
                for cls in (GridSearchCV, BatchedGridSearchCV)
            },
            repeats if n < 64 else 1,
        )
        alone, stacked = times.values()
        yield (
            f"| {n} | {5 * n} | {np.median(alone):.1f} | {np.median(stacked):.1f} | "
            f"{np.median(alone / stacked):.1f} |"
        )


def _peak(queue, workload, cls):
    quick = Workload(workload.X, workload.sigmas[:1], workload.hidden, n_epochs=1)
    search(cls, quick, n_jobs=None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    search(cls, workload, n_jobs=None)
    queue.put((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def memory(workload):
    """Peak memory of a search in one process, in MB: before it, and in all."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(queue, workload, BatchedGridSearchCV))
    process.start()
    peaks = queue.get()
    process.join()
    return [peak / 1024 for peak in peaks]


def report(args):
    """Lines of the report, as they become known."""
    yield environment()
    yield (
        f"{torch.get_num_threads()} threads in a search in one process, 1 in each of "
        "two; "
        f"{'CUDA' if torch.cuda.is_available() else 'CPU'}. Medians of {args.repeats} "
        f"repeats; times as fast as {GRID} (range).\n"
    )
    if "compare" in args.parts:
        yield "| workload | search | seconds | times as fast | best sigma | its score |"
        yield "|---|---|---|---|---|---|"
        for name in args.workloads:
            yield from compare(name, WORKLOADS[name](), args.repeats)
    if "scaling" in args.parts:
        yield "\n| candidates | fits | GridSearchCV | BatchedGridSearchCV | ratio |"
        yield "|---|---|---|---|---|"
        yield from scaling(WORKLOADS["digits-64"](), args.repeats)
    if "memory" in args.parts:
        before, peak = memory(WORKLOADS["digits-128"]())
        yield (
            f"\nPeak memory of 80 models on digits (hidden 128, 128), one process: "
            f"{peak:.0f} MB, of which {before:.0f} MB before the search."
        )


def parse_args():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    parts = ["compare", "scaling", "memory"]
    add("--parts", nargs="+", choices=parts, default=parts, help="all by default")
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1, help="of what runs in one process")
    add("--output", type=Path, help="file to write the tables to as well")
    return parser.parse_args()


def main():
    """Run the benchmarks that the command line asks for."""
    args = parse_args()
    # Small sigmas see all of the data, large ones little: no news here.
    warnings.filterwarnings("ignore", "No component is in use")
    # Processes that joblib starts compute on one thread each.
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", "2")
    torch.set_num_threads(args.threads)
    publish(report(args), args.output)


if __name__ == "__main__":
    main()
