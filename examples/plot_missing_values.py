"""
Filling gaps
============

A fitted :class:`~sklearn_sigmavae.SigmaVAE` fills gaps: NaN in
:meth:`~sklearn_sigmavae.SigmaVAE.denoise` or
:meth:`~sklearn_sigmavae.SigmaVAE.posterior` is an entry that is not there, whichever
they are in each row. The model itself is fitted to complete rows. Here it stands beside
scikit-learn's imputers, which are given the same rows to learn from, and beside its own
linear start, which training has to improve on.
"""

# %%
# Digits with holes
# -----------------
#
# Images of 8 x 8 pixels, with grey levels from 0 to 16. The training images are
# complete; held-out images lose pixels. For time, epochs are fewer than the default.

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.model_selection import GridSearchCV, KFold, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

# %%
# Five ways to fill them
# ----------------------
#
# ``denoise`` looks for the codes whose image explains the pixels that are there, and
# draws that image. ``noise_scale=vae.sigma_`` says that these pixels carry no noise but
# that of the model. :class:`~sklearn.impute.SimpleImputer` takes the mean of the
# column, :class:`~sklearn.impute.KNNImputer` that of the five nearest training images.
#
# :class:`~sklearn.impute.IterativeImputer` predicts each column from the others, in
# rounds, by its default, Bayesian ridge regression. It needs some care: fitted to
# complete rows it makes a single round, whose predictions trust the column means that
# stand for other gaps. So it sees the training images twice, complete and with gaps of
# up to 80 %.
#
# ``SigmaVAE(max_iter=0)`` is the linear start, probabilistic PCA with noise of scale
# ``sigma``, and takes no training. What the networks add is the difference to it.
#
# What has parameters gets them by the same rule: the smallest error on 30 % of the
# entries of training rows, in three folds. The search of SigmaVAE takes a smaller
# network than the fit, for time.


def fill(model, X):
    """Rows of X, with what the model puts in the place of NaN."""
    if not isinstance(model, SigmaVAE):
        return model.transform(X)
    return np.where(np.isnan(X), model.denoise(X, noise_scale=model.sigma_), X)


def error(model, X, fraction):
    """Root mean squared error over a share of the entries, missing at random."""
    gaps = np.random.default_rng(0).random(X.shape) < fraction
    filled = fill(model, np.where(gaps, np.nan, X))
    return np.sqrt(np.square(filled - X)[gaps].mean())


def gap_scorer(model, X, y=None):
    """Score of a search: greater is better."""
    return -error(model, X, 0.3)


def fit_models(X_train, grid):
    """Models fitted to complete rows, their parameters chosen on these rows."""
    rng = np.random.default_rng(1)
    gaps = rng.random(X_train.shape) < rng.uniform(0, 0.8, (len(X_train), 1))
    with_gaps = np.vstack([X_train, np.where(gaps, np.nan, X_train)])
    with warnings.catch_warnings():
        # Its ten rounds are not enough for its tolerance, but more do not help.
        warnings.simplefilter("ignore", ConvergenceWarning)
        iterative = IterativeImputer(random_state=0).fit(with_gaps)
    models = {"SimpleImputer": SimpleImputer().fit(X_train)}
    models["IterativeImputer"] = iterative

    options = {"scoring": gap_scorer, "cv": KFold(3, shuffle=True, random_state=0)}
    neighbors = {"n_neighbors": [2, 3, 5, 8, 12, 20]}
    small = SigmaVAE(
        hidden_layer_sizes=(64,), learning_rate=8e-3, max_iter=30, random_state=0
    )
    searches = {
        "KNNImputer": GridSearchCV(KNNImputer(), neighbors, **options),
        "SigmaVAE(max_iter=0)": GridSearchCV(SigmaVAE(max_iter=0), grid, **options),
        "SigmaVAE": BatchedGridSearchCV(small, grid, **options),
    }
    for name, search in searches.items():
        models[name] = search.fit(X_train).best_estimator_
        print(f"{name:<22}{search.best_params_}")
    best = searches["SigmaVAE"].best_params_
    models["SigmaVAE"] = SigmaVAE(**best, max_iter=50, random_state=0).fit(X_train)
    return models


models = fit_models(X_train, {"n_components": [16, 24, 32], "sigma": [1.0, 2.0, 3.0]})
vae = models["SigmaVAE"]

# %%
# Pixels missing at random
# ------------------------
#
# The error is the root mean square over the missing pixels. The same curves for a table
# follow: 30 measurements of breast tumours, standardised, many of which are nearly
# linear functions of others.

FRACTIONS = np.array([0.1, 0.3, 0.5, 0.7])
STYLES = {
    "SimpleImputer": {"color": "0.5", "linestyle": ":", "marker": "v"},
    "IterativeImputer": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "KNNImputer": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "SigmaVAE(max_iter=0)": {"color": "#56B4E9", "linestyle": "--", "marker": "x"},
    "SigmaVAE": {"color": "#0072B2", "marker": "o"},
}


