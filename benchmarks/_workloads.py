"""What is trained: data, a model and the length of its training."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from _data import load_mnist

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae.networks import MLP

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Workload:
    """Data, a model and the length of its training.

    Attributes
    ----------
    load : callable
        Returns the training data and the held-out data, which may be None.
    """

    load: Callable
    sigma: float
    hidden: tuple[int, ...]
    n_components: int
    n_epochs: int
    n_threads: int
    batch_size: int = 128
    activation: str = "silu"
    # For the time to quality alone: what SigmaVAE is given beside its size.
    params: dict = field(default_factory=dict)

    def networks(self, n_features):
        """Encoder and decoder of SigmaVAE without the linear path."""
        recipe = MLP(self.hidden, self.activation)
        return (
            recipe.encoder((n_features,), self.n_components),
            recipe.decoder(self.n_components, (n_features,)),
        )

    def vae(self, **params):
        """SigmaVAE of the same size, with its own defaults for the rest."""
        return SigmaVAE(
            self.n_components,
            sigma=self.sigma,
            hidden_layer_sizes=self.hidden,
            early_stopping=False,
            device="cpu",
            **params,
        )

    def plain_vae(self, **params):
        """SigmaVAE with the network and the optimisation of the other competitors."""
        return self.vae(
            linear_path=False,
            init="random",
            activation=self.activation,
            batch_size=self.batch_size,
            learning_rate=LEARNING_RATE,
            lr_schedule="constant",
            **params,
        )

    def describe(self, X):
        """What all competitors have in common, in words."""
        return (
            f"{len(X)} x {X.shape[1]}, hidden {self.hidden}, {self.n_components} "
            f"components, {self.n_threads} thread" + "s" * (self.n_threads > 1)
        )


@cache
def load_images():
    """All of MNIST, training images first, in [0, 1]."""
    X_train, _, X_test, _ = load_mnist()
    return np.concatenate([X_train, X_test]).astype(np.float32) / 255
