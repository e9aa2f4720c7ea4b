"""The noise models: each density is written once, for loss, score and sampling.

A noise model is the distribution of the noisy variable given the decoder's output.
It is a small clonable object, so that its parameters can be searched over
(``noise__exponent``). To add one, subclass :class:`NoiseModel` and, if it deserves a
short name, add a line to ``ALIASES``.
"""

import math
from abc import ABCMeta, abstractmethod
from numbers import Real

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import StrOptions, validate_params
from torch.nn import functional as F

__all__ = [
    "BernoulliNoise",
    "GeneralizedNormalNoise",
    "NoiseModel",
    "equivalent_beta",
]


class NoiseModel(BaseEstimator, metaclass=ABCMeta):
    """Distribution of an observation given its location, independent over features.

    It is the p(x|z) of a variational autoencoder [1]_. A subclass has its density,
    :meth:`energy` and :meth:`log_normalizer`, and draws from it, :meth:`sample`.
    Training, scores, searches and the refinement of noisy rows need no more;
    ``sigma="mle"``, ``noise_scale="estimate"`` and
    :func:`~sklearn_sigmavae.sigma_path` need an ``exponent``.

    Attributes
    ----------
    has_scale : bool
        Whether the density has a scale, the estimator's ``sigma``. Without one the
        data is used as it is, neither centred nor scaled.
    exponent : float or None
        The p of densities whose energy is a power, ``scale ** -p``. It makes β and σ
        exchangeable (:func:`equivalent_beta`) and gives the scale of maximum
        likelihood a closed form; None for densities that have neither.
    variance_factor : float
        Variance of the noise at ``scale=1``, in the squared unit of the scale. It sets
        where training and refinement start, so where it is infinite any number near
        the square of the density's width will do.

    See Also
    --------
    GeneralizedNormalNoise : The Gaussian, the Laplace, and what lies between.
    BernoulliNoise : The vanilla variational autoencoder.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.

    Examples
    --------
    Noise with heavier tails than the Laplace, as a model of your own:

    >>> import math
    >>> import numpy as np
    >>> import torch
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import NoiseModel, SigmaVAE
    >>> class CauchyNoise(NoiseModel):
    ...     def energy(self, x, location, scale):
    ...         return torch.log1p(((x - location) / scale) ** 2).sum(-1)
    ...
    ...     def log_normalizer(self, scale):
    ...         return math.log(math.pi * scale)
    ...
    ...     def sample(self, location, scale, random_state):
    ...         noise = random_state.standard_cauchy(np.shape(location))
    ...         return location + scale * noise
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.3, noise=CauchyNoise(), max_iter=3)
    >>> vae.fit_transform(X).shape
    (150, 2)
    """

    has_scale = True
    exponent = None
    variance_factor = 1.0

    @abstractmethod
    def energy(self, x, location, scale):
        """Part of minus the log-density that depends on `x` and `location`.

        All entries are alike: it is a function of each one, summed over the last
        dimension, whatever that holds. Training lays rows end to end, and rows with
        gaps come one feature at a time.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations; their leading dimensions broadcast.
        scale : float or torch.Tensor of a shape that broadcasts with `x`
            Scale of the noise, in the units of `x`; None for noise without one.

        Returns
        -------
        energy : torch.Tensor of shape (...)
            Sum over features, in nats.

        Raises
        ------
        RuntimeError
            If the shapes do not broadcast.

        Examples
        --------
        Twice as far is four times the energy, for Gaussian noise:

        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> GeneralizedNormalNoise().energy(x, torch.zeros(2), 0.5).round()
        tensor([2., 8.])
        """

    @abstractmethod
    def log_normalizer(self, scale):
        """Other part of minus the log-density, of one feature, in nats.

        Parameters
        ----------
        scale : float
            Scale of the noise, in the units of the observations; None for noise
            without one. Noise models with an ``exponent`` get a torch.Tensor, of any
            shape, while ``sigma="mle"`` trains.

        Returns
        -------
        log_normalizer : float or torch.Tensor of the shape of `scale`
            Logarithm of the constant that the density is divided by, in nats.

        Raises
        ------
        ValueError
            If the noise has a scale, and `scale` is a float that is not positive.

        Examples
        --------
        Half the scale is a density twice as high, log 2 nats:

        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> noise = GeneralizedNormalNoise()
        >>> round(noise.log_normalizer(1.0) - noise.log_normalizer(0.5), 4)
        0.6931
        """

    def log_prob(self, x, location, scale):
        """Log-density of each observation, summed over features, in nats.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations; their leading dimensions broadcast.
        scale : float
            Scale of the noise, in the units of `x`; without one, of no effect.

        Returns
        -------
        log_prob : torch.Tensor of shape (...)
            The log-density, in nats.

        Raises
        ------
        RuntimeError
            If the shapes do not broadcast.
        ValueError
            If the noise has a scale, and `scale` is a float that is not positive.

        Examples
        --------
        At its location the standard normal density is 1 / sqrt(2 pi):

        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> x = torch.zeros(1)
        >>> round(GeneralizedNormalNoise().log_prob(x, x, 1.0).exp().item(), 4)
        0.3989
        """
        constant = x.shape[-1] * self.log_normalizer(scale)
        return -self.energy(x, location, scale) - constant

    @abstractmethod
    def sample(self, location, scale, random_state):
        """Draw one observation for each location.

        Parameters
        ----------
        location : ndarray of shape (..., n_features)
            Locations.
        scale : float or ndarray, of a shape that broadcasts to that of `location`
            Scale of the noise, in the units of `location`; without one, of no effect.
        random_state : numpy.random.RandomState
            Source of randomness.

        Returns
        -------
        x : ndarray of shape (..., n_features)
            Observations, in the units of `location`.

        Raises
        ------
        ValueError
            If the shapes do not broadcast.

        Examples
        --------
        The mean distance of Laplace noise is its scale:

        >>> import numpy as np
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> noise = GeneralizedNormalNoise(exponent=1)
        >>> x = noise.sample(np.zeros((10_000, 1)), 3.0, np.random.RandomState(0))
        >>> bool(2.9 < np.abs(x).mean() < 3.1)
        True
        """

    def mean_power(self, x, location):
        """Mean of ``exponent * energy`` at a scale of 1: the best scale, to the p.

        Of noise with an ``exponent`` p the energy is that at a scale of 1, divided by
        ``scale ** p``, so the scale of maximum likelihood is this to the 1/p.

        Parameters
        ----------
        x, location : torch.Tensor of shape (..., n_features)
            Observations and locations.

        Returns
        -------
        mean_power : torch.Tensor of shape (...)
            Mean over features, in the units of `x` to the p.

        Raises
        ------
        TypeError
            If the noise has no exponent.

        Examples
        --------
        The mean absolute residual is the best scale of Laplace noise:

        >>> import torch
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> noise = GeneralizedNormalNoise(exponent=1)
        >>> noise.mean_power(torch.tensor([3.0, -1.0]), torch.zeros(2)).item()
        2.0
        """
        return self.exponent * self.energy(x, location, 1.0) / x.shape[-1]

    def validate(self):
        """Check that the model's own parameters make a density.

        Raises
        ------
        ValueError
            If they do not.

        Examples
        --------
        >>> from sklearn_sigmavae import GeneralizedNormalNoise
        >>> GeneralizedNormalNoise(exponent=0.5).validate()
        Traceback (most recent call last):
        ...
        ValueError: The 'exponent' of GeneralizedNormalNoise must be a finite number...
        """

    def check_data(self, X):
        """Check that data lies in the support of the density.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            The data, in its own units.

        Raises
        ------
        ValueError
            If it does not.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> BernoulliNoise().check_data(np.array([[0.0, 16.0]]))
        Traceback (most recent call last):
        ...
        ValueError: noise='bernoulli' needs data in [0, 1], but X ranges from 0 to 16...
        """

    def mean(self, location):
        """Mean of an observation, as data: what ``inverse_transform`` returns.

        Parameters
        ----------
        location : ndarray of shape (..., n_features)
            Locations, in internal units.

        Returns
        -------
        mean : ndarray of shape (..., n_features)
            Means, in internal units, which without a scale are those of the data.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import BernoulliNoise, GeneralizedNormalNoise
        >>> GeneralizedNormalNoise().mean(np.array([0.0, 2.0]))
        array([0., 2.])
        >>> BernoulliNoise().mean(np.array([0.0, 2.0])).round(3)
        array([0.5  , 0.881])
        """
        return location

    def location_of_mean(self, mean):
        """Location whose mean is `mean`; inverts :meth:`mean`.

        Parameters
        ----------
        mean : ndarray of shape (..., n_features)
            Means, in internal units.

        Returns
        -------
        location : ndarray of shape (..., n_features)
            Locations, in internal units.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import BernoulliNoise
        >>> BernoulliNoise().location_of_mean(np.array([0.25, 0.5])).round(3)
        array([-1.099,  0.   ])
        """
        return mean


