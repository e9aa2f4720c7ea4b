"""Inference on noisy data that no model has seen in training.

Models trained on clean images read noisy ones, by the encoder and by the refined
posterior, beside the optimal linear filter, PCA, and denoising networks each trained
for one noise level. Errors are per pixel, with the standard error over images; the
accuracy is that of a classifier trained on codes of clean images.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from _shared import (
    HIDDEN,
    N_COMPONENTS,
    fit_wiener,
    mnist,
    parse_args,
    write_numbers,
    write_table,
)
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_sigmavae import SigmaVAE

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
SIGMAS = (0.15, 0.3, 0.6, 1.0)
# The one of them that is drawn, and that codes what is no code.
MAIN = 0.3
N_STEPS = 60


def fit_vae(X, max_iter, **params):
    """A model of clean images."""
    start = time.perf_counter()
    vae = SigmaVAE(
        N_COMPONENTS,
        hidden_layer_sizes=HIDDEN,
        max_iter=max_iter,
        early_stopping=False,
        random_state=0,
        **params,
    ).fit(X)
    print(f"{params}: {time.perf_counter() - start:.0f} s", flush=True)
    return vae


def fit_denoiser(X, level, max_iter):
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
    x = torch.from_numpy(X)
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

    def denoise(Y):
        with torch.no_grad():
            return network(torch.from_numpy(Y)).numpy()

    return denoise


class Vanilla:
    """The vanilla VAE, on any input: its estimator takes data in [0, 1] only."""

    def __init__(self, vae):
        self.vae = vae

    def transform(self, Y):
        """Codes by the encoder."""
        with torch.no_grad():
            return self.vae.module_.encode(torch.from_numpy(Y)).mean.numpy()

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
    """Models, fitted once, and what they make of each level of noise."""

    def __init__(self, X, y, max_iter):
        self.max_iter, self.X = max_iter, X
        self.vaes = {sigma: fit_vae(X, max_iter, sigma=sigma) for sigma in SIGMAS}
        self.vanilla = Vanilla(
            fit_vae(X, max_iter, noise="bernoulli", linear_path=False, init="random")
        )
        self.pca = PCA(N_COMPONENTS, random_state=0).fit(X)
        self.wiener = fit_wiener(X)
        self.classifiers = {
            name: classifier(model.transform(X), y)
            for name, model in (
                *self.vaes.items(),
                ("vanilla", self.vanilla),
                ("pca", self.pca),
            )
        }

    def restore(self, Y, level):
        """Name, classifier, codes and images of each method."""
        main = self.vaes[MAIN]
        for sigma, vae in self.vaes.items():
            Z = vae.transform(Y)
            yield f"σ = {sigma}, encoder", sigma, Z, vae.inverse_transform(Z)
        if level:
            for sigma, vae in self.vaes.items():
                Z, _ = vae.posterior(Y, noise_scale=level, max_iter=N_STEPS)
                restored = vae.inverse_transform(Z)
                yield f"σ = {sigma}, refined", sigma, Z, restored
                # The codes of what was restored, and those that the model would give
                # if the noise were its own.
                Z = vae.transform(restored)
                yield f"σ = {sigma}, coded again", sigma, Z, vae.inverse_transform(Z)
                Z, _ = vae.posterior(Y, max_iter=N_STEPS)
                yield f"σ = {sigma}, noise of σ", sigma, Z, vae.inverse_transform(Z)
        for name, rows in (("", Y), (", clipped", Y.clip(0, 1))):
            Z = self.vanilla.transform(rows)
            images = self.vanilla.inverse_transform(Z)
            yield f"vanilla VAE{name}", "vanilla", Z, images
        Z = self.pca.transform(Y)
        yield "PCA", "pca", Z, self.pca.inverse_transform(Z)
        if level:
            # What gives images and no codes is coded by the encoder.
            images = self.wiener(Y, level)
            yield "Wiener filter", MAIN, main.transform(images), images
            images = fit_denoiser(self.X, level, self.max_iter)(Y)
            yield "denoiser of this level", MAIN, main.transform(images), images


def shift_of_posteriors(vae, X, Y, level):
    """How far the posteriors of noisy rows are from those of the clean ones."""
    clean = vae.posterior(X)
    amortised = gaussian_kl(*vae.posterior(Y), *clean)
    noisy = vae.posterior(Y, noise_scale=level, max_iter=N_STEPS)
    refined = gaussian_kl(*noisy, *clean)
    return amortised.mean(), refined.mean()


def main():
    """Fit all models, restore at each level, write tables and pictures."""
    args = parse_args(__doc__.splitlines()[0])
    X, y, X_test, y_test = mnist(args.quick)
    experiment = Experiment(X, y, max_iter=3 if args.quick else 15)
    noise = np.random.RandomState(0).standard_normal(X_test.shape).astype(np.float32)
    errors, accuracies, shifts, pictures = {}, {}, {}, {}
    for level in LEVELS:
        Y = X_test + level * noise
        for name, coder, Z, images in experiment.restore(Y, level):
            each = np.square(images - X_test).mean(axis=1)
            error = float(each.mean()), float(each.std() / np.sqrt(len(each)))
            errors.setdefault(name, {})[level] = error
            accuracy = experiment.classifiers[coder].score(Z, y_test)
            accuracies.setdefault(name, {})[level] = accuracy
            pictures.setdefault(name, {})[level] = images[:8]
            print(f"{level} {name}: {error[0]:.4f}, {accuracy:.3f}", flush=True)
        pictures.setdefault("noisy", {})[level] = Y[:8]
        if level:
            rows = slice(2000)
            shifts[level] = {
                sigma: shift_of_posteriors(vae, X_test[rows], Y[rows], level)
                for sigma, vae in experiment.vaes.items()
            }
    header = ["", *(f"noise {level}" for level in LEVELS)]
    write_table(
        args.output / "errors.md",
        header,
        [
            [
                name,
                *(
                    f"{of[s][0]:.4f} ± {of[s][1]:.4f}" if s in of else ""
                    for s in LEVELS
                ),
            ]
            for name, of in errors.items()
        ],
    )
    write_table(
        args.output / "accuracies.md",
        header,
        [
            [name, *(f"{of[s]:.3f}" if s in of else "" for s in LEVELS)]
            for name, of in accuracies.items()
        ],
    )
    write_table(
        args.output / "posteriors.md",
        ["", *header[2:]],
        [
            [f"σ = {sigma}, {way}", *(f"{shifts[s][sigma][i]:.3g}" for s in LEVELS[1:])]
            for sigma in SIGMAS
            for i, way in enumerate(("encoder", "refined"))
        ],
    )
    numbers = {name: {str(s): e for s, e in of.items()} for name, of in errors.items()}
    write_numbers(args.output / "errors.json", numbers)
    draw_pictures(args.output / "noisy_data.png", X_test[:8], pictures)
    draw_errors(args.output / "errors.png", errors)


def draw_pictures(path, clean, pictures):
    """Clean, noisy and restored images, for three levels side by side."""
    levels = (0.5, 1.0, 1.5)
    names = (
        "noisy",
        f"σ = {MAIN}, refined",
        "denoiser of this level",
        "Wiener filter",
        f"σ = {MAIN}, encoder",
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
        f"σ = {MAIN}, refined": "C0o-",
        f"σ = {MAIN}, encoder": "C0o:",
        "σ = 1.0, encoder": "C4s:",
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
