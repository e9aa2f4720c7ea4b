"""How the KL divergence falls with sigma, and how far down it follows a power law.

Each model is fitted afresh at each scale. The range of a law is decided before it is
fitted: the KL is at least five nats, and at most 80 % of the components are in use.
Beside the models stands the linear one in closed form, half the sum of
log(eigenvalue / sigma ** 2) over eigenvalues above sigma ** 2, whose local exponent is
the number of those divided by the KL.

A fit takes half a minute to four. Each is kept in power_law.json of the output folder,
so that a run that was broken off goes on.
"""

import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from _shared import (
    N_JOBS,
    Results,
    mnist,
    parse_args,
    run_missing,
    write_table,
)
from scipy import stats
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import PatchExtractor

from sklearn_sigmavae import PowerLaw, SigmaVAE

SIGMAS = np.geomspace(1.0, 0.05, 10)
MIN_KL, MAX_ACTIVE = 5.0, 0.8
EPOCHS, N_TEST, N_QUICK = 12, 2000, 10_000
# Scales at which longer fits show how far models are from convergence.
FEW, LONG = SIGMAS[1:8:3], 2 * EPOCHS
MAIN, PATCHES = "k = 512", "k = 128, photographs"
IMAGES = "k = 128, convolutions, 10,000 images"
CURVES = {
    "k = 32": {"n_components": 32},
    "k = 128": {"n_components": 128},
    MAIN: {"n_components": 512},
    "k = 128, hidden layers of 64": {
        "n_components": 128,
        "hidden_layer_sizes": (64, 64),
    },
    "k = 128, mixture": {"n_components": 128, "prior": "mixture"},
    "k = 128, Laplace noise": {"n_components": 128, "noise": "laplace"},
    PATCHES: {"n_components": 128},
    IMAGES: {"n_components": 128, "network": "conv", "image_shape": (28, 28)},
}
DRAWN = ("k = 32", "k = 128", MAIN)
SEEDS = (0, 1, 2, 3, 4)


def patches(n_rows):
    """Training and test patches of two photographs, 12 by 12, grey and centered."""
    images = [image.mean(axis=2) for image in load_sample_images().images]
    extractor = PatchExtractor(
        patch_size=(12, 12), max_patches=n_rows // 2 + N_TEST, random_state=0
    )
    rows = extractor.transform(np.array(images)).reshape(-1, 144)
    rows = np.random.RandomState(0).permutation(rows - rows.mean(axis=1, keepdims=True))
    # With the spread of MNIST's pixels, so that the scales compare.
    rows = (0.3 / rows.std() * rows).astype(np.float32)
    return rows[:n_rows], rows[-N_TEST:]


def fit(X, X_test, params, sigma, seed, epochs):
    """KL of one model on test and on training rows, and the components in use."""
    start = time.perf_counter()
    vae = SigmaVAE(
        sigma=sigma,
        max_iter=epochs,
        early_stopping=False,
        random_state=seed,
        **params,
    ).fit(X)
    seconds = time.perf_counter() - start
    kl, kl_train = (
        float(vae.kl_divergence(rows).sum() / len(rows))
        for rows in (X_test[:N_TEST], X[:N_TEST])
    )
    n_active = vae.n_active_components_
    return {"kl": kl, "kl_train": kl_train, "n_active": n_active, "seconds": seconds}


def key(curve, sigma, seed=0, epochs=EPOCHS):
    """Name of a fit."""
    return f"{curve}/{sigma:.4f}/{seed}/{epochs}"


