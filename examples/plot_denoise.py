"""
Denoising at levels of noise never seen
=======================================

A :class:`~sklearn_sigmavae.SigmaVAE` is trained on clean rows, once. Its
:meth:`~sklearn_sigmavae.SigmaVAE.denoise` then restores noisy ones, at any level of
noise, which it is told or finds out. Here it stands beside the encoder alone, which
noise misleads, and beside the best linear filter.
"""

# %%
# One model, of clean images
# --------------------------
#
# Handwritten digits of 8 x 8 pixels, with grey levels from 0 to 16. Noise appears
# nowhere in the training. For time, epochs are fewer than the default.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_sigmavae import DenoisingDisplay, SigmaVAE

X = load_digits().data
X_train, X_test = train_test_split(X, random_state=0)

vae = SigmaVAE(16, sigma=2.0, image_shape=(8, 8), max_iter=40, random_state=0)
vae.fit(X_train)

# %%
# What it restores
# ----------------
#
# :class:`~sklearn_sigmavae.DenoisingDisplay` adds noise to images, restores them, and
# draws all. The errors are root mean squares over these images, in grey levels.
#
# At a scale of 12 the noise is twice as large as the pixels' own spread. What comes
# back is then blurred, and not always the right digit.

print(f"spread of the pixels: {X_train.std():.1f} grey levels")
DenoisingDisplay.from_estimator(vae, X_test, noise_scales=[3, 6, 12])
plt.show()

# %%
# Four ways, and six levels
# -------------------------
#
# - ``denoise(Y, noise_scale=s)`` is told the scale of the noise. It looks, row by row,
#   for the codes whose image explains the noisy one, with the decoder held fixed.
# - ``denoise(Y)`` estimates the scale from the noisy rows themselves.
# - ``inverse_transform(transform(Y))`` takes the encoder's word for the codes. It
#   has learnt from clean images only.
# - The Wiener filter is the best linear one: the posterior mean of a Gaussian with the
#   mean and covariance of the training data, at the true scale of the noise.

mean, covariance = X_train.mean(axis=0), np.cov(X_train.T)


def wiener_filter(Y, noise_scale):
    """Posterior mean of clean rows, were they Gaussian."""
    noise = noise_scale**2 * np.eye(len(covariance))
    return mean + (Y - mean) @ np.linalg.solve(covariance + noise, covariance)


ways = {
    "noisy, as it is": lambda Y, scale: Y,
    "encoder and decoder": lambda Y, scale: vae.inverse_transform(vae.transform(Y)),
    "Wiener filter": wiener_filter,
    "denoise, estimated": lambda Y, scale: vae.denoise(Y),
    "denoise, told": lambda Y, scale: vae.denoise(Y, noise_scale=scale),
}
scales = np.array([1, 2, 4, 6, 8, 12])
noise = np.random.default_rng(0).normal(size=X_test.shape)
errors = {name: [] for name in ways}
for scale in scales:
    Y = X_test + scale * noise
    for name, restore in ways.items():
        errors[name].append(np.sqrt(np.square(restore(Y, scale) - X_test).mean()))

print(f"{'noise':<20}" + "".join(f"{scale:>7}" for scale in scales))
print("-" * 62)
for name, values in errors.items():
    print(f"{name:<20}" + "".join(f"{value:>7.2f}" for value in values))

# %%
# The two curves of ``denoise`` lie on each other: to estimate the scale costs next to
# nothing. From a scale of 4 to one of 8 they are clearly below the linear filter.
#
# At both ends the filter is as good, or better. Where the noise is small, ``denoise``
# is held up by what 16 components cannot draw. At a scale of 1 it does more harm than
# good, and such images are better left as they are. Where the noise hides nearly all,
# both end near the mean image.

styles = {
    "noisy, as it is": {"color": "0.5", "linestyle": ":"},
    "encoder and decoder": {"color": "#CC79A7", "linestyle": "-.", "marker": "D"},
    "Wiener filter": {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    "denoise, estimated": {"color": "#56B4E9", "marker": "x", "markersize": 9},
    "denoise, told": {"color": "#0072B2", "marker": "o", "markersize": 4},
}
figure, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
for name, style in styles.items():
    ax.plot(scales, errors[name], label=name, **style)
ax.set(
    xlabel="scale of the noise (grey levels)",
    ylabel="error of what comes back (grey levels)",
    xticks=scales,
    ylim=(0, 6),
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
# How much noise was it?
# ----------------------
#
# :meth:`~sklearn_sigmavae.SigmaVAE.estimate_noise_scale` tells. It takes one scale for
# all rows, so 450 images with 64 pixels each settle it well, as long as the noise is
# not much less than the model's own error, ``reconstruction_error_``, which it has to
# tell the noise from.

print(f"the model's own error: {vae.reconstruction_error_:.2f} grey levels")
for scale in scales:
    estimate = vae.estimate_noise_scale(X_test + scale * noise)
    print(f"noise of {scale:>2}: estimated as {estimate:5.2f}")

# %%
# The same images, side by side
# -----------------------------
#
# The encoder draws sharp digits, at times the wrong ones. The filter blurs all alike;
# ``denoise`` blurs where the noise leaves it in doubt.

scale = 6
Y = X_test[:10] + scale * noise[:10]
rows = {"clean": X_test[:10]}
rows |= {name: ways[name](Y, scale) for name in ways if name != "denoise, told"}
tiles = np.stack(list(rows.values())).reshape(-1, 10, 8, 8)
margin = (0, 0), (0, 0), (1, 1), (1, 1)
tiles = np.pad(tiles, margin, constant_values=16)  # white
figure, ax = plt.subplots(figsize=(8.6, 3.5), layout="compressed")
ax.imshow(np.block([[*row] for row in tiles]), cmap="gray", vmin=0, vmax=16)
ax.set(xticks=[], yticks=10 * np.arange(len(rows)) + 4.5, yticklabels=rows)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
ax.set_title(f"Noise of scale {scale}")
plt.show()
