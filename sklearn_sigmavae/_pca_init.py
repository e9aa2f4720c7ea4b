"""The closed-form start: probabilistic PCA at the model's noise scale.

With no nonlinear path, Gaussian noise of scale sigma and the objective's beta, the
optimum is known [1]_. With lambda_i the eigenvalues of the covariance (divided by n),
u_i its eigenvectors and tau = beta * sigma**2, component i is in use if lambda_i > tau;
then

    encoder mean      sqrt(lambda_i - tau) / lambda_i * u_i.(x - mean)
    encoder variance  tau / lambda_i
    decoder column    sqrt(lambda_i - tau) * u_i

and otherwise it stays at the prior.

.. [1] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear VAE
   Perspective on Posterior Collapse", arXiv:1911.02469, 2019.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """Leading eigenpairs of the covariance of the data, in internal units.

    Attributes
    ----------
    eigenvalues : ndarray of shape (n_axes,)
        In decreasing order, of the covariance divided by n.
    axes : ndarray of shape (n_axes, n_features)
        Orthonormal rows.
    residual : float
        Sum of all other eigenvalues.
    """

    eigenvalues: np.ndarray
    axes: np.ndarray
    residual: float

    @classmethod
    def of_data(cls, x, n_axes, random_state):
        """Principal axes of an array of shape (n_samples, n_features).

        Parameters
        ----------
        x : ndarray of shape (n_samples, n_features)
            Data in internal units.
        n_axes : int
            How many to find; at most the smaller dimension of `x` are.
        random_state : int
            Seed of randomised solvers.
        """
        # Constant data makes it divide zero by zero, in a ratio that is not used here.
        with np.errstate(invalid="ignore"):
            pca = PCA(min(n_axes, *x.shape), random_state=random_state).fit(x)
        # scikit-learn divides by n - 1; the likelihood's optimum divides by n.
        eigenvalues = pca.explained_variance_ * (len(x) - 1) / len(x)
        n_others = min(x.shape) - len(eigenvalues)
        residual = pca.noise_variance_ * n_others * (len(x) - 1) / len(x)
        return cls(eigenvalues, pca.components_, float(residual))

    def start(self, noise_variance, n_components):
        """Weights of the linear optimum at a noise variance tau.

        Returns
        -------
        encoder : ndarray of shape (n_components, n_features)
        log_var : ndarray of shape (n_components,)
        decoder : ndarray of shape (n_features, n_components)
        """
        encoder = np.zeros((n_components, self.axes.shape[1]))
        decoder = np.zeros((self.axes.shape[1], n_components))
        log_var = np.zeros(n_components)
        in_use = self.in_use(noise_variance)
        eigenvalues, axes = self.eigenvalues[in_use], self.axes[in_use]
        amplitude = np.sqrt(eigenvalues - noise_variance)
        (index,) = np.nonzero(in_use)
        encoder[index] = (amplitude / eigenvalues)[:, None] * axes
        decoder[:, index] = amplitude * axes.T
        log_var[index] = np.log(noise_variance / eigenvalues)
        return encoder, log_var, decoder

    def in_use(self, noise_variance):
        """Mask of the axes whose eigenvalue exceeds the noise variance tau."""
        return self.eigenvalues > noise_variance

    def noise_variance_mle(self, n_features, ratio):
        """Maximum-likelihood noise variance of the linear model, or 0.

        With tau = ratio * noise variance and all axes in use the distortion is
        ``n_axes * tau`` plus the residual, and at the maximum it equals
        ``n_features * noise variance``. Where that has no positive solution the
        likelihood is unbounded.
        """
        free = n_features - ratio * len(self.eigenvalues)
        return self.residual / free if free > 0 else 0.0


def start_at_pca(vae, axes, noise, scale, beta, min_scale):
    """Put the closed form into the linear paths of a VAE.

    Parameters
    ----------
    vae : VAE
        Module whose encoder and decoder have a linear path.
    axes : PrincipalAxes
        Of the training data, as many as there are components or rows allow.
    noise : NoiseModel
        The noise model; it has a scale.
    scale : float or None
        Scale of the noise, in internal units; None for that of maximum likelihood.
    beta : float
        Weight of the KL term.
    min_scale : float
        Least scale of maximum likelihood.

    Returns
    -------
    scale : float
        Scale of the noise, in internal units.
    """
    if scale is None:
        ratio = noise_variance(noise, 1.0, beta) / noise.variance_factor
        variance = axes.noise_variance_mle(vae.layout.n_features, ratio)
        scale = max(min_scale, np.sqrt(variance / noise.variance_factor))
    tau = noise_variance(noise, scale, beta)
    if not axes.in_use(tau).any():
        _warn_all_dead(axes.eigenvalues[0], tau, scale, beta, vae.units)
    encoder, log_var, decoder = axes.start(tau, vae.n_components)
    with torch.no_grad():
        vae.encoder.linear.weight.copy_(torch.from_numpy(encoder))
        vae.encoder.linear.bias.zero_()
        vae.encoder.log_var.copy_(torch.from_numpy(log_var))
        vae.decoder.linear.weight.copy_(torch.from_numpy(decoder))
        vae.decoder.linear.bias.zero_()
    vae.encoder.close()
    vae.decoder.close()
    return float(scale)


def noise_variance(noise, scale, beta):
    """The tau of the linear optimum.

    For other exponents than 2 it respects the equivalence of beta and sigma, and makes
    a good start. Noise without an exponent has no such equivalence.
    """
    return beta ** (2 / (noise.exponent or 2.0)) * noise.variance_factor * scale**2


def move_along_pca(vae, axes, tau, new_tau):
    """Move the linear paths of a VAE by what the closed form moves between two tau."""
    changes = (
        torch.from_numpy(new - old).to(vae.device, torch.float32)
        for new, old in zip(
            axes.start(new_tau, vae.n_components),
            axes.start(tau, vae.n_components),
            strict=True,
        )
    )
    encoder, decoder = vae.encoder, vae.decoder
    parameters = encoder.linear.weight, encoder.log_var, decoder.linear.weight
    with torch.no_grad():
        for parameter, change in zip(parameters, changes, strict=True):
            parameter.add_(change)


def start_at_mean(vae, noise, mean):
    """Let the decoder of a VAE start at the mean of the data, in internal units.

    Noise without a scale has no closed form: all else stays random.
    """
    with torch.no_grad():
        location = noise.location_of_mean(mean)
        vae.decoder.linear.bias.copy_(torch.from_numpy(location))


def _warn_all_dead(eigenvalue, tau, scale, beta, units):
    # Inside, the mean variance of a feature is one unless all are constant.
    if eigenvalue < 1e-12:
        warnings.warn(
            "X is constant: no component has anything to encode.", stacklevel=2
        )
        return
    unit = units.mean_scale
    sigma, spread = scale * unit, np.sqrt(eigenvalue) * unit
    works = 0.5 * sigma * np.sqrt(eigenvalue / tau)
    warnings.warn(
        f"No component is in use at the start: sigma={sigma:.4g}, at beta={beta:g}, "
        "hides the data, whose largest standard deviation along any direction is "
        f"{spread:.4g} (for per-feature scales both are geometric means). A smaller "
        f"sigma, such as {works:.2g}, would see it.",
        stacklevel=2,
    )
