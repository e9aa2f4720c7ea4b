"""
Anomaly scores, and where likelihood misleads
=============================================

A model of normal rows finds new rows likely or unlikely:
:meth:`~sklearn_sigmavae.SigmaVAE.score_samples` gives the log-likelihood of each, and
the lowest are the anomalies. Here handwritten digits of nine classes are normal, and
the tenth has never been seen. With settings chosen on some digits, and counted on the
others, a mixture of Gaussians is the best detector, and nearest neighbors are second;
:class:`~sklearn_sigmavae.SigmaVAE` follows, ahead of the linear model. The
last sections show anomalies that likelihood takes for normal.
"""

# %%
# Ten problems, five detectors
# ----------------------------
#
# Each digit is the unseen one once. Detectors are fitted to three quarters of the other
# images, and score the last quarter and all images of the unseen digit.
#
# Each detector has a few settings to choose from. The choice is made on the problems
# where a digit from 0 to 4 is unseen, and the problems with 5 to 9 count. Without
# anomalies to try, likelihood is what remains, and for
# :class:`~sklearn.decomposition.PCA` and :class:`~sklearn_sigmavae.SigmaVAE` it asks
# for more components. The more components, the better a model also restores what it has
# never seen. A ``sigma`` below one grey level would mean nothing.

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import RocCurveDisplay, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import ParameterGrid, train_test_split
from sklearn.neighbors import LocalOutlierFactor

from sklearn_sigmavae import SigmaVAE

X, y = load_digits(return_X_y=True)  # 8 x 8 pixels, grey levels from 0 to 16
detectors = {
    "GaussianMixture": (
        GaussianMixture(random_state=0),
        {"n_components": [10, 20, 40], "reg_covar": [1.0, 3.0, 10.0]},
    ),
    "LocalOutlierFactor": (
        LocalOutlierFactor(novelty=True),
        {"n_neighbors": [3, 5, 10, 20]},
    ),
    "SigmaVAE": (
        SigmaVAE(
            hidden_layer_sizes=(64,),
            learning_rate=8e-3,
            max_iter=20,
            random_state=0,
        ),
        {"n_components": [4, 8, 16], "sigma": [1.0, 2.0, 3.0]},
    ),
    "PCA": (PCA(), {"n_components": [4, 8, 12, 16, 24, 32]}),
    "IsolationForest": (
        IsolationForest(max_samples=1.0, random_state=0),
        {"max_features": [0.5, 1.0]},
    ),
}


def split(unseen):
    """Normal images to train on, images to score, and which of these are unseen."""
    train, normal = train_test_split(X[y != unseen], random_state=0)
    anomalies = X[y == unseen]
    is_anomaly = np.repeat([0, 1], [len(normal), len(anomalies)])
    return train, np.concatenate([normal, anomalies]), is_anomaly


# %%
# All five have ``score_samples``, high for normal rows. The area under the ROC curve
# (AUC) is the share of pairs, of an unseen digit and a normal image, in which the
# unseen one scores lower.

problems = [split(unseen) for unseen in range(10)]


def solve(detector, problem):
    """Fit a detector to normal images; return it and its AUC on the others."""
    train, images, is_anomaly = problem
    detector = clone(detector).fit(train)
    return detector, roc_auc_score(is_anomaly, -detector.score_samples(images))


areas = {}
fitted = {1: {}, 4: {}}  # by unseen digit, then by detector
print(f"{'AUC, unseen 5 to 9':<20}{'mean':>6}{'lowest':>8}  settings, by unseen 0 to 4")
for name, (detector, grid) in detectors.items():
    best = None
    for params in ParameterGrid(grid):
        candidate = clone(detector).set_params(**params)
        solved = [solve(candidate, problem) for problem in problems[:5]]
        mean = np.mean([area for _, area in solved])
        if best is None or mean > best[0]:
            best = mean, params, candidate, solved
    _, params, candidate, solved = best
    solved += [solve(candidate, problem) for problem in problems[5:]]
    for unseen, models in fitted.items():
        models[name] = solved[unseen][0]
    areas[name] = [area for _, area in solved]
    counted = areas[name][5:]
    settings = ", ".join(f"{key}={value:g}" for key, value in params.items())
    print(f"{name:<20}{np.mean(counted):>6.3f}{min(counted):>8.3f}  {settings}")

# %%
# Who wins
# --------
#
# The mixture does, by mean and by lowest AUC: digits come in classes, and a few dozen
# Gaussians are a good description of nine of them.
# :class:`~sklearn.neighbors.LocalOutlierFactor` is second, and has one number to
# choose. :class:`~sklearn_sigmavae.SigmaVAE` is third. What its networks add shows
# beside PCA, the linear model. To the left is a hard digit: a one is a stroke, which
# other digits have too.

