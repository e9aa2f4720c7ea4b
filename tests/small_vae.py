"""Small data, small estimators, recipes and callbacks that several tests share."""

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import nn

from sklearn_sigmavae import SigmaVAE

NOISE = 0.3


def low_rank_rows(n_samples=60, n_features=5, *, rank=2, noise=NOISE, seed=0):
    """Rows near a subspace, with isotropic Gaussian noise and a mean that is not 0."""
    rng = np.random.RandomState(seed)
    loadings = rng.standard_normal((rank, n_features))
    codes = rng.standard_normal((n_samples, rank))
    residual = noise * rng.standard_normal((n_samples, n_features))
    return 1.0 + codes @ loadings + residual


def curved_rows(n_samples=120, *, noise=0.05, seed=0):
    """Rows near a closed curve in four dimensions, which no linear model follows."""
    rng = np.random.RandomState(seed)
    angle = rng.uniform(0, 2 * np.pi, n_samples)
    curve = [np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)]
    return np.column_stack(curve) + noise * rng.standard_normal((n_samples, 4))


def small_vae(**params):
    """Estimator that trains in a few milliseconds."""
    defaults = {
        "n_components": 2,
        "sigma": NOISE,
        "hidden_layer_sizes": (8,),
        "batch_size": 16,
        "max_iter": 3,
        "device": "cpu",
        "random_state": 0,
    }
    return SigmaVAE(**{**defaults, **params})


class FactsOfRows:
    """As many rows as another has, as a criterion sees them in a dataset.

    ``outside`` is the rows' mean squared norm outside of the axes, by default zero.
    """

    log_volume = 7.0

    def __init__(self, rows, outside=0.0):
        self.n_rows, self.outside, self.device = len(rows), outside, torch.device("cpu")
        self.n_features = self.n_observed = rows.shape[1]

    def __len__(self):
        return self.n_rows


def weights(estimator):
    """Copy of all parameters and buffers."""
    state = estimator.module_.state_dict()
    return {name: value.clone() for name, value in state.items()}


def same_weights(a, b):
    """Whether two results of :func:`weights` are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Unchanged:
    """Context whose end checks that the fitted state of an estimator is the same."""

    def __init__(self, estimator):
        self.estimator = estimator
        self.attributes = self._fitted_attributes()
        self.is_fitted = hasattr(estimator, "net_")
        self.weights = weights(estimator) if self.is_fitted else {}
        self.n_epochs = len(estimator.history_) if self.is_fitted else 0

    def _fitted_attributes(self):
        params = self.estimator.get_params(deep=False)
        return {k: v for k, v in vars(self.estimator).items() if k not in params}

    def check(self):
        now = self._fitted_attributes()
        assert now.keys() == self.attributes.keys()
        assert all(now[name] is value for name, value in self.attributes.items())
        if self.is_fitted:
            assert same_weights(weights(self.estimator), self.weights)
            assert len(self.estimator.history_) == self.n_epochs

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.check()


def rows_of(history, *, skipped=("dur", "batches")):
    """History without what differs between equal fits, or what no file holds."""
    return [{k: v for k, v in row.items() if k not in skipped} for row in history]


def callback_of(estimator, cls):
    """The fit's own copy of a callback."""
    (found,) = [c for _, c in estimator.net_.callbacks_ if isinstance(c, cls)]
    return found


class DropoutNetwork(BaseEstimator):
    """Recipe whose training draws from torch's global random state."""

    def __init__(self, width=8, rate=0.5):
        self.width = width
        self.rate = rate

    def _network(self, n_in, n_out):
        return nn.Sequential(
            nn.Linear(n_in, self.width),
            nn.Tanh(),
            nn.Dropout(self.rate),
            nn.Linear(self.width, n_out),
        )

    def encoder(self, input_shape, n_components):
        return self._network(*input_shape, 2 * n_components)

    def decoder(self, n_components, output_shape):
        return self._network(n_components, *output_shape)


class BatchNormNetwork(BaseEstimator):
    """Recipe whose modules keep running statistics of the training batches."""

    def encoder(self, input_shape, n_components):
        (n_in,) = input_shape
        return self._network(n_in, 2 * n_components)

    def decoder(self, n_components, output_shape):
        (n_out,) = output_shape
        return self._network(n_components, n_out)

    def _network(self, n_in, n_out):
        layers = nn.Linear(n_in, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, n_out)
        return nn.Sequential(*layers)


class RecipeOfSample(BaseEstimator):
    """A custom recipe, which notes the shapes that it is asked for."""

    shapes = ()

    def encoder(self, input_shape, n_components):
        self.shapes = (*self.shapes, input_shape)
        (n_features,) = input_shape
        return nn.Sequential(
            nn.Linear(n_features, 8), nn.SiLU(), nn.Linear(8, 2 * n_components)
        )

    def decoder(self, n_components, output_shape):
        return nn.Sequential(
            nn.Linear(n_components, 8), nn.SiLU(), nn.Linear(8, *output_shape)
        )


class EpochRecorder(Callback):
    """Keeps what an epoch's end shows: weights, learning rate, sizes of datasets."""

    def on_train_begin(self, net, **kwargs):
        self.weights, self.learning_rates, self.sizes = [], [], []

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        state = net.module_.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})
        self.learning_rates.append(net.optimizer_.param_groups[0]["lr"])
        sizes = [None if d is None else len(d) for d in (dataset_train, dataset_valid)]
        self.sizes.append(tuple(sizes))


class Raiser(Callback):
    """Raises an exception at the end of an epoch, counted from 1."""

    def __init__(self, error, epoch=1):
        self.error = error
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise self.error
