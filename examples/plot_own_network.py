"""
Your own network
================

A network is a recipe: an object with two methods that return plain
:class:`torch.nn.Module`. :class:`~sklearn_sigmavae.SigmaVAE` adds the linear path, so
that also your network starts at probabilistic PCA, trains it and scores it.
"""

# %%
# A residual network as a recipe
# ------------------------------
#
# The encoder's module maps ``(n, *input_shape)`` to ``(n, 2 * n_components)``, mean
# then log-variance; the decoder's maps ``(n, n_components)`` to ``(n, *output_shape)``.
# For images the shape is ``(C, H, W)``, as torch has it, whatever the order of your
# array. As a ``BaseEstimator`` the recipe is cloned by scikit-learn and its parameters
# can be searched.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, train_test_split
from torch import nn

from sklearn_sigmavae import SigmaVAE


class Block(nn.Module):
    """Two convolutions, added to what they were given."""

    def __init__(self, width):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x):
        return x + self.convolutions(x)


class ResidualNetwork(BaseEstimator):
    """Residual blocks at half the size of the image."""

    def __init__(self, width=16, n_blocks=1):
        self.width = width
        self.n_blocks = n_blocks

    def _blocks(self):
        return [Block(self.width) for _ in range(self.n_blocks)]

    def encoder(self, input_shape, n_components):
        n_channels, height, width = input_shape
        n_pixels = (height // 2) * (width // 2)
        return nn.Sequential(
            nn.Conv2d(n_channels, self.width, 2, stride=2),
            *self._blocks(),
            nn.Flatten(),
            nn.Linear(self.width * n_pixels, 2 * n_components),
        )

    def decoder(self, n_components, output_shape):
        n_channels, height, width = output_shape
        coarse = self.width, height // 2, width // 2
        return nn.Sequential(
            nn.Linear(n_components, int(np.prod(coarse))),
            nn.Unflatten(1, coarse),
            *self._blocks(),
            nn.ConvTranspose2d(self.width, n_channels, 2, stride=2),
        )


# %%
# The start is probabilistic PCA, whatever the network
# ----------------------------------------------------

X = load_digits().images
X_train, X_test = train_test_split(X, random_state=0)
params = {"n_components": 16, "sigma": 1.5, "random_state": 0}

start = SigmaVAE(**params, network=ResidualNetwork(), max_iter=0).fit(X_train)
linear = SigmaVAE(**params, hidden_layer_sizes=(), max_iter=0).fit(X_train)
print(f"residual network, before training: {start.score(X_test):.2f} nats")
print(f"probabilistic PCA at this sigma:   {linear.score(X_test):.2f} nats")

# %%
# Its parameters are searched like any others
# -------------------------------------------

search = GridSearchCV(
    SigmaVAE(**params, network=ResidualNetwork(), learning_rate=8e-3, max_iter=15),
    {"network__n_blocks": [0, 1, 2]},
    cv=3,
).fit(X_train)
for result, score in zip(
    search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
):
    print(f"{result}: {score:.2f} nats")
best = search.best_estimator_
print(f"the best, on held-out images: {best.score(X_test):.2f} nats")

# %%
# A network that does not fit says so before training
# ---------------------------------------------------


class Forgetful(ResidualNetwork):
    """Returns the means and forgets the variances."""

    def encoder(self, input_shape, n_components):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(n_components))


try:
    SigmaVAE(**params, network=Forgetful()).fit(X_train)
except ValueError as error:
    print(error)

# %%
# What it restores, beside PCA
# ----------------------------

pca = PCA(16).fit(X_train.reshape(-1, 64))
images = X_test[:10]
of_pca = pca.inverse_transform(pca.transform(images.reshape(-1, 64)))
rows = {
    "held out": images,
    "PCA": of_pca.reshape(-1, 8, 8),
    "residual network": best.inverse_transform(best.transform(images)),
}
figure, axes = plt.subplots(3, 10, figsize=(9, 2.6))
for (name, row), row_axes in zip(rows.items(), axes, strict=True):
    for image, ax in zip(row, row_axes, strict=True):
        ax.imshow(image, cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.tight_layout(pad=0.4)
plt.show()
