"""
A classifier with few labels, and an ordinary pipeline
======================================================

Where images are many and labels few, a model of all images might help a classifier of
the few. Here 1347 digits train :class:`~sklearn_sigmavae.SigmaVAE`, and a logistic
regression gets the labels of 20 to 500 of them. The codes turn out to be worse features
than pixels. What helps is what they restore: the images, less what is rare in them. At
the end is the ordinary way, a pipeline and a search over its ``sigma``.
"""

# %%
# Features that need no labels
# ----------------------------
#
# All models here learn from the images alone. The noise scale of 4 grey levels is
# coarse: smaller differences between two images do not count.

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline

from sklearn_sigmavae import SigmaVAE

X, y = load_digits(return_X_y=True)  # 8 x 8 pixels, grey levels from 0 to 16
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

vae = SigmaVAE(
    16,
    sigma=4.0,
    hidden_layer_sizes=(128, 128),
    learning_rate=8e-3,
    max_iter=60,
    random_state=0,
).fit(X_train)
linear_start = SigmaVAE(16, sigma=4.0, max_iter=0).fit(X_train)


def restore(images, model=vae):
    """Images as their codes restore them."""
    return model.inverse_transform(model.transform(images))


features = {
    "pixels": lambda images: images,
    "codes of PCA": PCA(16).fit(X_train).transform,
    "codes of PCA, whitened": PCA(16, whiten=True).fit(X_train).transform,
    "codes of SigmaVAE": vae.transform,
    "restored by its start": lambda images: restore(images, linear_start),
    "restored by SigmaVAE": restore,
}

# %%
# The same classifier, and the same choices of labels
# ---------------------------------------------------
#
# Each number of labels is chosen at random ten times, all classes alike, and the
# classifier is scored on the same 450 held-out images.

N_LABELS = [20, 50, 100, 200, 500]
N_CHOICES = 10

accuracy = {}
for name, transform in features.items():
    Z_train, Z_test = transform(X_train), transform(X_test)
    accuracy[name] = np.zeros((len(N_LABELS), N_CHOICES))
    for i, n in enumerate(N_LABELS):
        for choice in range(N_CHOICES):
            Z, _, labels, _ = train_test_split(
                Z_train, y_train, train_size=n, stratify=y_train, random_state=choice
            )
            classifier = LogisticRegression(max_iter=3000).fit(Z, labels)
            accuracy[name][i, choice] = 100 * classifier.score(Z_test, y_test)

print(f"{'accuracy (%), labels':<24}" + "".join(f"{n:>7}" for n in N_LABELS))
for name, values in accuracy.items():
    print(f"{name:<24}" + "".join(f"{mean:>7.1f}" for mean in values.mean(axis=1)))

# %%
# What helps, and what does not
# -----------------------------
#
# To the left are means and standard deviations over the choices of labels. All features
# see the same choices, so the fair comparison is to the right: the gain over pixels,
# choice by choice, with standard errors.

lines = cycler(
    color=["#767676", "#009E73", "#CC79A7", "#0072B2", "#E69F00", "#D55E00"],
    marker=["s", "v", "D", "^", "x", "o"],
    linestyle=[":", (0, (5, 1, 1, 1)), "-.", "--", "--", "-"],
)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
for i, ((name, values), line) in enumerate(zip(accuracy.items(), lines, strict=True)):
    nudged = np.array(N_LABELS) * 1.03 ** (i - 2)  # so that bars do not overlap
    left.errorbar(
        nudged, values.mean(axis=1), values.std(axis=1), capsize=2, label=name, **line
    )
    if name == "pixels":
        right.axhline(0, color=line["color"], linestyle=line["linestyle"])
        continue
    gain = values - accuracy["pixels"]
    error = gain.std(axis=1, ddof=1) / np.sqrt(N_CHOICES)
    right.errorbar(nudged, gain.mean(axis=1), error, capsize=2, **line)
left.set(ylabel="accuracy (%)", title="Means and spreads")
left.legend(loc="lower right")
right.set(ylabel="gain over pixels (percentage points)", title="Choice by choice")
for ax in (left, right):
    ax.set_xscale("log")
    ax.set_xticks(N_LABELS, N_LABELS)
    ax.minorticks_off()
    ax.set_xlabel("labelled images")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)

# %%
# - **Codes** have the unit variance of the prior, in all components that are in use.
#   What matters little is as large as what matters much, and few labels cannot tell
#   which is which. PCA's codes lose as much by whitening.
# - **Restored images** are codes seen through the decoder: each component is as large
#   as its part in the image, and what an image does not share with others is gone. For
#   PCA that changes nothing, its restored images are a rotation of its codes.
#
# The gain is five points with 20 labels, and less than one with 500. It comes from the
# networks: what the linear start restores does as PCA's codes do. The classifier is at
# its defaults throughout.

shown = X_test[:10]
figure, axes = plt.subplots(2, 10, figsize=(8, 1.75), layout="constrained")
rows = {"held out": shown, "restored": restore(shown)}
for (name, images), row in zip(rows.items(), axes, strict=True):
    for image, ax in zip(images, row, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %%
# The ordinary way
# ----------------
#
# Where all rows have labels, :class:`~sklearn_sigmavae.SigmaVAE` is a step like any
# other, and scikit-learn's search lets the classifier judge ``sigma``. In each fold the
# pipeline learns the codes from that fold's training rows only.

small = SigmaVAE(16, hidden_layer_sizes=(64,), max_iter=25, random_state=0)
search = GridSearchCV(
    make_pipeline(small, LogisticRegression(max_iter=3000)),
    {"sigmavae__sigma": [1, 2, 4, 8]},
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
).fit(X_train, y_train)

results = search.cv_results_
print(f"{'sigma':>5}{'accuracy (%), three folds':>28}")
for sigma, mean, std in zip(
    results["param_sigmavae__sigma"],
    results["mean_test_score"],
    results["std_test_score"],
    strict=True,
):
    print(f"{sigma:>5}{100 * mean:>20.1f} +- {100 * std:.1f}")

# %%
# The refitted pipeline classifies held-out images; beside it are the same classifier on
# all pixels, and on codes of PCA, as many as a search in the same folds chose. With all
# labels there is nothing to gain here: pixels, and three times as many codes of PCA,
# are a little ahead.

on_pixels = LogisticRegression(max_iter=3000).fit(X_train, y_train)
on_pca = GridSearchCV(
    make_pipeline(PCA(), LogisticRegression(max_iter=3000)),
    {"pca__n_components": [8, 16, 24, 32, 48]},
    cv=StratifiedKFold(3, shuffle=True, random_state=0),
).fit(X_train, y_train)
print("accuracy on held-out images (%)")
for name, model in (
    ("64 pixels", on_pixels),
    (f"{on_pca.best_params_['pca__n_components']} codes of PCA", on_pca),
    (f"16 codes of SigmaVAE, sigma {search.best_params_['sigmavae__sigma']}", search),
):
    print(f"  {name:<32}{100 * model.score(X_test, y_test):.1f}")
plt.show()
