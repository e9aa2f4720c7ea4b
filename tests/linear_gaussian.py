"""The exact answers: what a linear model with Gaussian noise must give."""

import numpy as np


def spectrum(X):
    """Eigenvalues, descending, of the covariance of the data divided by n."""
    centred = X - X.mean(axis=0)
    return np.linalg.eigvalsh(centred.T @ centred / len(X))[::-1].clip(0)


def optimum(X, n_components, sigma, beta=1.0):
    """Score at beta=1 and KL of the model that is optimal for (sigma, beta)."""
    eigenvalues = spectrum(X)
    tau = beta * sigma**2
    used = np.zeros(len(eigenvalues), dtype=bool)
    used[:n_components] = eigenvalues[:n_components] > tau
    log_ratio = np.log(eigenvalues[used] / tau).sum()
    score = -0.5 * (
        X.shape[1] * np.log(2 * np.pi * sigma**2)
        + beta * used.sum()
        + eigenvalues[~used].sum() / sigma**2
        + log_ratio
    )
    return score, 0.5 * log_ratio


def log_likelihood(X, mean, loadings, sigma):
    """Log-density of rows under N(mean, loadings loadings' + sigma^2 I)."""
    d, _ = loadings.shape
    covariance = loadings @ loadings.T + np.square(sigma) * np.eye(d)
    residual = X - mean
    solved = np.linalg.solve(covariance, residual.T).T
    log_det = np.linalg.slogdet(covariance)[1]
    return -0.5 * ((residual * solved).sum(axis=1) + log_det + d * np.log(2 * np.pi))
