"""SigmaVAE on the handwritten digits, from an array to a table and a picture.

Run it with ``python examples/quickstart.py``; it takes about a minute on two cores and
writes ``quickstart.png`` to the current folder.
"""

import textwrap
import time

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_sigmavae import SigmaVAE

N_COMPONENTS = 16
SIGMAS = [1.0, 1.25, 1.5, 1.75, 2.0, 3.0]


def main():
    """Fit, score, search, classify, and draw."""
    start = time.perf_counter()
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    print(f"{len(X_train)} training images of 8 x 8 pixels, each from 0 to 16.\n")

    print(f"1. One fit with {N_COMPONENTS} components and noise of sigma = 1.5")
    vae = SigmaVAE(N_COMPONENTS, sigma=1.5, random_state=0, verbose=1).fit(X_train)
    codes = vae.transform(X_test)
    restored = vae.inverse_transform(codes)
    print(f"   codes {codes.shape}, reconstructions {restored.shape}\n")

    print("2. The noise level, chosen by cross-validated likelihood")
    search = GridSearchCV(
        SigmaVAE(N_COMPONENTS, random_state=0),
        {"sigma": SIGMAS},
        cv=3,
        n_jobs=2,
        verbose=1,
    ).fit(X_train)
    scores = search.cv_results_["mean_test_score"]
    for sigma, score in zip(SIGMAS, scores, strict=True):
        mark = "  <- best" if sigma == search.best_params_["sigma"] else ""
        print(f"   sigma = {sigma:<5g} {score:8.2f} nats{mark}")
    best = search.best_estimator_

    print("\n3. A classifier on the codes")
    pca = PCA(N_COMPONENTS).fit(X_train)
    accuracy = {}
    for name, reducer in (
        ("PCA", PCA(N_COMPONENTS)),
        ("SigmaVAE", SigmaVAE(N_COMPONENTS, sigma=best.sigma_, random_state=0)),
    ):
        model = make_pipeline(reducer, LogisticRegression(max_iter=5000))
        accuracy[name] = model.fit(X_train, y_train).score(X_test, y_test)
        print(f"   {name:<9} {accuracy[name]:.3f}")

    draw(X_test[:10], pca, best, "quickstart.png")
    print_table(X_test, pca, best, accuracy)
    print(f"\nPicture: quickstart.png. Took {time.perf_counter() - start:.0f} s.")


def print_table(X_test, pca, vae, accuracy):
    """Print what was found on the held-out images, and what it means."""

    def error(model):
        restored = model.inverse_transform(model.transform(X_test))
        return np.sqrt(np.square(X_test - restored).mean())

    title = f"Held-out images, {N_COMPONENTS} components"
    print(f"\n{title:<36}{'PCA':>8}{'SigmaVAE':>11}")
    print("-" * 55)
    rows = (
        ("log-likelihood, nats", pca.score(X_test), vae.score(X_test), 2),
        ("reconstruction error, grey levels", error(pca), error(vae), 2),
        ("accuracy of a linear classifier", *accuracy.values(), 3),
    )
    for name, of_pca, of_vae, digits in rows:
        print(f"{name:<36}{of_pca:>8.{digits}f}{of_vae:>11.{digits}f}")
    gain = vae.score(X_test) - pca.score(X_test)
    meaning = (
        "The first row is the mean log-density of images that training has not seen "
        f"(for SigmaVAE a lower bound), {gain:.1f} nats above PCA's: SigmaVAE, at "
        f"sigma = {vae.sigma_:g}, finds a new image e^{gain:.1f} times as likely. The "
        "second row is the root mean square over pixels, of 16 grey levels; the third "
        "is that of a logistic regression on the codes."
    )
    print("\n" + textwrap.fill(meaning, width=79))


def draw(images, pca, vae, path):
    """Draw images, their reconstructions, and samples of both models."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    n_images = len(images)
    random_state = np.random.RandomState(0)
    spread = np.sqrt(pca.explained_variance_)
    gaussian = random_state.standard_normal((n_images, N_COMPONENTS)) * spread
    rows = {
        "held-out images": images,
        "PCA, restored": pca.inverse_transform(pca.transform(images)),
        "SigmaVAE, restored": vae.inverse_transform(vae.transform(images)),
        "PCA, samples": pca.inverse_transform(gaussian),
        "SigmaVAE, samples": vae.sample(n_images, random_state=0),
    }
    figure, axes = plt.subplots(
        len(rows), n_images, figsize=(n_images * 0.8 + 1.7, len(rows) * 0.85)
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
