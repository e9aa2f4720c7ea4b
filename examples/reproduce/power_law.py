"""How the KL divergence falls with sigma, and what the linear model predicts.

Three paths of models, from three seeds; beside them the closed form of the linear
model, half the sum of log(eigenvalue / sigma ** 2) over eigenvalues above sigma ** 2,
whose local exponent is the number of those divided by the KL.
"""

import matplotlib.pyplot as plt
import numpy as np
from _shared import HIDDEN, N_COMPONENTS, mnist, parse_args, write_numbers, write_table
from scipy import stats

from sklearn_sigmavae import SigmaVAE, sigma_path

SEEDS = (0, 1, 2)


def main():
    """Follow the paths, fit the law, draw."""
    args = parse_args(__doc__.splitlines()[0])
    X, _, X_test, _ = mnist(args.quick)
    sigmas = np.geomspace(1.6, 0.1, 10)
    paths = [
        sigma_path(
            X,
            sigmas,
            estimator=SigmaVAE(
                N_COMPONENTS,
                hidden_layer_sizes=HIDDEN,
                learning_rate=1e-3,
                early_stopping=False,
                random_state=seed,
            ),
            X_val=X_test[:2000],
            max_iter=2,
        )
        for seed in SEEDS
    ]
    laws = [path.power_law() for path in paths]
    kl = np.array([path.kl for path in paths])
    linear_kl = paths[0].linear_kl
    used = (paths[0].eigenvalues > paths[0].noise_variance[:, None]).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        linear_exponent = used / linear_kl
    local = -np.gradient(np.log(kl), np.log(sigmas), axis=1)
    write_table(
        args.output / "power_law.md",
        ["sigma", "KL, nats", "local exponent", "linear model's KL", "its exponent"],
        [
            [
                f"{sigma:.3f}",
                f"{kl[:, i].mean():.2f} ± {kl[:, i].std(ddof=1):.2f}",
                f"{local[:, i].mean():.2f}",
                f"{linear_kl[i]:.2f}",
                f"{linear_exponent[i]:.2f}",
            ]
            for i, sigma in enumerate(sigmas)
        ],
    )
    rows = []
    for seed, law in zip(SEEDS, laws, strict=True):
        half = stats.t.ppf(0.975, len(law.sigmas) - 2) * law.exponent_error
        rows.append(
            [
                seed,
                f"{law.exponent:.3f}",
                f"{law.exponent - half:.3f} to {law.exponent + half:.3f}",
                f"{law.r2:.4f}",
                f"{law.sigmas.min():.2g} to {law.sigmas.max():.2g}",
            ]
        )
    header = ["seed", "exponent", "95 % interval", "R²", "sigma"]
    write_table(args.output / "power_law_fits.md", header, rows)
    write_numbers(
        args.output / "power_law.json",
        {"sigma": sigmas.tolist(), "kl": kl.tolist(), "linear_kl": linear_kl.tolist()},
    )
    draw(args.output / "power_law.png", sigmas, kl, linear_kl, laws)


def draw(path, sigmas, kl, linear_kl, laws):
    """Both on logarithmic axes."""
    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    ax.errorbar(sigmas, kl.mean(0), kl.std(0, ddof=1), fmt="o", label="SigmaVAE")
    exponent = np.mean([law.exponent for law in laws])
    prefactor = np.exp(np.mean([np.log(law.prefactor) for law in laws]))
    ax.plot(
        sigmas,
        prefactor * sigmas**-exponent,
        "C0--",
        label=rf"power law, $\nu$ = {exponent:.2f}",
    )
    ax.plot(sigmas, linear_kl, "C1", label="linear model, closed form")
    ax.set(xscale="log", yscale="log", xlabel="sigma", ylabel="KL divergence (nats)")
    ax.set_ylim(bottom=0.5)
    ax.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
