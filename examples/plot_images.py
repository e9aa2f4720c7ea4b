"""
Images: reconstructions, samples, and a walk
============================================

:class:`~sklearn_sigmavae.SigmaVAE` takes images as they are, an array of shape
``(n, H, W)`` or ``(n, H, W, C)``, and gives images back. Here it learns handwritten
digits of 8 x 8 pixels with a convolutional network.
"""

# %%
# Real images, and one fit
# ------------------------
#
# The grey levels go from 0 to 16, and ``sigma`` is in their units: differences of
# less than 1.5 levels are noise. ``network="conv"`` would be the same with the default
# parameters of :class:`~sklearn_sigmavae.networks.Conv`, for larger images. Fewer
# epochs than by default do here.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_sigmavae import LatentSpaceDisplay, ReconstructionDisplay, SigmaVAE
from sklearn_sigmavae.networks import Conv

X, y = load_digits().images, load_digits().target
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
print(f"{X_train.shape} {X_train.dtype}")

vae = SigmaVAE(16, sigma=1.5, network=Conv((32, 64)), max_iter=40, random_state=0)
vae.fit(X_train)
print(f"held-out bound: {vae.score(X_test):.1f} nats an image")

# %%
# What 16 numbers keep of an image
# --------------------------------
#
# ``transform`` gives codes of shape ``(n, 16)``, ``inverse_transform`` images.

one_of_each = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
images = X_test[one_of_each]
codes = vae.transform(images)
print(f"{images.shape} -> {codes.shape} -> {vae.inverse_transform(codes).shape}")
ReconstructionDisplay.from_estimator(vae, images, n_images=10, cmap="gray_r")

# %%
# Samples
# -------
#
# ``sample`` draws codes from the prior and decodes them. With ``add_noise`` it draws
# what the model says a noisy observation looks like, the density that ``score`` scores.


def show(rows, title):
    """Draw named rows of images, all on the scale of the data."""
    n_columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows),
        n_columns,
        figsize=(0.75 * n_columns + 1.4, 0.75 * len(rows) + 0.5),
        squeeze=False,
    )
    for (name, images), row_axes in zip(rows.items(), axes, strict=True):
        for image, ax in zip(images, row_axes, strict=True):
            ax.imshow(image, cmap="gray_r", vmin=0, vmax=16)
            ax.set(xticks=[], yticks=[])
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    figure.tight_layout(pad=0.4)


show(
    {
        "clean": vae.sample(10, random_state=1),
        "with noise": vae.sample(10, add_noise=True, random_state=1),
    },
    "Digits that nobody wrote",
)

# %%
# A walk through the latent space
# -------------------------------
#
# Codes between those of two images decode to images between them.

steps = np.linspace(0, 1, 10)[:, None]
walks = {}
for start, end in ((0, 6), (1, 4), (3, 8), (9, 7)):
    path = (1 - steps) * codes[start] + steps * codes[end]
    walks[f"{start} to {end}"] = vae.inverse_transform(path)
show(walks, "From one digit to another")

# %%
# Along the components that carry most
# ------------------------------------
#
# ``kl_divergence`` tells how many nats each component knows of each image.
# :class:`~sklearn_sigmavae.LatentSpaceDisplay` walks along those that know most, from
# -3 to 3 around the mean image of the model, and draws where the images lie.

display = LatentSpaceDisplay.from_estimator(
    vae, X_test, y_test, kind="traversal", cmap="gray_r"
)
display.plot()
plt.show()

# sphinx_gallery_thumbnail_number = 4
