"""Which encoders hold on noise that they have not seen, and why.

The models of noisy_data.py in other forms: networks that see all directions instead of
the principal coordinates, plain ones without a linear path, decay of the encoder's
weights, convolutions, the linear model, and the vanilla VAE, also in the coordinates of
the sigma-VAE. Errors are per pixel. An encoder's *gain* is the factor by which a small
shift of a clean image comes back in the image that its code is decoded to; a projection
onto the data has gain 1 along it and 0 across.
"""

from functools import partial

import numpy as np
import torch
from _shared import (
    HIDDEN,
    N_JOBS,
    Results,
    fit_wiener,
    mnist,
    parse_args,
    run_missing,
    write_table,
)
from skorch.callbacks import Callback
from torch import nn

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae.networks import MLP

LEVELS = (0.0, 0.5, 1.0, 1.5)
SEEDS = (0, 1, 2)
N_REFINED, N_SHIFTED, EPOCHS = 2000, 500, 15
PLAIN = {"linear_path": False, "init": "random"}
RELU = {**PLAIN, "activation": "relu"}
VANILLA = {"noise": "bernoulli", **PLAIN}
GAIN_EPOCHS = (5, 15, 45)
GAIN_MODELS = (
    "σ = 0.6, k = 32",
    "σ = 0.6, k = 32, all directions",
    "σ = 0.5, k = 8, plain",
    "vanilla VAE, k = 8",
)
QUICK = (
    "σ = 0.6, k = 32",
    "σ = 0.6, k = 32, all directions",
    "σ = 1.0, k = 8, plain",
    "vanilla VAE, k = 32",
    "vanilla VAE, k = 32, principal axes",
    "linear model, σ = 0.6",
)
SHIFT = 0.01


class Projected:
    """Networks whose encoder sees coordinates along the principal axes of the data."""

    def __init__(self, axes):
        self.axes, self.mlp = axes, MLP(HIDDEN)

    def encoder(self, input_shape, n_components):
        """The projection, which is not trained, and a network."""
        projection = nn.Linear(*self.axes.shape[::-1], bias=False)
        projection.weight = nn.Parameter(self.axes.clone(), requires_grad=False)
        network = self.mlp.encoder((len(self.axes),), n_components)
        return nn.Sequential(projection, network)

    def decoder(self, n_components, output_shape):
        """As without the projection."""
        return self.mlp.decoder(n_components, output_shape)


class Decay(Callback):
    """Decoupled decay of the encoder's weights."""

    def __init__(self, rate):
        self.rate = rate

    def on_batch_end(self, net, batch, training, **kwargs):
        """Shrink them after each step."""
        if training:
            shrunk = 1 - self.rate * net.optimizer_.param_groups[0]["lr"]
            with torch.no_grad():
                for weight in net.module_.encoder.parameters():
                    weight.mul_(shrunk)


def principal_axes(X, variance):
    """Principal axes along which the data varies by more than this."""
    eigenvalues, axes = np.linalg.eigh(np.cov(X.T))
    return torch.from_numpy(axes.T[::-1][eigenvalues[::-1] > variance].copy()).float()


def models(X):
    """Name, parameters and seeds of each model."""
    for sigma in (0.3, 0.6, 1.0):
        yield f"σ = {sigma}, k = 32", {"sigma": sigma}, SEEDS
    for sigma in (0.3, 0.6, 1.0):
        params = {"sigma": sigma, "init": "random"}
        yield f"σ = {sigma}, k = 32, all directions", params, SEEDS
    for k in (4, 8, 16, 32):
        for sigma in (0.5, 1.0, 1.5):
            params = {"sigma": sigma, "n_components": k, **RELU}
            yield f"σ = {sigma}, k = {k}, plain", params, SEEDS[:1]
    for decay in (0.1, 1.0):
        params = {"sigma": 1.0, "n_components": 8, "callbacks": [Decay(decay)], **RELU}
        yield f"σ = 1.0, k = 8, plain, decay {decay}", params, SEEDS[:1]
    for k in (8, 32):
        yield f"vanilla VAE, k = {k}", {"n_components": k, **VANILLA}, SEEDS
    # As many axes as the model with sigma = 0.6 has, whose rule this is.
    axes = principal_axes(X, 0.15 * 0.6**2)
    params = {"network": Projected(axes), **VANILLA}
    yield "vanilla VAE, k = 32, principal axes", params, SEEDS
    for sigma in (0.3, 0.6, 1.0):
        params = {"sigma": sigma, "hidden_layer_sizes": ()}
        yield f"linear model, σ = {sigma}", params, SEEDS[:1]
    # An epoch of these takes ten times as long.
    params = {"network": "conv", "image_shape": (28, 28), "max_iter": 5}
    yield (
        "σ = 0.6, k = 32, convolutions, 5 epochs",
        {"sigma": 0.6, **params},
        SEEDS[:1],
    )


def fit(X, params, seed):
    """A model of clean images."""
    defaults = {"n_components": 32, "hidden_layer_sizes": HIDDEN, "max_iter": EPOCHS}
    params = {**defaults, **params, "early_stopping": False, "random_state": seed}
    return SigmaVAE(**params).fit(X)


def restored(vae, Y):
    """Images from the encoder's codes, in one pass."""
    if vae.noise != "bernoulli":
        return vae.inverse_transform(vae.transform(Y))
    # Its estimator takes data in [0, 1] only.
    with torch.no_grad():
        Z = vae.module_.encode(torch.from_numpy(Y)).mean.numpy()
    return vae.inverse_transform(Z)


