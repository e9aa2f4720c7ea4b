"""The priors of codes: each density is written once, for loss, score and sampling.

To add one, subclass :class:`Prior`, and add a line with its name to ``ALIASES``.
"""

import math
import warnings
from abc import ABCMeta, abstractmethod

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils._param_validation import StrOptions
from threadpoolctl import threadpool_limits
from torch.nn import functional as F

from .networks import is_count

__all__ = ["MixturePrior", "NormalPrior", "Prior"]

# Steps of the expectation maximization that a mixture starts from, the change in nats
# that ends it, and rows by which covariances may be shrunk.
_STEPS, _TOL = 50, 1e-3
_PSEUDO_ROWS = 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e6


class Prior(BaseEstimator, metaclass=ABCMeta):
    """Distribution p(z) of the codes, with parameters that training learns.

    It is the prior of a variational autoencoder [1]_. A subclass implements
    :meth:`parameters`, :meth:`log_prob` and :meth:`sample`; the divergence of a
    posterior from it is taken at points. It must be a density: the integral over all
    codes is one, whatever the parameters.

    See Also
    --------
    NormalPrior : The standard normal distribution.
    MixturePrior : A mixture of normal distributions.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.

    Examples
    --------
    >>> import math
    >>> import torch
    >>> from sklearn_sigmavae import Prior
    >>> class LogisticPrior(Prior):
    ...     def parameters(self, n_components):
    ...         return {"log_scale": torch.zeros(n_components) - 0.6}
    ...
    ...     def log_prob(self, z, log_scale):
    ...         t = z * torch.exp(-log_scale)
    ...         softplus = torch.nn.functional.softplus
    ...         return (-softplus(t) - softplus(-t) - log_scale).sum(-1)
    ...
    ...     def sample(self, n_samples, n_components, random_state, log_scale):
    ...         shape = n_samples, n_components
    ...         return random_state.logistic(size=shape) * np.exp(log_scale)
    >>> LogisticPrior().log_prob(torch.zeros(1), torch.zeros(1)).round(decimals=3)
    tensor(-1.3860)
    """

    @abstractmethod
    def parameters(self, n_components):
        """Return the parameters that training starts with, near the standard normal.

        Parameters
        ----------
        n_components : int
            Dimension of the codes.

        Returns
        -------
        parameters : dict of str to torch.Tensor of any shape
            Those that :meth:`log_prob` and :meth:`sample` take by name.

        Examples
        --------
        >>> from sklearn_sigmavae import MixturePrior
        >>> MixturePrior(3).parameters(2)["means"].shape
        torch.Size([3, 2])
        """

    @abstractmethod
    def log_prob(self, z, **parameters):
        """Compute the log-density of codes, normalizing constant included.

        Parameters
        ----------
        z : torch.Tensor of shape (..., n_components)
            Codes.
        **parameters : torch.Tensor of any shape
            See :meth:`parameters`.

        Returns
        -------
        log_prob : torch.Tensor of shape (...)
            The log-density, in nats.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae import NormalPrior
        >>> NormalPrior().log_prob(torch.zeros(2)).round(decimals=3)
        tensor(-1.8380)
        """

    @abstractmethod
    def sample(self, n_samples, n_components, random_state, **parameters):
        """Draw codes from the prior.

        Parameters
        ----------
        n_samples, n_components : int
            Number of codes, and their dimension.
        random_state : numpy.random.RandomState
            Source of randomness.
        **parameters : ndarray of any shape
            See :meth:`parameters`.

        Returns
        -------
        z : ndarray of shape (n_samples, n_components)
            Codes.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import NormalPrior
        >>> NormalPrior().sample(5, 2, np.random.RandomState(0)).shape
        (5, 2)
        """

    def fit_codes(self, codes, random_state):
        """Summarize the codes of the training rows for :meth:`start`.

        Parameters
        ----------
        codes : ndarray of shape (n_samples, n_components), float64
            Principal coordinates of training rows.
        random_state : numpy.random.RandomState
            Source of randomness.

        Returns
        -------
        fitted : object
            None, the default, starts at :meth:`parameters`.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import MixturePrior
        >>> random_state = np.random.RandomState(0)
        >>> codes = random_state.standard_normal((60, 2)) + random_state.choice(
        ...     [-9, 0, 9], (60, 1)
        ... )
        >>> weights, means, covariances = MixturePrior(3).fit_codes(codes, random_state)
        >>> means.shape
        (3, 2)
        """
        return None

    def start(self, fitted, gain, variance):
        """Return parameters for codes that are scaled, and have a variance each.

        Parameters
        ----------
        fitted : object
            What :meth:`fit_codes` returned, not None.
        gain, variance : ndarray of shape (n_components,)
            Scale of the codes, relative to those of :meth:`fit_codes`, and variances of
            their posterior.

        Returns
        -------
        parameters : dict of str to torch.Tensor of any shape
            As of :meth:`parameters`.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import MixturePrior
        >>> fitted = np.ones(1), np.zeros((1, 1)), np.ones((1, 1, 1))
        >>> start = MixturePrior(1).start(fitted, np.array([0.8]), np.array([0.36]))
        >>> start["means"].item(), round(start["log_scale"].item(), 6)
        (0.0, 0.0)
        """
        raise NotImplementedError(
            f"{type(self).__name__}.fit_codes returned a value, so start must be "
            "implemented too."
        )

    def gaussians(self, **parameters):
        """Return the components, if it is a mixture of normal distributions.

        With them noisy rows are refined from the exact posterior of the linear model.

        Parameters
        ----------
        **parameters : torch.Tensor of any shape
            See :meth:`parameters`.

        Returns
        -------
        gaussians : tuple of torch.Tensor of shape (K, ...) or None
            Log-weights (K,), means (K, k) and precisions (K, k, k). None, the default,
            stands for other distributions.

        Examples
        --------
        >>> from sklearn_sigmavae import MixturePrior
        >>> prior = MixturePrior(3)
        >>> [part.shape[0] for part in prior.gaussians(**prior.parameters(2))]
        [3, 3, 3]
        """
        return None

    def validate(self):
        """Raise ``ValueError`` unless the prior's own settings are valid.

        Examples
        --------
        >>> from sklearn_sigmavae import MixturePrior
        >>> MixturePrior(n_components=0).validate()
        Traceback (most recent call last):
        ValueError: The 'n_components' of MixturePrior must be an integer >= 1...
        """


