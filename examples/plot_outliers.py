"""
Which rows are odd, and in which column
=======================================

:class:`~sklearn_sigmavae.SigmaVAEOutlierDetector` finds rows that its model takes for
unlikely, and :meth:`~sklearn_sigmavae.SigmaVAEOutlierDetector.score_features` says
which of their columns make them so. Here a table gets wrong entries, each of which is
an ordinary value of its column; what is odd is that it does not go with the rest of the
row. A Gaussian model, if asked the right question, finds more of these rows.
"""

# %%
# A table with wrong entries
# --------------------------
#
# Measurements of 569 tumors. In one row of twenty an entry is replaced by that of
# another row, as if two lines of a form had been mixed up.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler

from sklearn_sigmavae import SigmaVAEOutlierDetector

table, _ = load_breast_cancer(return_X_y=True, as_frame=True)


def spoil(table, seed):
    """A copy of a table with wrong entries, and the rows and columns of these."""
    rng = np.random.default_rng(seed)
    n_rows, n_columns = table.shape
    rows = rng.choice(n_rows, n_rows // 20, replace=False)
    columns = rng.integers(n_columns, size=len(rows))
    values = table.to_numpy(copy=True)
    values[rows, columns] = values[rng.integers(n_rows, size=len(rows)), columns]
    return pd.DataFrame(values, columns=table.columns), rows, columns


spoilt, rows, columns = spoil(table, seed=0)

# %%
# Five lines
# ----------
#
# By default the detector scales the columns, finds the noise on held-out rows, and
# takes for outliers what lies below the lower fence of Tukey's box plot of the scores.

detector = SigmaVAEOutlierDetector(random_state=0)
kind = detector.fit_predict(spoilt)
scores = detector.score_samples(spoilt)
print(f"{(kind == -1).sum()} outliers, of which {(kind[rows] == -1).sum()} were spoilt")

# %%
# Why
# ---
#
# The scores of features are in nats: what each entry adds to the log-likelihood of its
# row. Of the spoilt rows here are those that are least likely, with the two columns
# that cost them most beside what a column has in the median.

reasons = pd.DataFrame(detector.score_features(spoilt), columns=table.columns)
cost = reasons.median() - reasons
print(f"{'row':>4} {'spoilt column':<24}two most costly columns, nats")
for i in np.argsort(scores[rows])[:8]:
    worst = cost.loc[rows[i]].nlargest(2)
    named = ", ".join(f"{name} {nats:.0f}" for name, nats in worst.items())
    print(f"{rows[i]:>4} {table.columns[columns[i]]:<24}{named}")

# %%
# The same of the first of these rows, as a picture: bars are the nats that its entries
# cost, and numbers what the entries are, in standard deviations from the mean of their
# column. By itself the entry that is wrong would hardly be noticed.

first = rows[np.argmin(scores[rows])]
deviations = StandardScaler().fit_transform(spoilt)[first]
worst = cost.loc[first].nlargest(8)[::-1]
wrong = table.columns[columns[list(rows).index(first)]]
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
colors = ["#D55E00" if name == wrong else "#0072B2" for name in worst.index]
bars = ax.barh(worst.index, worst, color=colors)
labels = [f"{deviations[table.columns.get_loc(name)]:+.1f} std" for name in worst.index]
ax.bar_label(bars, labels, padding=3)
ax.set(xlabel="cost beside the median of the column (nats)", title=f"Row {first}")
ax.margins(x=0.15)
ax.spines[["top", "right"]].set_visible(False)

# %%
# Beside others
# -------------
#
# The area under the ROC curve of spoilt against other rows, and how often the column
# that is named first is the one that was spoilt, over three tables that are spoilt in
# different places. All have their default settings. The best way asks for just what was
# done here, one wrong entry in a row: a normal distribution gives the mean and the
# standard deviation of each entry given all others, and the entry that is the most
# standard deviations off counts. The likelihood of a row comes next. It finds rows that
# are odd in other ways too, and as
# often as the first way it names the right column.
# :class:`~sklearn.ensemble.IsolationForest` hardly sees that entries do not go
# together.


def by_conditional_normal(table):
    """Scores of rows, and of entries: minus standard deviations, given the others."""
    rows = StandardScaler().fit_transform(table)
    precision = LedoitWolf().fit(rows).precision_
    features = -np.abs(rows @ precision) / np.sqrt(np.diag(precision))
    return features.min(axis=1), features


def by_model(table):
    """Scores of rows and of entries by SigmaVAE."""
    detector = SigmaVAEOutlierDetector(random_state=0).fit(table)
    features = detector.score_features(table)
    return detector.score_samples(table), features - np.median(features, axis=0)


def by_column(table):
    """The same of each column by itself."""
    features = -np.abs(StandardScaler().fit_transform(table))
    return features.min(axis=1), features


def by_neighbors(table):
    """Scores of rows by LocalOutlierFactor."""
    rows = StandardScaler().fit_transform(table)
    return LocalOutlierFactor().fit(rows).negative_outlier_factor_, None


def by_forest(table):
    """Scores of rows by IsolationForest."""
    return IsolationForest(random_state=0).fit(table).score_samples(table), None


ways = {
    "normal, given the others": by_conditional_normal,
    "SigmaVAEOutlierDetector": by_model,
    "LocalOutlierFactor": by_neighbors,
    "IsolationForest": by_forest,
    "each column by itself": by_column,
}
tables = [spoil(table, seed) for seed in range(3)]
print(f"{'':<26}{'AUC':>6}{'column found':>14}")
for name, way in ways.items():
    areas, found = [], []
    for spoilt, rows, columns in tables:
        scores, features = way(spoilt.to_numpy())
        areas.append(roc_auc_score(np.isin(np.arange(len(spoilt)), rows), -scores))
        if features is not None:
            found.append(np.mean(features[rows].argmin(axis=1) == columns))
    share = f"{np.mean(found):.0%}" if found else ""
    print(f"{name:<26}{np.mean(areas):>6.2f}{share:>14}")
plt.show()
