"""The fitted model, which training and files both return."""

from dataclasses import dataclass

import numpy as np
from skorch import NeuralNet
from skorch.history import History

from ..noise import NoiseModel
from .vae import VAE

# Attributes of a fitted model that estimators have too, with a trailing underscore.
OUTCOME = (
    "n_iter",
    "n_active_components",
    "reconstruction_error",
    "start_score",
    "best_epoch",
)


@dataclass(eq=False)
class FittedModel:
    """A trained model, and what is known of its training.

    ``scale`` is that of the noise in internal units, ``sigma`` in the user's units and
    shape, ``beta`` the weight of the KL divergence that it was trained with.
    ``structure`` holds the parameters that shaped the module, for training that
    continues, ``remarks`` the warnings of the fit. Models from files have no ``net``.
    """

    module: VAE
    noise: NoiseModel
    scale: float | None
    sigma: float | np.ndarray | None
    beta: float
    structure: dict
    history: History
    n_iter: int
    n_active_components: int
    reconstruction_error: float
    start_score: float
    best_epoch: int
    remarks: tuple = ()
    net: NeuralNet | None = None

    def __getstate__(self):
        # Skorch pickles tensors by itself: the module must stay that of the net.
        shared = {} if self.net is None else {"module": None, "history": None}
        return vars(self) | shared

    def __setstate__(self, state):
        vars(self).update(state)
        if self.net is not None:
            self.module, self.history = self.net.module_, self.net.history
