"""
PCA and SigmaVAE side by side
=============================

:class:`~sklearn_sigmavae.SigmaVAE` starts where probabilistic PCA ends. Without hidden
layers it *is* probabilistic PCA; with them the components bend. This page shows the
first to all digits, measures what the second is worth with the same number of
components, and says when to stay with :class:`~sklearn.decomposition.PCA`.
"""

# %%
# Without hidden layers: the same model
# -------------------------------------
#
# Probabilistic PCA with k components and noise of scale σ has a closed form. Let
# :math:`\lambda_i` be the eigenvalues of the covariance of d features, and A those
# among the first k that exceed :math:`\sigma^2`. Then the mean log-likelihood of the
# training data is, at its greatest,
#
# .. math::
#
#     -\tfrac{1}{2} \Big( d \log 2\pi\sigma^2 + |A|
#     + \sum_{i \notin A} \frac{\lambda_i}{\sigma^2}
#     + \sum_{i \in A} \log \frac{\lambda_i}{\sigma^2} \Big).
#
# ``SigmaVAE(hidden_layer_sizes=())`` is that model, and training starts at this
# optimum: ``max_iter=0`` keeps it. Its bound is exact there, so the score should be
# that number, whatever the ``sigma``.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import SigmaVAE

BLUE, ORANGE = "#0072B2", "#D55E00"

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
eigenvalues = np.linalg.eigvalsh(np.cov(X_train.T, bias=True))[::-1]


def closed_form(sigma, n_components):
    """Training log-likelihood of probabilistic PCA, in nats per row."""
    n_features = len(eigenvalues)
    active = (np.arange(n_features) < n_components) & (eigenvalues > sigma**2)
    return -0.5 * (
        n_features * np.log(2 * np.pi * sigma**2)
        + active.sum()
        + eigenvalues[~active].sum() / sigma**2
        + np.log(eigenvalues[active] / sigma**2).sum()
    )


sigmas = np.array([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0])
exact = np.array([closed_form(sigma, 16) for sigma in sigmas])
scores = []
for sigma in sigmas:
    linear = SigmaVAE(16, sigma=sigma, hidden_layer_sizes=(), max_iter=0)
    scores.append(linear.fit(X_train).score(X_train))
print(f"largest difference: {np.abs(scores - exact).max():.0e} nats")

# %%
# PCA fits its noise, and so its score is the top of that curve.

pca = PCA(16).fit(X_train)
fine = np.geomspace(sigmas[0], sigmas[-1], 100)

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(fine, [closed_form(s, 16) for s in fine], color="0.5", label="closed form")
ax.plot(sigmas, scores, "o", color=BLUE, label="SigmaVAE without hidden layers")
ax.plot(
    np.sqrt(pca.noise_variance_),
    pca.score(X_train),
    "*",
    markersize=15,
    color=ORANGE,
    label="PCA",
)
ax.set_xscale("log")
ax.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
ax.minorticks_off()
ax.set(
    xlabel="scale of the noise, σ (grey levels)",
    ylabel="score of the training data (nats per image)",
    title="16 components",
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %%
# With hidden layers: more from as many components
# ------------------------------------------------
#
# The same comparison on held-out images, for 2 to 16 components. ``sigma="mle"`` lets
# SigmaVAE fit its noise, as PCA does. The score is exact for PCA and a lower bound for
# SigmaVAE; the error is the root mean square of what comes back. For time, epochs are
# fewer than the default.


def error(model, X):
    """Root mean squared error of what comes back of the codes."""
    restored = model.inverse_transform(model.transform(X))
    return np.sqrt(np.square(restored - X).mean())


counts = [2, 4, 8, 16]
models = {"PCA": [], "SigmaVAE": []}
for k in counts:
    models["PCA"].append(PCA(k).fit(X_train))
    vae = SigmaVAE(k, sigma="mle", max_iter=30, random_state=0)
    models["SigmaVAE"].append(vae.fit(X_train))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
styles = {"PCA": ("s--", ORANGE), "SigmaVAE": ("o-", BLUE)}
print(f"{'components':<16}" + "".join(f"{k:>8}" for k in counts))
for name, fitted in models.items():
    marker, color = styles[name]
    nats = [model.score(X_test) for model in fitted]
    errors = [error(model, X_test) for model in fitted]
    axes[0].plot(counts, nats, marker, color=color, label=name)
    axes[1].plot(counts, errors, marker, color=color, label=name)
    print(f"{name + ', nats':<16}" + "".join(f"{x:>8.1f}" for x in nats))
    print(f"{name + ', error':<16}" + "".join(f"{x:>8.2f}" for x in errors))
axes[0].set(
    ylabel="held-out score (nats per image)", title="Likelihood: more is better"
)
axes[1].set(ylabel="error (grey levels)", title="Reconstruction: less is better")
axes[1].set_ylim(bottom=0)
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(k) for k in counts])
    ax.set_xlabel("components")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
plt.show()

# %%
# PCA gets there too, with about twice the components.

best = models["SigmaVAE"][-1].score(X_test)
needed = next(k for k in range(1, 64) if PCA(k).fit(X_train).score(X_test) > best)
print(f"PCA needs {needed} components for the score of SigmaVAE with 16")

# %%
# Two components, to look at
# --------------------------
#
# Two codes are a map of the held-out images; each is drawn as the digit that it is. The
# codes of PCA are in grey levels, those of SigmaVAE in standard deviations of the
# prior. The number above is how many digits a vote of the ten nearest training images
# gets right. It tells the two maps apart; with 16 components both are good.

COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("black", "0.6", "#882255", "#999933"),
)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for ax, (name, fitted) in zip(axes, models.items(), strict=True):
    for model in (fitted[0], fitted[-1]):
        vote = KNeighborsClassifier(10).fit(model.transform(X_train), y_train)
        right = vote.score(model.transform(X_test), y_test)
        print(f"{name}, {model.n_components} components: {right:.1%} right")
        if model.n_components == 2:
            ax.set_title(f"{name}: {right:.0%} right")
    codes = fitted[0].transform(X_test)
    for digit, color in enumerate(COLORS):
        ax.scatter(*codes[y_test == digit].T, marker=f"${digit}$", s=40, color=color)
    ax.set(xlabel="component 0", ylabel="component 1", aspect="equal")
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# When to use PCA
# ---------------
#
# Where the data is a cloud around a plane there is nothing to bend. Ten measurements of
# patients with diabetes are such data: the two scores below are a draw. There PCA is
# the better choice, since it is exact, instant, and has nothing to tune.
#
# It is also the better choice if the components themselves are to be read, since each
# is a list of loadings, and if all that counts is a small error of what comes back:
# more components cost PCA nothing. SigmaVAE is for when the components should be few,
# when the density counts, or when new rows are to be drawn.

table = load_diabetes().data
for seed in range(3):
    train, test = train_test_split(table, random_state=seed)
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    vae = SigmaVAE(3, sigma="mle", max_iter=30, random_state=0).fit(train)
    score = PCA(3).fit(train).score(test)
    print(
        f"split {seed}: PCA {score:.2f}, SigmaVAE {vae.score(test):.2f} nats a patient"
    )

# sphinx_gallery_thumbnail_number = 3
