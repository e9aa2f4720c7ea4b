"""
Three ways to choose sigma, and why they disagree
=================================================

``sigma`` is the scale of the noise, in the units of the data: smaller differences do
not count. Which differences should count depends on what the model is for. Here
:class:`~sklearn_sigmavae.SigmaVAE` gets its ``sigma`` by likelihood, by denoising, and
by the accuracy of a classifier on its codes.
"""

# %%
# Digits, and eight scales
# ------------------------
#
# Images of 8 x 8 pixels, with grey levels from 0 to 16, and scales from 0.7 to 8 of
# these levels. A quarter of the images stays aside for the end. The network and the
# epochs are fewer than the defaults, for time.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline

from sklearn_sigmavae import (
    BatchedGridSearchCV,
    SigmaPathDisplay,
    SigmaVAE,
    sigma_path,
)
from sklearn_sigmavae.metrics import (
    denoising_scorer,
    elbo_scorer,
    reconstruction_scorer,
)

NOISE = 6.0  # grey levels
SIGMAS = np.round(2 ** np.arange(-0.5, 3.5, 0.5), 2)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X_train, y_train))
vae = SigmaVAE(16, hidden_layer_sizes=(64,), max_iter=25, random_state=0)

# %%
# By likelihood, and by denoising
# -------------------------------
#
# One :class:`~sklearn_sigmavae.BatchedGridSearchCV` does both: it trains the models of
# all scales and folds side by side, as one stack, and takes as many scores as it is
# given.
#
# - ``elbo_scorer`` is the default: the bound on the log-likelihood of held-out images.
# - ``denoising_scorer(6.0)`` adds noise of 6 grey levels to held-out images, encodes
#   and decodes them, and compares with the clean ones.
# - ``reconstruction_scorer`` does the same without noise. It is here as a warning.

batched = BatchedGridSearchCV(
    vae,
    {"sigma": SIGMAS},
    scoring={
        "likelihood": elbo_scorer,
        "denoising": denoising_scorer(NOISE),
        "reconstruction": reconstruction_scorer,
    },
    refit=False,
    cv=folds,
).fit(X_train)

# %%
# By what comes after
# -------------------
#
# If a classifier is to use the codes, let it judge them: a pipeline, and
# scikit-learn's own search. Accuracy is a coarse measure, so the best of eight scales
# is best by luck. Of those within one standard error of it, ``refit`` takes the
# largest: the simplest model that is as good.


def largest_within_one_error(results):
    """Index of the largest sigma whose mean score is not clearly below the best."""
    mean, best = results["mean_test_score"], np.argmax(results["mean_test_score"])
    least = mean[best] - results["std_test_score"][best] / np.sqrt(len(folds))
    return np.flatnonzero(mean >= least)[-1]


pipeline = Pipeline([("vae", vae), ("classify", LogisticRegression(max_iter=2000))])
downstream = GridSearchCV(
    pipeline,
    {"vae__sigma": SIGMAS},
    refit=largest_within_one_error,
    cv=folds,
).fit(X_train, y_train)

# %%
# Three curves, three answers
# ---------------------------
#
# Bars are standard errors over the folds; those that cannot be seen are smaller than
# the dots.

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def curve(results, name, unit=lambda score: score):
    """Mean and standard error over folds, of scores in another unit."""
    scores = np.array(
        [unit(results[f"split{i}_test_{name}"]) for i in range(len(folds))]
    )
    return scores.mean(axis=0), scores.std(axis=0) / np.sqrt(len(folds))


