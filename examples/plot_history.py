"""
The training history, and callbacks
===================================

A fit leaves a row for each epoch in ``history_``: the bound of training rows and of
held-out rows, and the time. Callbacks, those of skorch or your own, add to it or step
in. Here a callback watches :class:`~sklearn_sigmavae.SigmaVAE` switch components off,
another lowers the learning rate, and three schedules are compared.
"""

# %%
# Where training starts
# ---------------------
#
# ``max_iter=0`` keeps the start: with ``init="pca"`` that is probabilistic PCA with
# noise of ``sigma``. The held-out rows are given here, as ``X_val``, so that all models
# have the same ones; without it ``fit`` takes a tenth of the rows at random.

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback, LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from sklearn_sigmavae import SigmaVAE

X = load_digits().data  # 8 x 8 pixels, grey levels from 0 to 16
X_rest, X_test = train_test_split(X, random_state=0)
X_train, X_val = train_test_split(X_rest, test_size=0.2, random_state=0)

vae = SigmaVAE(
    16,
    sigma=4.0,
    hidden_layer_sizes=(128, 128),
    learning_rate=8e-3,
    max_iter=60,
    random_state=0,
)
start = clone(vae).set_params(max_iter=0).fit(X_train, X_val=X_val)
print(f"held-out bound at the start: {start.score(X_val):.2f} nats per row")

# %%
# A callback of your own
# ----------------------
#
# skorch calls ``on_epoch_end`` after each epoch, with the net and the data.
# ``net.module_`` is the model as it is then; its ``encode`` gives mean and log-variance
# of the codes. ``dataset_valid.X`` are the held-out rows, in the principal coordinates
# that the module works in. What is recorded becomes a column of the history.
#
# Each fit works on copies of its callbacks, so do not look for results in the object
# that you passed: they are in ``history_``.


class CountComponents(Callback):
    """Records how many components know more than 0.01 nats of a held-out row."""

    def on_epoch_end(self, net, dataset_valid=None, **kwargs):
        with torch.no_grad():
            mean, log_var = net.module_.encode(dataset_valid.X)
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1)
        net.history.record("n_active", int((kl.mean(dim=0) > 0.01).sum()))


watched = clone(vae).set_params(callbacks=[CountComponents()])
watched.fit(X_train, X_val=X_val)

# %%
# The history
# -----------
#
# ``history_`` is a list of dictionaries with skorch's slicing: rows first, then the
# names of columns. ``train_loss`` and ``valid_loss`` are minus the bound, in nats per
# row, and ``valid_reconstruction`` and ``valid_kl`` the two terms of the second.
# ``train_loss`` is the mean over an epoch in which the weights change, with a draw for
# each row; ``valid_loss`` belongs to the weights at the end of the epoch. ``score``
# takes more draws, and improves the posteriors, so it is about 0.2 nats higher here.
# ``dur`` is the time of the epoch, in seconds, from skorch's ``EpochTimer``, which is
# always there.
#
# While it trains, ``verbose=1`` shows a bar with the last of these bounds. skorch's
# ``PrintLog`` stays silent here.

columns = ["epoch", "train_loss", "valid_loss", "valid_reconstruction", "valid_kl"]
columns += ["n_active", "dur"]
print("  ".join(columns))
for row in watched.history_[9::10, columns]:
    pairs = zip(columns, row, strict=True)
    print("  ".join(f"{value:>{len(name)}.4g}" for name, value in pairs))

# %%
# The picture: at first the nonlinear networks add to PCA, then they need fewer
# components than PCA for a better bound. The weights that are kept are those of the
# best held-out epoch, or of the start, if no epoch is better.


def history(model, name):
    """A column of the history."""
    return np.array(model.history_[:, name])


def tidy(*axes):
    """Epochs below, a light grid, no frames."""
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)


epochs = history(watched, "epoch")
bound = -history(watched, "valid_loss")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.plot(
    epochs, -history(watched, "train_loss"), "--", color="#E69F00", label="training"
)
left.plot(
    np.r_[0, epochs],
    np.r_[start.score(X_val), bound],
    color="#0072B2",
    label="held-out",
)
left.plot(0, start.score(X_val), "s", color="#0072B2", label="held-out, at PCA")
left.plot(epochs[bound.argmax()], bound.max(), "o", color="#D55E00", label="kept")
left.set(ylabel="bound (nats per row)", title="train_loss and valid_loss, negated")
left.legend(loc="lower right")
right.step(
    np.r_[0, epochs],
    np.r_[start.n_active_components_, history(watched, "n_active")],
    where="post",
    color="#009E73",
)
right.set(ylabel="components in use", title="n_active, by the callback", ylim=(0, 17))
tidy(left, right)

# %%
# Three schedules
# ---------------
#
# - ``"one_cycle"``, the default, warms up and falls to zero over all of ``max_iter``.
#   How many epochs there are must be said beforehand.
# - ``"constant"`` goes on until the held-out bound has not improved by ``tol`` nats for
#   ``n_iter_no_change`` epochs. ``max_iter`` may be generous.
# - skorch's ``LRScheduler`` brings torch's schedulers. Here ``ReduceLROnPlateau``
#   divides a constant rate by three whenever three epochs bring nothing.

plateau = LRScheduler(
    policy=ReduceLROnPlateau, monitor="valid_loss", patience=3, factor=1 / 3
)
constant = clone(vae).set_params(lr_schedule="constant", max_iter=200)
models = {
    "one_cycle": watched,
    "constant": clone(constant).fit(X_train, X_val=X_val),
    "constant, with ReduceLROnPlateau": clone(constant)
    .set_params(callbacks=[plateau])
    .fit(X_train, X_val=X_val),
}
print(f"{'':<34}{'epochs':>8}{'kept':>6}{'seconds':>9}{'held-out':>10}{'test':>9}")
for name, model in models.items():
    losses = history(model, "valid_loss")
    print(
        f"{name:<34}{model.n_iter_:>8}{losses.argmin() + 1:>6}"
        f"{history(model, 'dur').sum():>9.1f}"
        f"{model.score(X_val):>10.2f}{model.score(X_test):>9.2f}"
    )

# %%
# The held-out bound chose the epoch, so the test rows are the fair judge. A constant
# rate is soon ahead, and then too high to settle: a smaller one would get farther, and
# take longer. The cycle and the rate that falls on plateaus end less than 0.1 nats
# apart, which is a draw; the cycle needs fewer epochs, and the other need not know how
# many.

lines = cycler(color=["#0072B2", "#D55E00", "#009E73"], linestyle=["-", "--", "-."])
figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
for (name, model), line in zip(models.items(), lines, strict=True):
    ax.plot(history(model, "epoch"), -history(model, "valid_loss"), label=name, **line)
ax.set(ylabel="held-out bound (nats per row)", title="Three schedules")
ax.legend(loc="lower right")
tidy(ax)
plt.show()
