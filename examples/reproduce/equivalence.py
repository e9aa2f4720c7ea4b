"""Models at one noise scale are beta-models at another.

A model at scale sigma_2, and one at sigma_1 with beta = (sigma_2 / sigma_1) ** p, from
the same seed, have the same loss up to a factor and a constant. Adam hardly sees the
factor; for plain SGD the learning rate is divided by it, and the two are then the same
up to rounding.
"""

import numpy as np
from _shared import HIDDEN, N_COMPONENTS, mnist, parse_args, write_table

from sklearn_sigmavae import SigmaVAE, equivalent_beta

SIGMA_1, SIGMA_2 = 0.25, 0.5


def fit_pair(X, noise, optimizer, learning_rate, max_iter):
    """The model at the second scale, and its equivalent at the first."""
    beta = equivalent_beta(SIGMA_1, SIGMA_2, noise)
    # SGD's steps are in proportion to the loss.
    factor = beta if optimizer == "sgd" else 1.0
    common = {
        "noise": noise,
        "hidden_layer_sizes": HIDDEN,
        "optimizer": optimizer,
        "max_iter": max_iter,
        "early_stopping": False,
        "random_state": 0,
    }
    return [
        SigmaVAE(N_COMPONENTS, sigma=sigma, beta=b, learning_rate=rate, **common).fit(X)
        for sigma, b, rate in (
            (SIGMA_2, 1.0, learning_rate),
            (SIGMA_1, beta, learning_rate / factor),
        )
    ]


def bound_at(vae, X, sigma, kl):
    """Bound at a scale of the noise, less its constant, at the posterior means."""
    p = vae.noise_.exponent
    error = np.abs(X - vae.inverse_transform(vae.transform(X))) / sigma
    return float((-(error**p).sum(axis=1) / p - kl).mean())


def main():
    """Fit pairs of models and compare them."""
    args = parse_args(__doc__.splitlines()[0])
    X, _, X_test, _ = mnist(args.quick)
    X, X_test = X[:20_000], X_test[:2000].astype(np.float64)
    rows = []
    for noise in ("gaussian", "laplace"):
        for optimizer, learning_rate in (("adam", 2e-3), ("sgd", 1e-4)):
            pair = fit_pair(X, noise, optimizer, learning_rate, 2 if args.quick else 5)
            codes = [vae.transform(X_test) for vae in pair]
            kls = [vae.kl_divergence(X_test).sum(axis=1) for vae in pair]
            bounds = [
                bound_at(vae, X_test, SIGMA_2, kl)
                for vae, kl in zip(pair, kls, strict=True)
            ]
            difference = np.abs(codes[0] - codes[1])
            rows.append(
                [
                    noise,
                    optimizer,
                    f"{pair[1].beta:g}",
                    f"{bounds[0]:.3f}",
                    f"{bounds[1]:.3f}",
                    f"{kls[0].mean():.3f}",
                    f"{kls[1].mean():.3f}",
                    f"{np.sqrt(np.square(difference).mean()):.1e}",
                    f"{difference.max():.1e}",
                ]
            )
    write_table(
        args.output / "equivalence.md",
        [
            "noise",
            "optimizer",
            "beta",
            f"bound at sigma = {SIGMA_2}, beta = 1",
            f"of the model at sigma = {SIGMA_1}",
            "KL, nats",
            "of the other",
            "codes differ by, root mean square",
            "at most",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