def draw(ax, mean, error, color, chosen):
    """Draw a curve, and mark what was chosen."""
    ax.errorbar(SIGMAS, mean, error, color=color, marker="o", markersize=5, capsize=2)
    ax.axvline(SIGMAS[chosen], color=color, linestyle=":", linewidth=1.2, zorder=0)
    ax.plot(
        SIGMAS[chosen], mean[chosen], "o", color=color, markersize=13, fillstyle="none"
    )
    ax.annotate(
        f"σ = {SIGMAS[chosen]:g}",
        (SIGMAS[chosen], mean[chosen]),
        (0, 13),
        textcoords="offset points",
        ha="center",
        fontweight="bold",
        color=color,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


def root(score):
    """Root mean squared error, in grey levels, of minus the mean squared one."""
    return np.sqrt(-score)


nats = curve(batched.cv_results_, "likelihood")
noisy = curve(batched.cv_results_, "denoising", root)
clean = curve(batched.cv_results_, "reconstruction", root)
accuracy = curve(downstream.cv_results_, "score", lambda score: 100 * score)
chosen = {
    "likelihood": np.argmax(nats[0]),
    "denoising": np.argmin(noisy[0]),
    "accuracy": downstream.best_index_,
}

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
draw(axes[0], *nats, BLUE, chosen["likelihood"])
axes[0].set(title="By likelihood", ylabel="held-out bound (nats per image)")
draw(axes[1], *noisy, ORANGE, chosen["denoising"])
axes[1].plot(SIGMAS, clean[0], "s--", color=GREY, markersize=4)
axes[1].text(SIGMAS[0], clean[0][0] - 0.06, "without noise", color=GREY, va="top")
axes[1].text(SIGMAS[0], noisy[0][0] + 0.06, f"noise of {NOISE:g}", color=ORANGE)
axes[1].set(title="By denoising", ylabel="error of what comes back (grey levels)")
draw(axes[2], *accuracy, GREEN, chosen["accuracy"])
axes[2].set(title="By a classifier on the codes", ylabel="accuracy (%)")
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    ax.set_xlabel("σ (grey levels)")
    ax.margins(x=0.08, y=0.14)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)

# %%
# On images that no search has seen
# ---------------------------------
#
# A model at each of the three. KL is what a code tells of its image, in nats; the error
# is that of what comes back of noisy images. Likelihood and denoising each win what
# they chose by. The accuracies differ by one or two of 450 images, which is chance.

print(f"{'chosen by':<12}{'sigma':>6}{'KL':>7}{'bound':>9}{'error':>8}{'accuracy':>10}")
print(f"{'':<12}{'':>6}{'nats':>7}{'nats':>9}{'levels':>8}{'%':>10}")
print("-" * 52)
models = {}
for name, index in chosen.items():
    fitted = clone(pipeline).set_params(vae__sigma=SIGMAS[index])
    fitted.fit(X_train, y_train)
    model = models[name] = fitted["vae"]
    print(
        f"{name:<12}{model.sigma:>6g}{model.kl_divergence(X_test).sum(axis=1).mean():>7.1f}"
        f"{elbo_scorer(model, X_test):>9.1f}"
        f"{root(denoising_scorer(NOISE)(model, X_test)):>8.2f}"
        f"{100 * fitted.score(X_test, y_test):>10.1f}"
    )

# %%
# Why they differ
# ---------------
#
# - **Likelihood** asks for the scale of what 16 components leave over of a clean image.
#   Below it the density is too narrow for new images, above it too wide.
# - **Denoising** asks for codes that do not follow the noise. What varies by less than
#   the noise is better left out, so it takes a larger ``sigma``, whose codes hold less.
# - **Accuracy** asks for what tells the digits apart, and that is coarse: strokes and
#   their places. Up to a sigma of 2.8 nothing of it is lost, and the curve is flat.
#
# Without noise, the grey curve, smaller is always better: reconstruction alone does not
# choose. The same three models on noisy images that training has not seen:

noisy_images = X_test[:10] + NOISE * np.random.RandomState(0).randn(10, X.shape[1])
rows = {"held out": X_test[:10], f"noise of {NOISE:g}": noisy_images}
for name, model in models.items():
    restored = model.inverse_transform(model.transform(noisy_images))
    rows[f"{name}\nσ = {model.sigma:g}"] = restored
figure, axes = plt.subplots(len(rows), 10, figsize=(9, 4.3))
for (name, images), row_axes in zip(rows.items(), axes, strict=True):
    for image, ax in zip(images, row_axes, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.tight_layout(pad=0.4)

# %%
# The whole path
# --------------
#
# :func:`~sklearn_sigmavae.sigma_path` goes from the scale that hides everything down,
# and starts each model at the one before, so a few epochs do for each. It needs no grid
# to begin with, and shows what the search does not: how many nats a code holds (KL), at
# what error, and how both change with ``sigma``.

path = sigma_path(X_train, n_sigmas=10, eps=0.05, estimator=vae, cv=folds)
print(f"the path's likelihood chooses sigma = {path.best_sigma:.2f}")
SigmaPathDisplay.from_path(path)
plt.show()