class GeneralizedNormalNoise(NoiseModel):
    r"""Generalised normal noise, with the Gaussian and the Laplace as members.

    Its log-density [1]_ of an observation :math:`x` at :math:`\nu` is, in nats,

    .. math::

        \log p(x \mid \nu, \sigma) = - \sum_i \frac{|x_i - \nu_i|^p}{p\,\sigma_i^p}
        - \sum_i \log\left( 2 \sigma_i\, p^{1/p}\, \Gamma(1 + 1/p) \right)

    Parameters
    ----------
    exponent : float, default=2.0
        The exponent :math:`p \ge 1`. ``2`` is the Gaussian, with :math:`\sigma` its
        standard deviation; ``1`` is the Laplace, with :math:`\sigma` its scale. Large
        exponents approach uniform noise.

    See Also
    --------
    BernoulliNoise : For data in [0, 1], without a scale.
    equivalent_beta : The β that stands for another σ.

    References
    ----------
    .. [1] S. Nadarajah, "A generalized normal distribution", Journal of Applied
       Statistics 32(7), 2005. Its scale is :math:`p^{1/p}` times ours.

    Examples
    --------
    Let a search choose between the Laplace, the Gaussian, and what lies between:

    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import (
    ...     BatchedGridSearchCV,
    ...     GeneralizedNormalNoise,
    ...     SigmaVAE,
    ... )
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.3, hidden_layer_sizes=(16,), max_iter=1)
    >>> vae = vae.set_params(noise=GeneralizedNormalNoise())
    >>> grid = {"noise__exponent": [1, 1.5, 2]}
    >>> search = BatchedGridSearchCV(vae, grid, cv=2).fit(X)
    >>> search.best_params_["noise__exponent"] in [1, 1.5, 2]
    True
    """

    def __init__(self, exponent=2.0):
        self.exponent = exponent

    def validate(self):
        """Check that the exponent is at least 1; see :meth:`NoiseModel.validate`."""
        p = self.exponent
        if not isinstance(p, Real) or not 1 <= p < math.inf:
            raise ValueError(
                "The 'exponent' of GeneralizedNormalNoise must be a finite number >= 1 "
                f"(2 is Gaussian noise, 1 Laplace noise). Got {p!r} instead."
            )

    def _power_sum(self, residual):
        # Products are several times cheaper than a general power, and the Gaussian is
        # what most people train.
        if self.exponent == 2:
            product = torch.dot if residual.ndim == 1 else torch.linalg.vecdot
            return product(residual, residual)
        return (residual.abs() ** self.exponent).sum(-1)

    def energy(self, x, location, scale):
        """Sum ``|x - location|**p / (p * scale**p)``; see :meth:`NoiseModel.energy`."""
        p = self.exponent
        # The residual is scaled before the power: sigma ** p underflows in float32. In
        # this order the gradient of the location takes one operation less.
        return self._power_sum((location - x) / (scale * p ** (1 / p)))

    def log_normalizer(self, scale):
        """Log of the factor in the density; see :meth:`NoiseModel.log_normalizer`."""
        p = self.exponent
        log_scale = scale.log() if torch.is_tensor(scale) else math.log(scale)
        return log_scale + math.log(2) + math.log(p) / p + math.lgamma(1 + 1 / p)

    def sample(self, location, scale, random_state):
        """Draw an observation for each location; see :meth:`NoiseModel.sample`."""
        p = self.exponent
        # If G follows a Gamma(1/p), then (p G)^(1/p) follows |noise| / scale.
        gamma = random_state.standard_gamma(1 / p, size=np.shape(location))
        sign = random_state.choice((-1.0, 1.0), size=np.shape(location))
        return location + scale * sign * (p * gamma) ** (1 / p)

    @property
    def variance_factor(self):
        """float : Variance of the noise at ``scale=1``; 1 for the Gaussian."""
        p = self.exponent
        return math.exp(2 / p * math.log(p) + math.lgamma(3 / p) - math.lgamma(1 / p))

    def mean_power(self, x, location):
        """Mean of ``|x - location| ** exponent``; see :meth:`NoiseModel.mean_power`."""
        # Of the residuals themselves: the energy rounds their powers.
        return self._power_sum(x - location) / x.shape[-1]


