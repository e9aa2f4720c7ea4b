"""Whether smoother encoders generalise better from few rows.

R. Shu et al. (arXiv:1805.08913) predict it for encoders that get noise at their input
in training. Here it has 0, 0.3 or 1 standard deviations of the input, for SigmaVAE
and for networks without a linear path that see all directions; each is fitted to 300
rows of a table. The table has the bound of test rows at the encoder's posteriors, and
at the refined ones, in nats per row: without noise, and what noise changes. The
prediction is about the first; the second tells how good the decoder is.

    python benchmarks/bench_encoders.py --results FILE
"""

from functools import partial

import numpy as np
import torch
from _report import environment, run_and_report
from bench_sigma import NAMES, build, load
from torch import nn

from sklearn_sigmavae.networks import MLP

NOISES, SEEDS, N_ROWS, SIGMA = (0.0, 0.3, 1.0), range(2), 300, 0.3
WAYS = {"SigmaVAE": {}, "plain": {"linear_path": False, "init": "random"}}


class Jitter(nn.Module):
    """Noise in training, of a scale in units of the batch's own spread."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        """The input, with noise if the module is training."""
        if not self.training:
            return x
        return x + self.scale * x.std() * torch.randn_like(x)


class Jittered(MLP):
    """Networks whose encoder has noise at its input."""

    def __init__(self, scale, hidden_layer_sizes=(64, 64)):
        super().__init__(hidden_layer_sizes)
        self.scale = scale

    def encoder(self, input_shape, n_components):
        """Noise, then the network."""
        return nn.Sequential(
            Jitter(self.scale), super().encoder(input_shape, n_components)
        )


def measure(name, way, scale, seed):
    """Bounds of training and test rows, by the encoder and refined."""
    torch.set_num_threads(1)
    train, test = load(name, seed)
    train = train[:N_ROWS]
    vae = build(train, seed, network=Jittered(scale), sigma=SIGMA, **WAYS[way])
    vae.fit(train)
    return {
        "encoder": vae.score_samples(test, refine=False).mean(),
        "refined": vae.score_samples(test).mean(),
        "training": vae.score_samples(train, refine=False).mean(),
        "best_epoch": vae.best_epoch_,
    }


def bounds(found, name):
    """Mean bounds (ways, noises, 2) of a table, by the encoder and refined, or None."""
    keys = [
        [[f"{name}/{way}/{scale}/{seed}" for seed in SEEDS] for scale in NOISES]
        for way in WAYS
    ]
    if not found.keys() >= set(np.ravel(keys)):
        return None
    each = [[found[key]["encoder"], found[key]["refined"]] for key in np.ravel(keys)]
    return np.reshape(each, (*np.shape(keys), 2)).mean(axis=2)


def report(found):
    """Bounds without noise, and what noise changes, by table; medians and counts."""
    columns = [f"{way}, no noise" for way in WAYS]
    columns += [f"{way}, noise {scale}" for way in WAYS for scale in NOISES[1:]]
    yield f"| table | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    changes = []
    for name in NAMES:
        of_table = bounds(found, name)
        if of_table is None:
            continue
        changes.append((of_table[:, 1:] - of_table[:, :1]).reshape(-1, 2))
        cells = [pair(each, "{:.2f}") for each in of_table[:, 0]]
        cells += [pair(each, "{:+.2f}") for each in changes[-1]]
        yield f"| {name} | {' | '.join(cells)} |"
    median, n_better = np.median(changes, axis=0), (np.array(changes) > 0).sum(axis=0)
    rows = {
        "median": [pair(each, "{:+.2f}") for each in median],
        f"better, of {len(changes)}": [pair(each, "{}") for each in n_better],
    }
    for title, cells in rows.items():
        yield f"| {title} |{' |' * len(WAYS)} {' | '.join(cells)} |"
    yield ""
    yield environment()


def pair(values, form):
    """Two numbers: by the encoder, and refined."""
    return ", ".join(form.format(value) for value in values)


def main():
    """Fit what is missing, and print the table of what is there."""
    jobs = {
        f"{name}/{way}/{scale}/{seed}": partial(measure, name, way, scale, seed)
        for seed in SEEDS
        for name in NAMES
        for way in WAYS
        for scale in NOISES
    }
    return run_and_report(__doc__.splitlines()[0], jobs, report)


if __name__ == "__main__":
    raise SystemExit(main())