class NormalPrior(Prior):
    """The standard normal distribution, which has no parameters to learn.

    Its divergence has a closed form, which splits into components.

    See Also
    --------
    MixturePrior : For data with clusters, or of any shape that is far from an ellipse.

    Examples
    --------
    >>> from sklearn_sigmavae import NormalPrior, SigmaVAE
    >>> SigmaVAE(prior=NormalPrior()).get_params()["prior"]
    NormalPrior()
    """

    def parameters(self, n_components):
        """No parameters; see :meth:`Prior.parameters`."""
        return {}

    def log_prob(self, z):
        """Log-density of codes; see :meth:`Prior.log_prob`."""
        return -0.5 * (z * z + math.log(2 * math.pi)).sum(-1)

    def sample(self, n_samples, n_components, random_state):
        """Draw codes; see :meth:`Prior.sample`."""
        return random_state.standard_normal((n_samples, n_components))


class MixturePrior(Prior):
    r"""A mixture of normal distributions, which training learns.

    Its density [1]_ of a code :math:`z` is

    .. math::

        p(z) = \sum_j \pi_j \, N(z;\, m_j, (L_j L_j^\top)^{-1})

    Weights :math:`\pi_j`, means :math:`m_j` and triangular factors :math:`L_j` of the
    precisions are trained with the networks. They start at scikit-learn's
    :class:`~sklearn.mixture.GaussianMixture` of the codes that the linear model gives
    to the training rows; with one component that is the standard normal.

    Parameters
    ----------
    n_components : int, default=10
        Number of normal distributions.

    See Also
    --------
    NormalPrior : The standard normal distribution.

    References
    ----------
    .. [1] Z. Jiang et al., "Variational Deep Embedding: An Unsupervised and Generative
       Approach to Clustering", arXiv:1611.05148, 2017.

    Examples
    --------
    >>> from sklearn_sigmavae import MixturePrior, SigmaVAE
    >>> vae = SigmaVAE(prior=MixturePrior(20))
    >>> vae.get_params()["prior__n_components"]
    20
    """

    def __init__(self, n_components=10):
        self.n_components = n_components

    def validate(self):
        """Check the number of components; see :meth:`Prior.validate`."""
        if not is_count(self.n_components):
            raise ValueError(
                "The 'n_components' of MixturePrior must be an integer >= 1. Got "
                f"{self.n_components!r} instead."
            )

    def parameters(self, n_components):
        """A standard normal, slightly spread; see :meth:`Prior.parameters`."""
        shape = self.n_components, n_components
        # Components that are all the same would stay the same.
        means = 0.3 * np.random.RandomState(0).standard_normal(shape)
        means -= means.mean(axis=0)
        variance = 1.0 - np.square(means).mean(axis=0)
        covariances = np.tile(np.diag(variance), (self.n_components, 1, 1))
        weights = np.full(self.n_components, 1 / self.n_components)
        return _from_moments(weights, means, covariances)

    def log_prob(self, z, log_weights, means, log_scale, mixing):
        """Log-density of codes; see :meth:`Prior.log_prob`."""
        return _density(z, log_weights, means, log_scale, mixing)

    def sample(
        self,
        n_samples,
        n_components,
        random_state,
        log_weights,
        means,
        log_scale,
        mixing,
    ):
        """Draw codes; see :meth:`Prior.sample`."""
        weights = np.exp(log_weights - logsumexp(log_weights))
        which = random_state.choice(len(means), n_samples, p=weights / weights.sum())
        white = random_state.standard_normal((n_samples, n_components))
        arguments = map(torch.from_numpy, (log_scale, mixing))
        factors = _factors(*arguments).mT.numpy()
        z = means[which].astype(np.float64)
        for j in range(len(means)):
            here = which == j
            z[here] += np.linalg.solve(factors[j], white[here].T).T
        return z

    def gaussians(self, log_weights, means, log_scale, mixing):
        """Return its components; see :meth:`Prior.gaussians`."""
        factors = _factors(log_scale, mixing)
        return log_weights.log_softmax(0), means, factors @ factors.mT

    def fit_codes(self, codes, random_state):
        """Weights, means and covariances of a mixture; see :meth:`Prior.fit_codes`."""
        n_distinct = len(np.unique(codes, axis=0))
        if n_distinct < self.n_components:
            raise ValueError(
                f"A MixturePrior with n_components={self.n_components} needs at least "
                f"as many different rows to start from. There are {n_distinct}, not "
                "counting those held out. Use more rows, "
                f"prior=MixturePrior(n_components={n_distinct}) or prior='normal'."
            )
        # One component starts at the standard normal, without an error of estimation.
        if self.n_components == 1:
            return None
        return _fit_mixture(codes, self.n_components, random_state)

    def start(self, fitted, gain, variance):
        """The mixture of codes that are uncertain; see :meth:`Prior.start`."""
        weights, means, covariances = fitted
        covariances = gain[:, None] * covariances * gain + np.diag(variance)
        return _from_moments(weights, gain * means, covariances)


