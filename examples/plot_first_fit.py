"""
A first fit
===========

:class:`~sklearn_sigmavae.SigmaVAE` is used as scikit-learn's
:class:`~sklearn.decomposition.PCA` is: ``fit`` it, ``transform`` rows into codes,
``inverse_transform`` the codes into rows, and ``score`` it. This page does these on
handwritten digits, draws digits that nobody wrote, and shows what ``sigma`` does.
"""

# %%
# Fit
# ---
#
# Each row of ``X`` is an image of 8 x 8 pixels, with grey levels from 0 to 16. Two
# numbers are yours to choose: ``n_components``, how many numbers may describe an image,
# and ``sigma``, the scale of the noise in the units of the data. Here differences of
# less than 1.5 grey levels do not count. ``image_shape`` is for the pictures below; a
# table of anything else needs none.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE

X = load_digits().data
X_train, X_test = train_test_split(X, random_state=0)

vae = SigmaVAE(n_components=16, sigma=1.5, image_shape=(8, 8), random_state=0)
vae.fit(X_train)

# %%
# Codes, and what they keep
# -------------------------
#
# ``transform`` turns the 64 pixels of an image into 16 numbers, and
# ``inverse_transform`` turns these into an image again.
# :class:`~sklearn_sigmavae.ReconstructionDisplay` does both, for images that training
# has not seen. The error is the root mean square over the pixels, in grey levels.

codes = vae.transform(X_test)
restored = vae.inverse_transform(codes)
print(f"{X_test.shape} -> {codes.shape} -> {restored.shape}")

ReconstructionDisplay.from_estimator(vae, X_test, n_images=10)
plt.show()

# %%
# A score in nats
# ---------------
#
# ``score`` is the mean log-likelihood of a row, or rather a lower bound on it. Training
# starts at probabilistic PCA with this ``sigma``, and ``max_iter=0`` keeps that start,
# whose score is exact. The difference is what the networks have added.
#
# It is not by how much SigmaVAE is better than :class:`~sklearn.decomposition.PCA`,
# which may choose its noise and its number of components too;
# :ref:`sphx_glr_auto_examples_plot_pca.py` compares the two with both tuned, and with a
# mixture of Gaussians, whose density of digits is better than either.

start = SigmaVAE(n_components=16, sigma=1.5, max_iter=0).fit(X_train)
print(f"linear start  {start.score(X_test):8.1f} nats an image")
print(f"trained       {vae.score(X_test):8.1f} nats an image, at least")

# %%
# Digits that nobody wrote
# ------------------------
#
# ``sample`` draws codes from the prior, a standard normal distribution, and decodes
# them. Some are plain digits, others something between two of them.

samples = vae.sample(10, random_state=0).reshape(-1, 8, 8)
figure, axes = plt.subplots(1, 10, figsize=(8, 0.9), layout="constrained")
for image, ax in zip(samples, axes, strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=16)
    ax.set_axis_off()
plt.show()

# %%
# What sigma does
# ---------------
#
# ``kl_divergence`` tells how many nats each component knows of each image. With a
# larger ``sigma`` more of the data counts as noise: each component knows less, and
# those with nothing left to tell are switched off. ``n_active_components_`` counts the
# others. So ``n_components`` may be generous, and ``sigma`` is the one to choose with
# care; :ref:`sphx_glr_auto_examples_plot_choose_sigma.py` shows how. Fewer epochs do
# for this second fit.

coarse = SigmaVAE(n_components=16, sigma=5.0, max_iter=50, random_state=0)
coarse.fit(X_train)

figure, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
components = np.arange(1, 17)
for model, offset, color in ((vae, -0.2, "#0072B2"), (coarse, 0.2, "#E69F00")):
    nats = np.sort(model.kl_divergence(X_test).mean(axis=0))[::-1]
    label = f"σ = {model.sigma:g}: {model.n_active_components_} of 16 are active"
    ax.bar(components + offset, nats, width=0.4, color=color, label=label)
    print(f"sigma = {model.sigma:g}: {nats.sum():.1f} nats in all")
ax.set(xlabel="component, in order of what it carries", ylabel="nats per image")
ax.set_xticks(components)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()