class BernoulliNoise(NoiseModel):
    """Bernoulli noise on data in [0, 1]: the vanilla variational autoencoder.

    It is the usual choice for images in black and white [1]_. Locations are logits and
    there is no scale. It is a distribution on {0, 1} only: values in between are
    allowed, as is usual, but then no score is a likelihood [2]_, and in no case do its
    scores compare with those of continuous noise.

    See Also
    --------
    GeneralizedNormalNoise : Continuous noise, with a scale.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.
    .. [2] G. Loaiza-Ganem, J. P. Cunningham, "The continuous Bernoulli: fixing a
       pervasive error in variational autoencoders", arXiv:1907.06845, 2019.

    Examples
    --------
    Pixels that are on or off, and the probability that each is on:

    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import SigmaVAE
    >>> X = (load_digits().data[:300] > 8).astype(float)
    >>> vae = SigmaVAE(8, noise="bernoulli", max_iter=2, random_state=0).fit(X)
    >>> probability = vae.inverse_transform(vae.transform(X))
    >>> bool((probability > 0).all() and (probability < 1).all())
    True
    """

    has_scale = False

    def energy(self, x, location, scale=None):
        """Cross-entropy, summed over features; see :meth:`NoiseModel.energy`."""
        location, x = torch.broadcast_tensors(location, x)
        losses = F.binary_cross_entropy_with_logits(location, x, reduction="none")
        return losses.sum(-1)

    def log_normalizer(self, scale=None):
        """Zero: the cross-entropy is all; see :meth:`NoiseModel.log_normalizer`."""
        return 0.0

    def sample(self, location, scale, random_state):
        """Draw zeros and ones for each location; see :meth:`NoiseModel.sample`."""
        probability = self.mean(location)
        uniform = random_state.uniform(size=probability.shape)
        return (uniform < probability).astype(probability.dtype)

    def check_data(self, X):
        """Check that data lies in [0, 1]; see :meth:`NoiseModel.check_data`."""
        low, high = X.min(), X.max()
        if low < 0 or high > 1:
            raise ValueError(
                "noise='bernoulli' needs data in [0, 1], but X ranges from "
                f"{low:.6g} to {high:.6g}. Scale the data (MinMaxScaler, or divide by "
                "its maximum) or use noise='gaussian'."
            )

    def mean(self, location):
        """Probability of a one for each logit; see :meth:`NoiseModel.mean`."""
        # Of the two usual forms, this one overflows nowhere.
        return 0.5 * (1 + np.tanh(0.5 * location))

    def location_of_mean(self, mean):
        """Logit, kept finite at 0 and 1; see :meth:`NoiseModel.location_of_mean`."""
        probability = np.clip(mean, 1e-3, 1 - 1e-3)
        return np.log(probability) - np.log1p(-probability)