def _density(z, log_weights, means, log_scale, mixing):
    n_gaussians, k = means.shape
    factors = _factors(log_scale, mixing)
    # Of all normal distributions at once: one matrix product.
    offset = torch.linalg.vecdot(means.unsqueeze(-1), factors, dim=-2)
    white = F.linear(z, factors.mT.flatten(0, 1), -offset.flatten())
    squares = white.square().unflatten(-1, (n_gaussians, k)).sum(-1)
    constants = log_weights.log_softmax(0) + log_scale.sum(-1)
    log_prob = (constants - 0.5 * squares).logsumexp(-1)
    return log_prob - 0.5 * k * math.log(2 * math.pi)


def _factors(log_scale, mixing):
    """Factors L (..., K, k, k) of the precisions, whose columns have a scale each."""
    # The scale of a column is that of a residual, given the codes below it. Steps of
    # training change its logarithm, and the mixing independently of it.
    k = log_scale.shape[-1]
    triangle = mixing.tril(-1) + torch.eye(k, dtype=mixing.dtype, device=mixing.device)
    return triangle * log_scale.exp().unsqueeze(-2)


def _from_moments(weights, means, covariances, dtype=torch.float32):
    """Parameters of a mixture, from weights, means and covariances in float64."""
    # Inverting the factor of the covariance is more exact than factoring the inverse.
    # In reversed order its transpose is a lower triangle.
    roots = np.linalg.cholesky(covariances[:, ::-1, ::-1])
    factors = np.linalg.inv(roots).swapaxes(1, 2)[:, ::-1, ::-1]
    scale = np.diagonal(factors, axis1=1, axis2=2)
    mixing = np.tril(factors / scale[:, None, :], -1)
    values = {
        "log_weights": np.log(weights),
        "means": means,
        "log_scale": np.log(scale),
        "mixing": mixing,
    }
    return {name: torch.tensor(v, dtype=dtype) for name, v in values.items()}


