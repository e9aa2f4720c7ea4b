"""Inference on noisy data that no model has seen in training.

Models trained on clean images read noisy ones, by the encoder and by the refined
posterior, beside the optimal linear filter, PCA, and denoising networks each trained
for one noise level. Errors are per pixel, with the standard error over images; the
accuracy is that of a classifier trained on codes of clean images.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _shared import (
    HIDDEN,
    N_COMPONENTS,
    N_JOBS,
    fit_wiener,
    mnist,
    parse_args,
    write_table,
)
from joblib import Memory, Parallel, delayed
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_sigmavae import SigmaVAE

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
# The one of them that is drawn, and that codes what is no code.
MAIN = "σ = 0.3"
MODELS = {f"σ = {sigma}": {"sigma": sigma} for sigma in (0.15, 0.3, 0.6, 1.0)}
MODELS[f"{MAIN}, mixture prior"] = {"sigma": 0.3, "prior": "mixture"}
QUICK = (MAIN, "σ = 0.6")
VANILLA = {"noise": "bernoulli", "linear_path": False, "init": "random"}
# What is done for the codes alone.
CODES_ONLY = ("coded again", "noise of σ")
N_STEPS, N_SHIFTED = 60, 2000


def fit_vae(X, max_iter, params):
    """A model of clean images."""
    return SigmaVAE(
        N_COMPONENTS,
        hidden_layer_sizes=HIDDEN,
        max_iter=max_iter,
        early_stopping=False,
        random_state=0,
        **params,
    ).fit(X)


def fit_denoiser(X, max_iter, level):
    """A network of the same widths, trained to undo noise of one level."""
    torch.manual_seed(0)
    d = X.shape[1]
    network = nn.Sequential(
        nn.Linear(d, HIDDEN[0]),
        nn.SiLU(),
        nn.Linear(*HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN[1], d),
    )
    x = torch.tensor(X)
    batch_size = 128
    n_steps = max_iter * -(-len(x) // batch_size)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=n_steps)
    for _ in range(max_iter):
        for rows in torch.randperm(len(x)).split(batch_size):
            clean = x[rows]
            restored = network(clean + level * torch.randn_like(clean))
            loss = (restored - clean).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


def fit_all(X, max_iter, models, levels, cache):
    """The models, the vanilla one and a denoiser of each level, by name."""
    fit, train = cache(fit_vae), cache(fit_denoiser)
    models = {**models, "vanilla VAE": VANILLA}
    jobs = {name: delayed(fit)(X, max_iter, params) for name, params in models.items()}
    jobs |= {level: delayed(train)(X, max_iter, level) for level in levels if level}
    return dict(zip(jobs, Parallel(N_JOBS)(jobs.values()), strict=True))


class Vanilla:
    """The vanilla VAE, on any input: its estimator takes data in [0, 1] only."""

    def __init__(self, vae):
        self.vae = vae

    def transform(self, Y):
        """Codes by the encoder."""
        with torch.no_grad():
            return self.vae.module_.encode(torch.tensor(Y)).mean.numpy()

    def inverse_transform(self, Z):
        """Images."""
        return self.vae.inverse_transform(Z)


def classifier(Z, y):
    """A classifier of codes."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return model.fit(Z, y)


def gaussian_kl(mean, std, other_mean, other_std):
    """KL divergence between normal posteriors, in nats per row."""
    ratio = (std / other_std) ** 2
    shift = ((mean - other_mean) / other_std) ** 2
    return 0.5 * (ratio + shift - 1 - np.log(ratio)).sum(axis=1)


class Experiment:
    """What the models make of each level of noise."""

    def __init__(self, X, y, fitted, names):
        self.fitted, self.names, self.wiener = fitted, names, fit_wiener(X)
        self.coders = {name: fitted[name] for name in names}
        self.coders["vanilla VAE"] = Vanilla(fitted["vanilla VAE"])
        self.coders["PCA"] = PCA(N_COMPONENTS, random_state=0).fit(X)
        self.classifiers = {
            name: classifier(coder.transform(X), y)
            for name, coder in self.coders.items()
        }

    def codes(self, Y, level):
        """Name of each way, that of its model, and its codes."""
        for name in self.names:
            yield f"{name}, encoder", name, self.coders[name].transform(Y)
        if level:
            for name in self.names:
                vae = self.coders[name]
                Z, _ = vae.posterior(Y, noise_scale=level, max_iter=N_STEPS)
                yield f"{name}, refined", name, Z
                # Codes of what was restored, and those that the model gives if it
                # takes the noise for its own.
                Z = vae.transform(vae.inverse_transform(Z))
                yield f"{name}, coded again", name, Z
                Z, _ = vae.posterior(Y, refine=True, max_iter=N_STEPS)
                yield f"{name}, noise of σ", name, Z
        for name, rows in (("", Y), (", clipped", Y.clip(0, 1))):
            coder = self.coders["vanilla VAE"]
            yield f"vanilla VAE{name}", "vanilla VAE", coder.transform(rows)
        yield "PCA", "PCA", self.coders["PCA"].transform(Y)

    def images(self, Y, level):
        """Name and images of what gives images and no codes."""
        yield "Wiener filter", self.wiener(Y, level)
        with torch.no_grad():
            yield "denoiser of this level", self.fitted[level](torch.tensor(Y))

    def measure(self, X, Y, y, level):
        """Errors, accuracies and a few images of each way; shifts of posteriors."""
        ways = [
            (name, model, Z, self.coders[model].inverse_transform(Z))
            for name, model, Z in self.codes(Y, level)
        ]
        if level:
            for name, images in self.images(Y, level):
                images = np.asarray(images)
                ways.append((name, MAIN, self.coders[MAIN].transform(images), images))
        found = {}
        for name, model, Z, images in ways:
            each = np.square(images - X).mean(axis=1)
            error = float(each.mean()), float(each.std() / np.sqrt(len(each)))
            accuracy = self.classifiers[model].score(Z, y)
            found[name] = {"error": error, "accuracy": accuracy, "images": images[:8]}
            if name.endswith(CODES_ONLY):
                del found[name]["error"]
        rows = slice(N_SHIFTED)
        for name in self.names if level else ():
            shifts = shift_of_posteriors(self.coders[name], X[rows], Y[rows], level)
            for way, shift in zip(("encoder", "refined"), shifts, strict=True):
                found[f"{name}, {way}"]["shift"] = shift
        return found