def jobs_of(quick):
    """What is to be fitted, the main curve first: names, and functions to call."""
    X, _, X_test, _ = mnist(False)
    X = X[:N_QUICK] if quick else X
    data = dict.fromkeys(CURVES, (X, X_test))
    data[PATCHES] = patches(len(X) // 2)
    data[IMAGES] = X[:N_QUICK], X_test
    wanted = [(MAIN, sigma, 0, EPOCHS) for sigma in SIGMAS]
    if quick:
        wanted = [("k = 32", s, 0, EPOCHS) for s in SIGMAS[1:8:2]]
        wanted += [("k = 128", s, 0, EPOCHS) for s in SIGMAS[:8]]
    else:
        # The smallest scale, where components have run out, is not repeated.
        wanted += [(MAIN, s, seed, EPOCHS) for seed in SEEDS[1:] for s in SIGMAS[:-1]]
        longer = [(MAIN, 2, SIGMAS[:-1]), ("k = 128", 2, FEW), ("k = 128", 4, FEW)]
        wanted += [(c, s, 0, n * EPOCHS) for c, n, of in longer for s in of]
        wanted += [(c, s, 0, EPOCHS) for c in DRAWN for s in SIGMAS]
        # Smaller scales take more than 80 % of 128 components.
        others = [c for c in CURVES if c not in DRAWN]
        wanted += [(c, s, 0, EPOCHS) for c in others for s in SIGMAS[:6]]
    return {
        key(*each): partial(fit, *data[each[0]], CURVES[each[0]], *each[1:])
        for each in wanted
    }


def curve_of(found, curve, seed=0, epochs=EPOCHS):
    """Scales, KL of test and training rows and components in use, as fitted."""
    fits = [(s, found.get(key(curve, s, seed, epochs))) for s in SIGMAS]
    columns = [(s, f["kl"], f["kl_train"], f["n_active"]) for s, f in fits if f]
    return np.array(columns).reshape(-1, 4).T


def law_of(curve, sigmas, kl, _, n_active):
    """The law within the range that was decided before, or None."""
    k = CURVES[curve]["n_components"]
    used = (kl >= MIN_KL) & (n_active <= MAX_ACTIVE * k)
    return PowerLaw.of_curve(sigmas[used], kl[used]) if used.sum() > 2 else None


def linear_kl(eigenvalues, sigmas):
    """KL of the linear model at each scale, and its local exponent."""
    ratio = np.maximum(eigenvalues / sigmas[:, np.newaxis] ** 2, 1.0)
    kl = 0.5 * np.log(ratio).sum(axis=1)
    return kl, (ratio > 1).sum(axis=1) / np.maximum(kl, 1e-9)


def write_curve(found, curve, eigenvalues, path):
    """Table of one curve: means over the seeds, with their standard deviation."""
    of_seeds = [curve_of(found, curve, seed) for seed in SEEDS]
    sigmas = of_seeds[0][0]
    of_linear, exponent = linear_kl(
        eigenvalues[: CURVES[curve]["n_components"]], sigmas
    )
    rows = []
    for i, sigma in enumerate(sigmas):
        _, kl, kl_train, n_active = np.array(
            [each[:, i] for each in of_seeds if each.shape[1] > i]
        ).T
        local = [local_exponent(of_seeds[0])[i]]
        # Of the other seeds only scales with neighbours on both sides compare.
        local += [local_exponent(e)[i] for e in of_seeds[1:] if e.shape[1] > i + 1]
        rows.append(
            [
                f"{sigma:.3f}",
                mean_and_spread(kl, 2),
                f"{kl_train.mean():.2f}",
                f"{n_active.mean():.0f}",
                mean_and_spread(np.array(local), 2),
                f"{of_linear[i]:.2f}",
                f"{exponent[i]:.2f}",
            ]
        )
    header = ["sigma", "KL, nats", "of training images", "components in use"]
    header += ["local exponent", "linear model's KL", "its exponent"]
    write_table(path, header, rows)


def local_exponent(fits):
    """Minus the slope of log KL against log sigma, between neighbours of each scale."""
    sigmas, kl, *_ = fits
    return -np.gradient(np.log(kl), np.log(sigmas))


def mean_and_spread(values, digits):
    """Mean, and standard deviation if there is one."""
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def write_laws(found, path):
    """Table of the laws of all curves, and the mean exponent where there are seeds."""
    rows = []
    for curve in CURVES:
        of_seeds = [curve_of(found, curve, seed) for seed in SEEDS]
        laws = [law_of(curve, *fits) for fits in of_seeds if fits.shape[1]]
        laws = [law for law in laws if law]
        rows += [row_of_law(curve, seed, law) for seed, law in enumerate(laws)]
        if len(laws) > 1:
            exponents = np.array([law.exponent for law in laws])
            error = exponents.std(ddof=1) / np.sqrt(len(laws))
            mean = f"{exponents.mean():.3f} ± {error:.3f} over seeds"
            rows.append([curve, "all", mean, *[""] * 5])
        if curve == MAIN and (law := law_of(curve, *curve_of(found, curve, 0, LONG))):
            rows.append(row_of_law(f"{curve}, {LONG} epochs", 0, law))
    header = ["model", "seed", "exponent", "95 % interval", "R²", "curvature"]
    write_table(path, [*header, "range of sigma", "scales"], rows)


def row_of_law(curve, seed, law):
    """A row of the table."""
    n = len(law.sigmas)
    half = stats.t.ppf(0.975, n - 2) * law.exponent_error
    return [
        curve,
        seed,
        f"{law.exponent:.3f} ± {law.exponent_error:.3f}",
        f"{law.exponent - half:.2f} to {law.exponent + half:.2f}",
        f"{law.r2:.4f}",
        f"{law.curvature:.3f} ± {law.curvature_error:.3f}" if n > 3 else "",
        f"{law.sigmas.min():.3f} to {law.sigmas.max():.3f}",
        n,
    ]


def write_epochs(found, path):
    """Table of how KL, and the exponent of three scales, change with more epochs."""
    rows = []
    for curve in (MAIN, "k = 128"):
        once = curve_of(found, curve)
        for times in (2, 4):
            longer = curve_of(found, curve, epochs=times * EPOCHS)
            before, kl = (fits[1][np.isin(fits[0], FEW)] for fits in (once, longer))
            if len(kl) < len(FEW):
                continue
            exponents = [PowerLaw.of_curve(FEW, y).exponent for y in (before, kl)]
            rows.append(
                [
                    curve,
                    times * EPOCHS,
                    *(
                        f"{now / then - 1:+.1%}"
                        for now, then in zip(kl, before, strict=True)
                    ),
                    *(f"{exponent:.3f}" for exponent in exponents),
                ]
            )
    header = ["model", "epochs", *(f"KL at {s:.3f}" for s in FEW)]
    header += [f"their exponent, {EPOCHS} epochs", "with these"]
    write_table(path, header, rows)


def draw(found, eigenvalues, path):
    """KL against sigma and its slope; hollow circles where components run out."""
    figure, (ax, slopes) = plt.subplots(1, 2, figsize=(10, 4.3), layout="constrained")
    fine = np.geomspace(SIGMAS[0], SIGMAS[-1], 200)
    kl, exponent = linear_kl(eigenvalues, fine)
    ax.plot(fine, kl, "k--", lw=1, label="linear model, closed form")
    slopes.plot(fine, exponent, "k--", lw=1)
    law = None
    shown = [(curve, EPOCHS) for curve in DRAWN] + [(MAIN, LONG)]
    for i, (curve, epochs) in enumerate(shown):
        fits = curve_of(found, curve, epochs=epochs)
        if fits.shape[1] < 2:
            continue
        sigmas, kl, _, n_active = fits
        out = n_active > MAX_ACTIVE * CURVES[curve]["n_components"]
        local = local_exponent(fits)
        for axes, y in ((ax, kl), (slopes, local)):
            label = curve if epochs == EPOCHS else f"{curve}, {epochs} epochs"
            axes.plot(sigmas, y, f"C{i}-", lw=1, label=label)
            axes.plot(sigmas[~out], y[~out], f"C{i}o")
            axes.plot(sigmas[out], y[out], f"C{i}o", mfc="white")
        law = law_of(curve, *fits) or law
    if law is not None:
        label = rf"$\sigma^{{-{law.exponent:.2f}}}$, R² = {law.r2:.4f}"
        fitted = law.prefactor * law.sigmas**-law.exponent
        ax.plot(law.sigmas, fitted, color="0.8", lw=8, zorder=0, label=label)
        slopes.axhspan(
            law.exponent - law.exponent_error,
            law.exponent + law.exponent_error,
            color="0.8",
            zorder=0,
        )
    ax.set(xscale="log", yscale="log", xlabel="σ", ylabel="KL divergence, nats")
    ax.set_ylim(bottom=2)
    slopes.set(xscale="log", xlabel="σ", ylabel="local exponent", ylim=(0, 3))
    ax.legend()
    figure.savefig(path, dpi=110)


def main():
    """Fit what is missing, and write what is there."""
    args = parse_args(__doc__.splitlines()[0])
    jobs = jobs_of(args.quick)
    results = Results(args.output / f"power_law{'_quick' * args.quick}.json")
    n_failed = run_missing(jobs, results, n_jobs=N_JOBS)
    found = results.found
    X, *_ = mnist(False)
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))[::-1]
    main_curve = "k = 128" if args.quick else MAIN
    write_curve(found, main_curve, eigenvalues, args.output / "power_law.md")
    write_laws(found, args.output / "power_law_fits.md")
    if not args.quick:
        write_epochs(found, args.output / "power_law_epochs.md")
    draw(found, eigenvalues, args.output / "power_law.png")
    return n_failed


if __name__ == "__main__":
    raise SystemExit(main())