def _fit_mixture(codes, n_gaussians, random_state):
    """Weights, means and covariances of a mixture; None if one normal is better.

    Covariances are shrunk by as much as is best for a fifth of the codes.
    """
    n_fitted = max(n_gaussians, int(0.8 * len(codes)))
    if n_fitted == len(codes):
        return None
    fitted, rest = codes[:n_fitted], torch.from_numpy(codes[n_fitted:])
    # Of all codes, those set aside too: this favours the safer start if rows are few.
    total = np.cov(codes.T, bias=True).reshape(codes.shape[1], -1)
    # Far below the variances of all directions.
    floor = np.clip(1e-6 * codes.var(axis=0).min(), 1e-12, 1e-6)
    mixture = GaussianMixture(
        n_gaussians,
        tol=_TOL,
        reg_covar=floor,
        max_iter=_STEPS,
        random_state=random_state,
    )
    # Several threads wait for each other at such small products.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        tried = _shrunk(mixture.fit(fitted), total, n_fitted)
        regular = total + floor * np.eye(len(total))
        tried.append((np.ones(1), fitted.mean(axis=0)[None], regular[None]))
        scores = [
            _density(rest, *_from_moments(*each, torch.float64).values()).mean().item()
            for each in tried
        ]
        best = int(np.argmax(scores))
        if best == len(tried) - 1:
            return None
        mixture.set_params(
            weights_init=mixture.weights_,
            means_init=mixture.means_,
            precisions_init=mixture.precisions_,
        )
        return _shrunk(mixture.fit(codes), total, len(codes))[best]


def _shrunk(mixture, total, n_rows):
    """Mixtures with less to more shrinkage of the covariances, of three kinds.

    Each covariance is as if it came from some more rows, with the covariance of all,
    the mean covariance of a component, or its own variance in all directions alike.
    """
    weights, means, own = mixture.weights_, mixture.means_, mixture.covariances_
    n_own = n_rows * weights[:, None, None]
    within = np.tensordot(weights, own, axes=1)
    variance = np.trace(own, axis1=1, axis2=2) / len(total)
    spheres = variance[:, None, None] * np.eye(len(total))
    return [
        (weights, means, (n_own * own + n * other) / (n_own + n))
        for other in (total, within, spheres)
        for n in _PSEUDO_ROWS
    ]


ALIASES = {"normal": NormalPrior(), "mixture": MixturePrior()}

# What a ``prior`` parameter takes.
ANY_PRIOR = [StrOptions(set(ALIASES)), Prior]

# Those that a file can name.
PRIORS = {type(prior).__name__: type(prior) for prior in ALIASES.values()}


def resolve_prior(prior):
    """Prior that a ``prior`` parameter stands for, its settings checked."""
    found = ALIASES[prior] if isinstance(prior, str) else prior
    found.validate()
    if type(found) not in PRIORS.values():
        _check_contract(found)
    return found


# Points along an axis of the grid on which a density is integrated.
_N_GRID = 601


def _check_contract(prior):
    """Raise ``ValueError`` unless a custom prior keeps its promises."""
    name = type(prior).__name__
    # A grid that is fine in the middle, and reaches far.
    t = torch.linspace(-15.0, 15.0, _N_GRID, dtype=torch.float64)
    axis, width = t.sinh(), t.cosh() * (t[1] - t[0])
    grid = torch.cartesian_prod(axis, axis).unflatten(0, (_N_GRID, _N_GRID))
    wrong = None
    for k, z in ((3, grid.new_zeros(4, 5, 3)), (2, grid)):
        try:
            values = prior.parameters(k)
            values = {key: value.detach().double() for key, value in values.items()}
            log_prob = prior.log_prob(z, **values)
            arrays = {key: value.numpy() for key, value in values.items()}
            random_state = np.random.RandomState(0)
            drawn = [prior.sample(n, k, random_state, **arrays) for n in (1, 4)]
        except Exception as error:
            raise ValueError(
                f"The prior {name} failed on codes of shape {tuple(z.shape)}, or on "
                f"samples of 1 or 4: {type(error).__name__}: {error}"
            ) from error
        shape, shapes = tuple(log_prob.shape), [np.shape(each) for each in drawn]
        if shape != z.shape[:-1]:
            right, codes = tuple(z.shape[:-1]), tuple(z.shape)
            wrong = f"log_prob of codes of shape {codes} must be {right}, not {shape}"
        elif shapes != [(1, k), (4, k)] or not isinstance(drawn[0], np.ndarray):
            wrong = f"sample must return arrays of shape (n_samples, {k}), not {shapes}"
        if wrong:
            raise ValueError(f"{name}.{wrong}.")
    total = float((log_prob.exp() * width[:, None] * width).sum())
    if not abs(total - 1) < 0.01:
        raise ValueError(
            f"{name}.log_prob must be normalized: at its first parameters the density "
            f"of codes with {k} components integrates to {total:.3g}. Add the "
            "normalizing constant to log_prob, or let parameters return a distribution "
            "that is nearer to the standard normal."
        )