ALIASES = {
    "gaussian": GeneralizedNormalNoise(exponent=2.0),
    "laplace": GeneralizedNormalNoise(exponent=1.0),
    "bernoulli": BernoulliNoise(),
}


# Those that a file can name.
NOISES = {cls.__name__: cls for cls in (GeneralizedNormalNoise, BernoulliNoise)}


def resolve_noise(noise):
    """Noise model that a ``noise`` parameter stands for, its parameters checked."""
    model = ALIASES[noise] if isinstance(noise, str) else noise
    model.validate()
    if type(model) not in NOISES.values():
        _check_contract(model)
    return model


def _check_contract(model):
    """Raise ``ValueError`` unless a noise model of a user's own keeps its promises."""
    name = type(model).__name__
    x = torch.tensor([[1.0, 0.0, 1.0]] * 2, dtype=torch.float32)
    location = x.new_zeros(5, 2, 3)
    number, each = (0.5, x.new_full((2, 3), 0.5)) if model.has_scale else (None, None)
    one_by_one = None if each is None else each.unsqueeze(-1)
    try:
        energy = model.energy(x, location, number)
        same = model.energy(x, location, each)
        parts = model.energy(x.unsqueeze(-1), location.unsqueeze(-1), one_by_one)
        model.log_normalizer(number)
        drawn = model.sample(np.zeros((2, 3)), number, np.random.RandomState(0))
    except Exception as error:
        raise ValueError(
            f"The noise model {name} failed on two rows of three features, with "
            "locations of shape (5, 2, 3) and a scale that is a number or a tensor of "
            f"shape (2, 3): {type(error).__name__}: {error}"
        ) from error
    if np.shape(energy) != (5, 2):
        raise ValueError(
            f"{name}.energy must sum over the last dimension: for x of shape (2, 3) "
            "and locations of shape (5, 2, 3) it must return a tensor of shape (5, 2). "
            f"It returned shape {tuple(np.shape(energy))}."
        )
    for other in (same, parts.sum(-1)):
        if not torch.allclose(energy, other, rtol=1e-3, equal_nan=True):
            raise ValueError(
                f"{name}.energy must be a sum over entries, each with its own scale. "
                "It differs between a scale that is one number and a tensor of it, or "
                "between three features and the sum of each by itself."
            )
    if np.shape(drawn) != (2, 3):
        raise ValueError(
            f"{name}.sample must return an array of the shape of its locations, (2, "
            f"3). It returned shape {np.shape(drawn)}."
        )


