"""SigmaVAE on the handwritten digits, from an array to a table and a picture.

Run it with ``python examples/quickstart.py``; it takes a few minutes on one core and
writes ``quickstart.png`` to the current folder.
"""

import textwrap
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold, train_test_split

from sklearn_sigmavae import BatchedGridSearchCV, MixturePrior, SigmaVAE

N_SPLITS = 3
FOLDS = KFold(3, shuffle=True, random_state=0)
ROWS = ("PCA", "GaussianMixture", "SigmaVAE, bound", "  importance-weighted")


def main():
    """Fit, compare, and draw."""
    start = time.perf_counter()
    X = load_digits().data
    X_train, X_test = train_test_split(X, random_state=0)
    print(f"{len(X_train)} training images of 8 x 8 pixels, each from 0 to 16.\n")

    print("1. One fit with 16 components and noise of sigma = 1.5")
    prior = MixturePrior(20)
    vae = SigmaVAE(16, sigma=1.5, prior=prior, random_state=0, verbose=1).fit(X_train)
    codes = vae.transform(X_test)
    restored = vae.inverse_transform(codes)
    print(f"   codes {codes.shape}, reconstructions {restored.shape}\n")

    print("2. Three densities, each tuned by cross-validation on the training rows")
    scores = {name: [] for name in ROWS}
    mixtures = []
    for seed in range(N_SPLITS):
        # Integers have no density, so a grey level becomes an interval of length one.
        noise = np.random.default_rng(seed).random(X.shape)
        split = train_test_split(X + noise, random_state=seed)
        mixtures.append(compare(*split, scores))
    print_table(scores)

    pca = PCA(16).fit(X_train)
    draw(X_test[:10], pca, vae, mixtures[0], "quickstart.png")
    print(f"\nDone in {time.perf_counter() - start:.0f} s; see quickstart.png.")


def searches():
    """One search for each model, over what decides its held-out likelihood."""
    mixture = GaussianMixture(random_state=0)
    full = {"covariance_type": ["full"], "n_components": [1, 2, 5, 10]}
    tied = {"covariance_type": ["tied"], "n_components": [10, 40]}
    diag = {"covariance_type": ["diag"], "n_components": [20, 40, 60, 80]}
    for grid in (full, tied, diag):
        grid["reg_covar"] = [0.01, 0.1]
    vae = SigmaVAE(
        56,
        prior=MixturePrior(20),
        hidden_layer_sizes=(64,),
        max_iter=150,
        # Like the others it learns from all rows.
        early_stopping=False,
        random_state=0,
    )
    grid = {"sigma": [0.25, 0.35]}
    return (
        GridSearchCV(PCA(), {"n_components": range(8, 64, 3)}, cv=FOLDS),
        GridSearchCV(mixture, [full, tied, diag], cv=FOLDS),
        BatchedGridSearchCV(vae, grid, cv=FOLDS),
    )


def compare(X_train, X_test, scores):
    """Add the scores of the best models on new rows; return the Gaussian mixture."""
    best = []
    for search in searches():
        best.append(search.fit(X_train).best_estimator_)
        chosen = ", ".join(f"{k} = {v}" for k, v in search.best_params_.items())
        print(f"   {type(search.estimator).__name__:<16}{chosen}")
    print()
    pca, mixture, vae = best
    weighted = vae.score_samples(X_test, n_importance_samples=200).mean()
    held_out = [model.score(X_test) for model in (pca, mixture, vae)]
    for name, score in zip(ROWS, [*held_out, weighted], strict=True):
        scores[name].append(score)
    return mixture


def print_table(scores):
    """Print the held-out log-likelihoods, and what they mean."""
    splits = "".join(f"{f'split {i}':>10}" for i in range(N_SPLITS))
    title = "Held-out log-likelihood, nats"
    print(f"{title:<31}{splits}{'mean':>10}\n" + "-" * (41 + 10 * N_SPLITS))
    for name, row in scores.items():
        numbers = "".join(f"{score:>10.2f}" for score in (*row, np.mean(row)))
        print(f"{name:<31}{numbers}")
    means = {name: np.mean(row) for name, row in scores.items()}
    pca, mixture, vae, weighted = (means[name] for name in ROWS)
    meaning = (
        "Mean log-density of images that neither training nor the search has seen, "
        "with uniform noise of one grey level. For SigmaVAE it is a lower bound. "
        f"Against GaussianMixture the bound is {describe(vae - mixture)} and the "
        f"importance-weighted bound {describe(weighted - mixture)}; against PCA they "
        f"are {describe(vae - pca)} and {describe(weighted - pca)}."
    )
    print("\n" + textwrap.fill(meaning, width=79))


def describe(difference):
    """Difference of two scores in words."""
    side = "higher" if difference > 0 else "lower"
    return f"{abs(difference):.1f} nats {side}"


def draw(images, pca, vae, mixture, path):
    """Draw images, what 16 components restore of them, and samples of densities."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    n_images = len(images)
    # A mixture returns its samples in the order of its components.
    samples = np.random.default_rng(0).permutation(mixture.sample(200)[0])[:n_images]
    rows = {
        "held-out images": images,
        "PCA(16), restored": pca.inverse_transform(pca.transform(images)),
        "SigmaVAE(16), restored": vae.inverse_transform(vae.transform(images)),
        "GaussianMixture, samples": samples,
        "SigmaVAE(16), samples": vae.sample(n_images, random_state=0),
    }
    figure, axes = plt.subplots(
        len(rows), n_images, figsize=(n_images * 0.8 + 2.2, len(rows) * 0.85)
    )
    for (name, row), row_axes in zip(rows.items(), axes, strict=True):
        for image, ax in zip(row, row_axes, strict=True):
            ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
            ax.set(xticks=[], yticks=[])
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.4)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