lines = cycler(
    color=["#0072B2", "#009E73", "#D55E00", "#CC79A7", "#767676"],
    linestyle=["--", "-.", "-", ":", (0, (5, 1, 1, 1))],
)
figure, (left, right) = plt.subplots(
    1, 2, figsize=(9.5, 4.3), layout="constrained", width_ratios=[1, 1.25]
)
left.set_prop_cycle(lines)
right.set_prop_cycle(lines + cycler(marker="s^oDv"))
_, images, is_anomaly = problems[1]
for name, detector in fitted[1].items():
    scores = detector.score_samples(images)
    RocCurveDisplay.from_predictions(is_anomaly, -scores, name=name, ax=left)
    right.plot(areas[name], linewidth=1)
left.set(
    title="Ones, by models of the other digits",
    xlabel="share of normal images below a threshold",
    ylabel="share of ones below it",
)
left.legend(fontsize="small", loc="lower right")
right.axvspan(-0.5, 4.5, color="0.93", zorder=0)
right.set(
    title="Each digit; settings by those in grey",
    xlabel="unseen digit",
    ylabel="AUC",
    xticks=range(10),
)
for ax in (left, right):
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)

# %%
# The least likely of normal images
# ---------------------------------
#
# Not only new classes score low. These are held-out images of the nine classes, by a
# model that has not seen a four: first the least likely, then those in the middle.
# Below each is what its code restores, and its score in nats.

train, images, is_anomaly = problems[4]
vae = fitted[4]["SigmaVAE"]
normal, fours = images[is_anomaly == 0], images[is_anomaly == 1]
scores = vae.score_samples(normal)
order = np.argsort(scores)
middle = len(order) // 2


def show(rows, title):
    """Draw eight images a row, each with what its code restores, and its score."""
    figure, axes = plt.subplots(
        2 * len(rows),
        8,
        figsize=(8, 1.9 * len(rows) + 0.6),
        layout="constrained",
    )
    for (name, shown), (above, below) in zip(
        rows.items(), axes.reshape(-1, 2, 8), strict=True
    ):
        shown = shown[:8]
        restored = vae.inverse_transform(vae.transform(shown))
        for column, score in enumerate(vae.score_samples(shown)):
            for ax, image in (
                (above[column], shown[column]),
                (below[column], restored[column]),
            ):
                ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
                ax.set(xticks=[], yticks=[])
            below[column].set_xlabel(f"{score:.0f}")
        for ax, label in ((above[0], name), (below[0], "restored")):
            ax.set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title)


show(
    {
        "least likely": normal[order],
        "in the middle": normal[order[middle:]],
        "fours, unseen": fours,
    },
    "Held-out images, and their log-likelihood in nats",
)

# %%
# Where likelihood misleads
# -------------------------
#
# Likelihood asks how near an image is to one that the model can make, not whether it
# is typical. What is plain is near: washed out, halfway to the mean of the training
# images, nearly every image scores higher than it did.

mean_image = train.mean(axis=0, keepdims=True)
washed_out = 0.5 * (normal + mean_image)
higher = vae.score_samples(washed_out) > scores
print(f"{100 * higher.mean():.0f} % of {len(normal)} images score higher washed out")
print(
    f"{100 * (scores < vae.score(mean_image)).mean():.0f} % score below the mean image"
)
show(
    {"in the middle": normal[order[middle:]], "washed out": washed_out[order[middle:]]},
    "The less there is to see, the likelier",
)

# %%
# That is not a fault of networks: for three of the five the AUC of washed-out against
# whole images is below one half, worse than chance, and ``GaussianMixture`` and
# ``LocalOutlierFactor`` do little better. Images of half the
# contrast, faded towards white, are farther from all others, and all five find most of
# them.

is_spoilt = np.repeat([0, 1], len(normal))
print(f"{'AUC against whole images':<26}{'washed out':>11}{'half contrast':>15}")
for name, detector in fitted[4].items():
    print(f"{name:<26}", end="")
    for spoilt, width in ((washed_out, 11), (0.5 * normal, 15)):
        both = detector.score_samples(np.concatenate([normal, spoilt]))
        print(f"{roc_auc_score(is_spoilt, -both):>{width}.3f}", end="")
    print()

# %%
# So look at both ends of the histogram: rows that are far too likely are suspect too.
# And put beside the score what you know yourself; the contrast of an image is one line
# of NumPy.

figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
ax.set_prop_cycle(cycler(color=["#0072B2", "#D55E00", "#009E73"]))
bins = np.linspace(np.quantile(scores, 0.02), vae.score(mean_image), 50)
for name, shown, style in (
    ("normal", normal, {"histtype": "stepfilled", "alpha": 0.35}),
    ("fours, unseen", fours, {"histtype": "step"}),
    ("normal, washed out", washed_out, {"histtype": "step", "linestyle": "--"}),
):
    ax.hist(
        vae.score_samples(shown),
        bins,
        density=True,
        linewidth=1.8,
        label=name,
        **style,
    )
ax.set(xlabel="log-likelihood (nats)", ylabel="density (1/nat)", title="What is likely")
ax.legend(loc="upper left")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