tumours = load_breast_cancer().data
table_train, table_test = train_test_split(tumours, random_state=0)
scaler = StandardScaler().fit(table_train)
table_train, table_test = scaler.transform(table_train), scaler.transform(table_test)
table_models = fit_models(
    table_train, {"n_components": [8, 15, 22], "sigma": [0.1, 0.2, 0.4]}
)

panels = {
    "Digits": (models, X_test, "grey levels"),
    "Breast cancer": (table_models, table_test, "standard deviations"),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, (title, (fitted, rows, unit)) in zip(axes, panels.items(), strict=True):
    print(f"{title + ', ' + unit:<34}" + "".join(f"{f:>7.0%}" for f in FRACTIONS))
    for name, style in STYLES.items():
        errors = [error(fitted[name], rows, fraction) for fraction in FRACTIONS]
        ax.plot(100 * FRACTIONS, errors, label=name, **style)
        print(f"{name:<34}" + "".join(f"{e:>7.2f}" for e in errors))
    ax.set(title=title, xlabel="entries missing (%)", ylabel=f"error ({unit})")
    ax.set(xticks=100 * FRACTIONS, ylim=(0, None))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="lower right")
plt.show()

# %%
# On digits the nearest neighbors have the smallest error where 70 % of the pixels are
# missing, and with half of them missing they are level with SigmaVAE, which is ahead
# while most pixels are there. The linear start is about as good as IterativeImputer;
# the rest is what training added.
#
# On the table training adds little: the start alone, which takes no time, is level with
# IterativeImputer while gaps are few and ahead of it with more. So try the start first,
# and all of them on gaps like yours.
#
# Tables with names
# -----------------
#
# ``denoise`` returns an array. ``combine_first`` keeps the known entries, the index and
# the columns of a DataFrame, and takes the missing entries from the result:

names = load_breast_cancer().feature_names
frame = pd.DataFrame(table_train, columns=names)
named = clone(table_models["SigmaVAE"]).fit(frame)

incomplete = frame[:6].mask(np.random.default_rng(0).random((6, 30)) < 0.3)
filled = incomplete.combine_first(
    pd.DataFrame(named.denoise(incomplete), incomplete.index, incomplete.columns)
)
print(pd.concat({"incomplete": incomplete, "filled": filled}, axis=1).iloc[:, [0, 30]])

# %%
# The lower half
# --------------
#
# Gaps in one place are harder: nothing beside a pixel tells of it. A support vector
# machine that was trained on complete images reads what each model made of the upper
# halves.

lower = np.zeros((8, 8), dtype=bool)
lower[4:] = True
lower = lower.ravel()
halves = np.where(lower, np.nan, X_test)
classifier = SVC().fit(X_train, y_train)
completed = {name: fill(models[name], halves) for name in STYLES}

print(f"{'':<22}{'error':>7}{'read right':>12}")
print(f"{'complete images':<22}{'':>7}{classifier.score(X_test, y_test):>12.1%}")
for name, images in completed.items():
    rms = np.sqrt(np.square(images - X_test)[:, lower].mean())
    print(f"{name:<22}{rms:>7.2f}{classifier.score(images, y_test):>12.1%}")

# %%
# Here the nearest neighbors have the smallest error, and what they draw is read best;
# SigmaVAE follows, and its linear start reads as IterativeImputer does.
#
# :meth:`~sklearn_sigmavae.SigmaVAE.posterior` also tells how sure the codes are, and
# draws from it decode to other completions. They spread around one answer: where
# several digits fit an upper half, the others may not be among them.

one_of_each = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
mean, std = vae.posterior(halves[one_of_each], noise_scale=vae.sigma_)
rng = np.random.default_rng(0)
draws = {}
for i in (1, 2):
    codes = mean + std * rng.normal(size=mean.shape)
    drawn = np.where(lower, vae.inverse_transform(codes), X_test[one_of_each])
    draws[f"SigmaVAE, draw {i}"] = drawn

rows = {"complete": X_test[one_of_each], "upper half": halves[one_of_each]}
rows |= {name: images[one_of_each] for name, images in completed.items()} | draws
cmap = plt.get_cmap("gray").with_extremes(bad="#56B4E9")
tiles = np.stack(list(rows.values())).reshape(-1, 10, 8, 8)
margin = (0, 0), (0, 0), (1, 1), (1, 1)
tiles = np.pad(tiles, margin, constant_values=16)  # white
figure, ax = plt.subplots(figsize=(8.4, 5.2), layout="compressed")
ax.imshow(np.block([[*row] for row in tiles]), cmap=cmap, vmin=0, vmax=16)
ax.set(xticks=[], yticks=10 * np.arange(len(rows)) + 4.5, yticklabels=rows)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
plt.show()

# sphinx_gallery_thumbnail_number = 2