def gain(vae, X, axes):
    """Root mean square gain of small shifts along random directions within axes."""
    directions = np.random.RandomState(0).standard_normal((len(X), len(axes)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shifts = SHIFT * (directions @ axes.numpy()).astype(np.float32)
    difference = restored(vae, X + shifts) - restored(vae, X - shifts)
    return float(np.sqrt(np.square(difference / (2 * SHIFT)).sum(axis=1).mean()))


def measure(X, X_test, axes, params, seed):
    """Errors of the encoder by level of noise, those of the refined posterior."""
    vae = fit(X, params, seed)
    noise = np.random.RandomState(seed).standard_normal(X_test.shape)
    found = {"error": {}, "clipped": {}, "refined": {}}
    for level in LEVELS:
        Y = (X_test + level * noise).astype(np.float32)
        images = {"error": restored(vae, Y)}
        if vae.noise == "bernoulli":
            images["clipped"] = restored(vae, Y.clip(0, 1))
        elif level:
            images["refined"] = vae.denoise(Y[:N_REFINED], noise_scale=level)
        for what, rows in images.items():
            error = np.square(rows - X_test[: len(rows)]).mean()
            found[what][str(level)] = float(error)
    return {**found, **gains(vae, X_test, axes)}


def gains(vae, X_test, axes):
    """Gain along the directions in which the data varies, and across."""
    X = X_test[:N_SHIFTED]
    return {"along": gain(vae, X, axes[:32]), "across": gain(vae, X, axes[400:])}


def errors_of_wiener(X, X_test):
    """Errors of the best linear filter of each level."""
    wiener = fit_wiener(X)
    noise = np.random.RandomState(0).standard_normal(X_test.shape)
    errors = {
        str(level): np.square(wiener(X_test + level * noise, level) - X_test).mean()
        for level in LEVELS[1:]
    }
    return {level: f"{error:.4f}" for level, error in errors.items()}


def gains_by_epochs(X, X_test, axes, params, epochs):
    """Gains of a model after training of this length."""
    return gains(fit(X, {**params, "max_iter": epochs}, seed=0), X_test, axes)


def mean_and_spread(values):
    """Mean over seeds, and standard deviation if there are several."""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def rows_of(found, names, X_test):
    """Rows of the table: name, encoder's errors, refined errors, gains."""
    yield ["mean of the images", *[f"{X_test.var(axis=0).mean():.4f}"] * 4, *[""] * 5]
    yield [
        "Wiener filter of each level",
        "",
        *found["Wiener filter"].values(),
        *[""] * 5,
    ]
    for name, seeds in names.items():
        fits = [f for seed in seeds if (f := found.get(f"{name}/{seed}"))]
        if not fits:
            continue
        for what in ("error", "clipped"):
            if not fits[0][what]:
                continue
            cells = [mean_and_spread([f[what][str(s)] for f in fits]) for s in LEVELS]
            refined, gained = [""] * 3, [""] * 2
            if fits[0]["refined"]:
                refined = [
                    f"{np.mean([f['refined'][str(s)] for f in fits]):.4f}"
                    for s in LEVELS[1:]
                ]
            if what == "error":
                gained = [
                    f"{np.mean([f[way] for f in fits]):.2f}"
                    for way in ("along", "across")
                ]
            title = name + (", clipped" if what == "clipped" else "")
            yield [title, *cells, *refined, *gained]


def main():
    """Fit what is missing, and write what is there."""
    args = parse_args(__doc__.splitlines()[0])
    X, _, X_test, _ = mnist(args.quick)
    axes = principal_axes(X, -1)
    listed = list(models(X))
    if args.quick:
        listed = [(n, params, SEEDS[:1]) for n, params, _ in listed if n in QUICK]
    jobs = {"Wiener filter": partial(errors_of_wiener, X, X_test)}
    jobs |= {
        f"{name}/{seed}": partial(measure, X, X_test, axes, params, seed)
        for name, params, seeds in listed
        for seed in seeds
    }
    if not args.quick:
        jobs |= {
            f"{name}/gains/{epochs}": partial(
                gains_by_epochs, X, X_test, axes, params, epochs
            )
            for name, params, _ in listed
            if name in GAIN_MODELS
            for epochs in GAIN_EPOCHS
            if epochs != EPOCHS
        }
    results = Results(args.output / f"encoders{'_quick' * args.quick}.json")
    n_failed = run_missing(jobs, results, n_jobs=N_JOBS)
    found = results.found
    header = ["encoder", *(f"noise {level}" for level in LEVELS)]
    header += [f"refined, {level}" for level in LEVELS[1:]]
    header += ["gain along the data", "across"]
    names = {name: seeds for name, _, seeds in listed}
    write_table(args.output / "encoders.md", header, rows_of(found, names, X_test))
    keys = {
        name: [f"{name}/{0 if n == EPOCHS else f'gains/{n}'}" for n in GAIN_EPOCHS]
        for name in GAIN_MODELS
    }
    rows = [
        [name, *(f"{found[k]['along']:.2f}, {found[k]['across']:.2f}" for k in of)]
        for name, of in keys.items()
        if all(k in found for k in of)
    ]
    header = ["gain along, across", *(f"{n} epochs" for n in GAIN_EPOCHS)]
    write_table(args.output / "gains.md", header, rows)
    return n_failed


if __name__ == "__main__":
    raise SystemExit(main())