def resolve_power(noise, consequence):
    """Noise model that a ``noise`` parameter stands for, whose energy is a power.

    Raises ``ValueError`` if it is none, which says what follows.
    """
    model = resolve_noise(noise)
    if model.exponent is None:
        why = "has an energy that is no power of its scale"
        if not model.has_scale:
            why = "has no scale"
        raise ValueError(
            f"noise={noise!r} {why}, so {consequence}. Noise models that can are "
            "GeneralizedNormalNoise, 'gaussian' and 'laplace'."
        )
    return model


@validate_params(
    {"noise": [StrOptions(set(ALIASES)), NoiseModel]},
    prefer_skip_nested_validation=True,
)
def equivalent_beta(sigma_from, sigma_to, noise="gaussian"):
    r"""The β that makes a model at one scale the σ-VAE at another scale.

    For the generalised normal family the data term scales as :math:`\sigma^{-p}`, so
    up to a constant :math:`L(\sigma_1, \beta) = \beta\, L(\sigma_2, 1)` with
    :math:`\beta = (\sigma_2 / \sigma_1)^p`: the same optima [1]_.

    Parameters
    ----------
    sigma_from : float or array-like of shape (n_features,)
        Scale at which the model with β is trained, in the units of the data.
    sigma_to : float or array-like of shape (n_features,)
        Scale of the σ-VAE that it is to equal, in the same units. Per-feature scales
        must have the same ratio for every feature.
    noise : {"gaussian", "laplace"} or GeneralizedNormalNoise, default="gaussian"
        The noise model.

    Returns
    -------
    beta : float
        Weight of the KL term [2]_, without a unit.

    Raises
    ------
    ValueError
        If the noise model has no exponent or is not known, a scale is not positive, or
        the ratio of the scales differs between features.

    See Also
    --------
    SigmaVAE : Takes it as ``beta``.

    References
    ----------
    .. [1] S. Saremi, "Learning and Inference in Imaginary Noise Models",
       arXiv:2005.09047, 2020.
    .. [2] I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a
       Constrained Variational Framework", ICLR 2017.

    Examples
    --------
    >>> from sklearn_sigmavae import equivalent_beta
    >>> equivalent_beta(0.5, 1.0)
    4.0
    >>> equivalent_beta(0.5, 1.0, noise="laplace")
    2.0
    """
    model = resolve_power(noise, "no beta is equivalent to another sigma")
    sigma_from = np.asarray(sigma_from, dtype=np.float64)
    sigma_to = np.asarray(sigma_to, dtype=np.float64)
    for name, sigma in (("sigma_from", sigma_from), ("sigma_to", sigma_to)):
        if not (np.isfinite(sigma).all() and (sigma > 0).all()):
            raise ValueError(f"{name} must be positive and finite. Got {sigma}.")
    ratio = np.ravel(sigma_to / sigma_from)
    if not np.allclose(ratio, ratio[0], rtol=1e-9, atol=0):
        raise ValueError(
            "sigma_from and sigma_to must have the same ratio for every feature; it "
            f"ranges from {ratio.min():.6g} to {ratio.max():.6g}."
        )
    return float(ratio[0] ** model.exponent)