def shift_of_posteriors(vae, X, Y, level):
    """How far the posteriors of noisy rows are from those of the clean ones."""
    clean = vae.posterior(X)
    amortised = gaussian_kl(*vae.posterior(Y), *clean)
    noisy = vae.posterior(Y, noise_scale=level, max_iter=N_STEPS)
    refined = gaussian_kl(*noisy, *clean)
    return amortised.mean(), refined.mean()


def write_results(path, found, levels, what, show):
    """Table of one thing that was measured, by way and level."""
    names = dict.fromkeys(name for level in levels for name in found[level])
    rows = {
        name: [found[level].get(name, {}).get(what) for level in levels]
        for name in names
    }
    write_table(
        path,
        ["", *(f"noise {level}" for level in levels)],
        [
            [name, *("" if v is None else show(v) for v in values)]
            for name, values in rows.items()
            if any(v is not None for v in values)
        ],
    )


def main():
    """Fit all models, restore at each level, write tables and pictures."""
    args = parse_args(__doc__.splitlines()[0])
    X, y, X_test, y_test = mnist(args.quick)
    models, levels, max_iter = MODELS, LEVELS, 15
    if args.quick:
        models = {name: MODELS[name] for name in QUICK}
        levels, max_iter = (0.0, 0.5, 1.0, 1.5), 10
    # So that a run that was broken off goes on.
    cache = Memory(args.output / "fits", verbose=0).cache
    fitted = fit_all(X, max_iter, models, levels, cache)
    experiment = Experiment(X, y, fitted, list(models))
    noise = np.random.RandomState(0).standard_normal(X_test.shape).astype(np.float32)
    measured = Parallel(N_JOBS)(
        delayed(experiment.measure)(X_test, X_test + level * noise, y_test, level)
        for level in levels
    )
    found = dict(zip(levels, measured, strict=True))

    def write(name, what, show, levels=levels):
        write_results(args.output / name, found, levels, what, show)

    write("errors.md", "error", lambda error: "{:.4f} ± {:.4f}".format(*error))
    write("accuracies.md", "accuracy", "{:.3f}".format)
    write("posteriors.md", "shift", "{:.3g}".format, levels[1:])
    errors = {
        name: {
            level: found[level][name]["error"]
            for level in levels
            if name in found[level]
        }
        for name in found[levels[-1]]
        if not name.endswith(CODES_ONLY)
    }
    shown = (0.5, 1.0, 1.5)
    pictures = {
        name: {level: found[level][name]["images"] for level in shown}
        for name in found[1.0]
    }
    pictures["noisy"] = {level: (X_test + level * noise)[:8] for level in shown}
    draw_pictures(args.output / "noisy_data.png", X_test[:8], pictures)
    draw_errors(args.output / "errors.png", errors)


def draw_pictures(path, clean, pictures):
    """Clean, noisy and restored images, for three levels side by side."""
    levels = (0.5, 1.0, 1.5)
    names = (
        "noisy",
        f"{MAIN}, refined",
        "denoiser of this level",
        "Wiener filter",
        f"{MAIN}, encoder",
        "vanilla VAE",
    )
    figure, axes = plt.subplots(
        len(names) + 1, 3, figsize=(12, 6.2), layout="constrained", squeeze=False
    )
    for j, level in enumerate(levels):
        rows = [clean, *(pictures[name][level] for name in names)]
        labels = ["clean", *names]
        for ax, images, label in zip(axes[:, j], rows, labels, strict=True):
            strip = images.reshape(-1, 28, 28).transpose(1, 0, 2).reshape(28, -1)
            ax.imshow(strip, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            if j == 0:
                ax.set_ylabel(label, rotation=0, ha="right", va="center")
        axes[0, j].set_title(f"noise of standard deviation {level}")
    figure.savefig(path, dpi=100)


def draw_errors(path, errors):
    """Errors by noise level."""
    figure, ax = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    styles = {
        f"{MAIN}, refined": "C0o-",
        f"{MAIN}, encoder": "C0o:",
        "σ = 0.6, encoder": "C4s:",
        "denoiser of this level": "C2^-",
        "Wiener filter": "C1v-",
        "PCA": "C7.--",
        "vanilla VAE": "C3x-",
    }
    for name, style in styles.items():
        levels, values = zip(*errors[name].items(), strict=True)
        mean, error = np.array(values).T
        ax.errorbar(levels, mean, error, fmt=style, label=name)
    ax.set(
        xlabel="standard deviation of the noise",
        ylabel="mean squared error per pixel",
        yscale="log",
    )
    ax.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
