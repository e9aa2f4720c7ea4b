"""
Filling gaps
============

A fitted :class:`~sklearn_sigmavae.SigmaVAE` fills gaps: NaN in
:meth:`~sklearn_sigmavae.SigmaVAE.denoise` or
:meth:`~sklearn_sigmavae.SigmaVAE.posterior` is an entry that is not there, whichever
they are in each row. The model itself is fitted to complete rows. Here it stands beside
scikit-learn's imputers, which are given the same rows to learn from.
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
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from sklearn_sigmavae import SigmaVAE

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

vae = SigmaVAE(16, sigma=2.0, max_iter=50, random_state=0).fit(X_train)

# %%
# Four ways to fill them
# ----------------------
#
# ``denoise`` looks for the codes whose image explains the pixels that are there, and
# draws that image. ``noise_scale=vae.sigma_`` says that these pixels carry no noise but
# that of the model. :class:`~sklearn.impute.SimpleImputer` takes the mean of the
# column, :class:`~sklearn.impute.KNNImputer` that of the five nearest training images.
#
# :class:`~sklearn.impute.IterativeImputer` predicts each column from the others, in
# rounds. It needs some care: fitted to complete rows it makes a single round, whose
# predictions trust the column means that stand for other gaps. So it sees the training
# images twice, complete and with gaps of up to 80 %. A ridge regression for each column
# is faster than its default and here as good.


def fit_imputers(X_train):
    """scikit-learn's imputers, each fitted to complete rows."""
    rng = np.random.default_rng(1)
    gaps = rng.random(X_train.shape) < rng.uniform(0, 0.8, (len(X_train), 1))
    with_gaps = np.vstack([X_train, np.where(gaps, np.nan, X_train)])
    iterative = IterativeImputer(Ridge(), random_state=0)
    with warnings.catch_warnings():
        # Its ten rounds are not enough for its tolerance, but more do not help.
        warnings.simplefilter("ignore", ConvergenceWarning)
        iterative.fit(with_gaps)
    return {
        "SimpleImputer": SimpleImputer().fit(X_train),
        "KNNImputer": KNNImputer().fit(X_train),
        "IterativeImputer": iterative,
    }


def fill(model, X):
    """Rows of X, with what the model puts in the place of NaN."""
    if not isinstance(model, SigmaVAE):
        return model.transform(X)
    return np.where(np.isnan(X), model.denoise(X, noise_scale=model.sigma_), X)


models = fit_imputers(X_train) | {"SigmaVAE": vae}

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
    "SigmaVAE": {"color": "#0072B2", "marker": "o"},
}


def errors_by_fraction(models, X):
    """Error of each model at each fraction of entries missing."""
    errors = {name: [] for name in STYLES}
    for fraction in FRACTIONS:
        gaps = np.random.default_rng(0).random(X.shape) < fraction
        for name in STYLES:
            filled = fill(models[name], np.where(gaps, np.nan, X))
            errors[name].append(np.sqrt(np.square(filled - X)[gaps].mean()))
    return errors


tumours = load_breast_cancer().data
table_train, table_test = train_test_split(tumours, random_state=0)
scaler = StandardScaler().fit(table_train)
table_train, table_test = scaler.transform(table_train), scaler.transform(table_test)
table_models = fit_imputers(table_train)
table_models["SigmaVAE"] = SigmaVAE(15, sigma=0.3, max_iter=50, random_state=0)
table_models["SigmaVAE"].fit(table_train)

panels = {
    "Digits": (models, X_test, "grey levels"),
    "Breast cancer": (table_models, table_test, "standard deviations"),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for ax, (title, (fitted, rows, unit)) in zip(axes, panels.items(), strict=True):
    print(f"{title + ', ' + unit:<34}" + "".join(f"{f:>7.0%}" for f in FRACTIONS))
    for name, errors in errors_by_fraction(fitted, rows).items():
        ax.plot(100 * FRACTIONS, errors, label=name, **STYLES[name])
        print(f"{name:<34}" + "".join(f"{error:>7.2f}" for error in errors))
    ax.set(title=title, xlabel="entries missing (%)", ylabel=f"error ({unit})")
    ax.set(xticks=100 * FRACTIONS, ylim=(0, None))
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False, loc="lower right")
plt.show()

# %%
# On digits SigmaVAE has the smallest error while most of the pixels are there; with
# half of them missing the nearest neighbours draw level, and with 70 % they are ahead.
# On the table SigmaVAE and IterativeImputer draw while gaps are few, and
# IterativeImputer is the simpler choice; with more gaps SigmaVAE is ahead here, though
# not on every split of these rows. So try both, on gaps like yours.
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

print(f"{'':<18}{'error':>7}{'read right':>12}")
print(f"{'complete images':<18}{'':>7}{classifier.score(X_test, y_test):>12.1%}")
for name, images in completed.items():
    error = np.sqrt(np.square(images - X_test)[:, lower].mean())
    print(f"{name:<18}{error:>7.2f}{classifier.score(images, y_test):>12.1%}")

# %%
# Here the nearest neighbours have the smallest error, and what they draw is read at
# least as well as what SigmaVAE draws.
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
