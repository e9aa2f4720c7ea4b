"""
Filling gaps
============

:class:`~sklearn_sigmavae.SigmaVAEImputer` learns from rows with gaps and fills them.
Here it stands beside scikit-learn's imputers, which are given the same rows, and beside
its own linear start, which training has to improve on.
"""

# %%
# Two tables with gaps
# --------------------
#
# Digits are images of 8 x 8 pixels, with grey levels from 0 to 16. The other table has
# 30 measurements of breast tumors, many of which are nearly linear functions of others.
# Both are standardized, and lose entries completely at random, in the training rows as
# in those that are filled and compared.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer

FRACTIONS = np.array([0.1, 0.3, 0.5])


def split(X):
    """Standardized rows to train on and to fill."""
    X_train, X_test = train_test_split(X, random_state=0)
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test)


def with_gaps(X, fraction, seed):
    """Rows that have lost entries, but no row all of them."""
    gaps = np.random.default_rng(seed).random(X.shape) < fraction
    gaps[gaps.all(axis=1), 0] = False
    return np.where(gaps, np.nan, X)


# %%
# Five imputers
# -------------
#
# :class:`~sklearn.impute.SimpleImputer` takes the mean of the column,
# :class:`~sklearn.impute.KNNImputer` that of the nearest rows, and
# :class:`~sklearn.impute.IterativeImputer` predicts each column from the others, in
# rounds. ``SigmaVAE(max_iter=0, hidden_layer_sizes=())`` is the linear model that
# training starts from, probabilistic PCA, with the noise of greatest likelihood; it
# takes no time. What the networks add is the difference to it. For time, networks are
# smaller than the default, and epochs fewer.

linear = SigmaVAE(16, sigma="mle", max_iter=0, hidden_layer_sizes=())
network = SigmaVAE(
    16, sigma="auto", hidden_layer_sizes=(64, 64), learning_rate=5e-3, max_iter=60
)
imputers = {
    "SimpleImputer": SimpleImputer(),
    "IterativeImputer": IterativeImputer(random_state=0),
    "KNNImputer": KNNImputer(n_neighbors=10),
    "linear start": SigmaVAEImputer(linear, random_state=0),
    "SigmaVAEImputer": SigmaVAEImputer(network, random_state=0),
}
styles = {
    "SimpleImputer": {"color": "0.5", "linestyle": ":", "marker": "v"},
    "IterativeImputer": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "KNNImputer": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "linear start": {"color": "#56B4E9", "linestyle": "--", "marker": "x"},
    "SigmaVAEImputer": {"color": "#0072B2", "marker": "o"},
}


def error(imputer, X_train, X_test, fraction):
    """Root mean squared error of what is filled, in standard deviations."""
    incomplete = with_gaps(X_test, fraction, seed=1)
    with warnings.catch_warnings():
        # Ten rounds of IterativeImputer are not enough for its tolerance.
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(with_gaps(X_train, fraction, seed=0))
    filled = imputer.transform(incomplete)
    return np.sqrt(np.square(filled - X_test)[np.isnan(incomplete)].mean())


digits, numbers = load_digits(return_X_y=True)
# Some pixels are the same in all images.
digits = digits[:, digits.std(axis=0) > 0.5]
tables = {"Digits": digits, "Breast cancer": load_breast_cancer().data}
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for ax, (title, X) in zip(axes, tables.items(), strict=True):
    print(f"{title:<18}" + "".join(f"{f:>7.0%}" for f in FRACTIONS))
    for name, imputer in imputers.items():
        errors = [error(imputer, *split(X), fraction) for fraction in FRACTIONS]
        ax.plot(100 * FRACTIONS, errors, label=name, **styles[name])
        print(f"{name:<18}" + "".join(f"{e:>7.2f}" for e in errors))
    ax.set(title=title, xlabel="entries missing (%)")
    ax.set(xticks=100 * FRACTIONS, ylim=(0, None))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="error (standard deviations)")
axes[1].legend(frameon=False, loc="lower right")
plt.show()

# %%
# On digits the networks make the difference. On the measurements the linear model is
# most of it, and all of it where few entries are missing: try it first, with
# ``max_iter=0``, and all of them on gaps like yours.
#
# Tables with names
# -----------------
#
# An imputer is a transformer: it stands in pipelines, and keeps names if asked. The
# default, ``SigmaVAEImputer()``, scales columns itself; a custom estimator needs a
# scaler before it.

frame = load_breast_cancer(as_frame=True).data
frame = frame.mask(np.random.default_rng(0).random(frame.shape) < 0.3)
scaled = make_pipeline(StandardScaler(), network)
imputer = SigmaVAEImputer(scaled, random_state=0).set_output(transform="pandas")
filled = imputer.fit_transform(frame)
print(pd.concat({"incomplete": frame, "filled": filled}, axis=1).iloc[:6, [0, 30]])

# %%
# The lower half
# --------------
#
# A large gap is harder to fill, since no neighbor of a missing pixel is known. Here the
# model is fitted to complete images, and the lower half of others is filled with its
# expected value. With ``sample_posterior=True`` each call draws one completion, so that
# their spread can be seen.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
lower = np.arange(64) >= 32
halves = np.where(lower, np.nan, X_test)
vae = SigmaVAE(16, sigma="auto", max_iter=60, random_state=0)
imputer = SigmaVAEImputer(vae).fit(X_train)
completed = {
    "mean": imputer.transform(halves),
    "neighbors": KNNImputer(n_neighbors=10).fit(X_train).transform(halves),
}
classifier = SVC().fit(X_train, y_train)
print(f"read right: complete images {classifier.score(X_test, y_test):.1%}")
for name, images in completed.items():
    print(f"{name:<12}{classifier.score(images, y_test):.1%}")
imputer.set_params(sample_posterior=True)
one_of_each = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
rows = {"complete": X_test[one_of_each], "upper half": halves[one_of_each]}
rows |= {name: images[one_of_each] for name, images in completed.items()}
for i in range(3):
    imputer.set_params(random_state=i)
    rows[f"draw {i + 1}"] = imputer.transform(halves[one_of_each])
cmap = plt.get_cmap("gray").with_extremes(bad="#56B4E9")
tiles = np.stack(list(rows.values())).reshape(-1, 10, 8, 8)
margin = (0, 0), (0, 0), (1, 1), (1, 1)
tiles = np.pad(tiles, margin, constant_values=16)  # white
figure, ax = plt.subplots(figsize=(8.4, 6), layout="compressed")
ax.imshow(np.block([[*row] for row in tiles]), cmap=cmap, vmin=0, vmax=16)
ax.set(xticks=[], yticks=10 * np.arange(len(rows)) + 4.5, yticklabels=rows)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
plt.show()

# sphinx_gallery_thumbnail_number = 2
