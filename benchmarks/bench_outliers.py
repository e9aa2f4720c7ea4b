"""How many rows SigmaVAEOutlierDetector takes for outliers, training and held-out ones.

The tables of bench_sigma.py, of which no row is known to be an outlier, so that
the share of held-out rows that are taken for one is what a threshold costs. For
``contamination="auto"`` the same of scikit-learn's detectors.

    python benchmarks/bench_outliers.py --results FILE
"""

from functools import partial

import numpy as np
import torch
from _report import environment, run_and_report
from bench_sigma import NAMES, load
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from sklearn_sigmavae import SigmaVAEOutlierDetector

CONTAMINATIONS, SEEDS = (0.01, 0.05, 0.1), range(3)


def measure(name, seed):
    """Shares of outliers by detector and contamination, in training and test rows."""
    torch.set_num_threads(1)
    parts = load(name, seed)
    detector = SigmaVAEOutlierDetector(random_state=seed).fit(parts[0])
    scores = [detector.score_samples(part) for part in parts]
    # The detector's own rule, without a fit for each.
    offsets = {c: np.percentile(scores[0], 100 * c) for c in CONTAMINATIONS}
    offsets["auto"] = detector.offset_
    found = {
        f"SigmaVAE, {contamination}": [float((of < offset).mean()) for of in scores]
        for contamination, offset in offsets.items()
    }
    for other in (
        IsolationForest(random_state=seed),
        LocalOutlierFactor(novelty=True),
    ):
        other.fit(parts[0])
        found[f"{type(other).__name__}, auto"] = [
            float((other.predict(part) == -1).mean()) for part in parts
        ]
    return found


def report(found):
    """Table of the means over splits, and of the medians over tables."""
    tables = {
        name: [found[key] for s in SEEDS if (key := f"{name}/{s}") in found]
        for name in NAMES
    }
    tables = {name: of for name, of in tables.items() if of}
    ways = list(next(iter(tables.values()))[0])
    yield f"| table | {' | '.join(ways)} |"
    yield "|---" * (len(ways) + 1) + "|"
    means = {
        name: np.mean([[of[way] for way in ways] for of in splits], axis=0)
        for name, splits in tables.items()
    }
    means["median"] = np.median(list(means.values()), axis=0)
    for name, of_ways in means.items():
        cells = [f"{train:.1%}, {test:.1%}" for train, test in of_ways]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield environment()


def main():
    """Fit what is missing, and print the table of what is there."""
    jobs = {
        f"{name}/{seed}": partial(measure, name, seed)
        for seed in SEEDS
        for name in NAMES
    }
    return run_and_report(__doc__.splitlines()[0], jobs, report)


if __name__ == "__main__":
    raise SystemExit(main())
