"""Ways to train a variational autoencoder, each from an array to a trained model.

All train the same network for the same steps; a workload says which and how many (see
``bench_fit.py``).
"""

import contextlib
import io
import logging
import tempfile

import skorch
import torch
from _workloads import LEARNING_RATE
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

OURS = "SigmaVAE"
BARE = "bare PyTorch loop"


def fit_ours(workload, X):
    """SigmaVAE, with the network and the optimisation of the others."""
    workload.plain_vae(max_iter=workload.n_epochs, random_state=0).fit(X)


def fit_bare(workload, X):
    """PyTorch loop, hand-tuned: batches are sliced from one tensor."""
    x, sigma = standardise(workload, X)

    def batches():
        order = torch.randperm(len(x))
        for start in range(0, len(x), workload.batch_size):
            rows = x[order[start : start + workload.batch_size]]
            yield rows, torch.randn(len(rows), workload.n_components)

    run_bare_loop(workload, x.shape[1], sigma, batches)


def fit_bare_gathered(workload, X):
    """Gather rows and draw noise once per epoch, which takes the data's memory again.

    SigmaVAE does it too, a few batches at a time.
    """
    x, sigma = standardise(workload, X)

    def batches():
        rows = x[torch.randperm(len(x))]
        noise = torch.randn(len(x), workload.n_components)
        size = workload.batch_size
        return zip(rows.split(size), noise.split(size), strict=True)

    run_bare_loop(workload, x.shape[1], sigma, batches)


def run_bare_loop(workload, n_features, sigma, batches):
    """Train with as little as possible around the operations.

    The fastest found among the ways to write the same computation with modules and an
    optimiser from torch, measured step against step:

    - the squared error is a dot product, and the KL divergence two ``addcmul``
      (instead of powers or ``mse_loss``, and of sums over rows, then a mean);
    - gradients are dropped one by one (``zero_grad`` takes longer to do so), Adam is
      fused, and the loss is never read.
    """
    encoder, decoder = workload.networks(n_features)
    step = bare_step(encoder, decoder, sigma)
    for _ in range(workload.n_epochs):
        for rows, eps in batches():
            step(rows, eps)


def bare_step(encoder, decoder, sigma, **adam):
    """Optimisation step that takes a batch, as :func:`run_bare_loop` tells."""
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True, **adam)

    def step(rows, eps):
        mean, log_var = encoder(rows).chunk(2, dim=1)
        std = (0.5 * log_var).exp()
        residual = (decoder(torch.addcmul(mean, std, eps)) - rows).view(-1)
        square = torch.dot(residual, residual)
        kl = torch.addcmul(torch.addcmul(-log_var, mean, mean), std, std).sum()
        loss = torch.add(kl, square, alpha=sigma**-2) * (0.5 / len(rows))
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        optimizer.step()

    return step


def fit_loader(workload, X):
    """PyTorch loop over a DataLoader, as people write it."""
    x, sigma = standardise(workload, X)
    module, criterion = PlainVAE(*workload.networks(x.shape[1])), PlainLoss(sigma)
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True)
    loader = DataLoader(TensorDataset(x), workload.batch_size, shuffle=True)
    for _ in range(workload.n_epochs):
        total = 0.0
        for (rows,) in loader:
            optimizer.zero_grad()
            loss = criterion(module(rows), rows)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)


def fit_skorch(workload, X, **params):
    """Fit the net of skorch as it comes, only silent; return it."""
    x, sigma = standardise(workload, X)
    net = skorch.NeuralNet(
        PlainVAE(*workload.networks(x.shape[1])),
        PlainLoss(sigma),
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        lr=LEARNING_RATE,
        batch_size=workload.batch_size,
        max_epochs=workload.n_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        **params,
    )
    return net.fit(x.numpy(), x.numpy())


def fit_pythae(workload, X):
    """The trainer of pythae, its output silenced.

    Its loss is that of sigma = 1, so the data is given in units of sigma.
    """
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def forward(self, x):
            mean, log_var = self.network(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def forward(self, z):
            return ModelOutput(reconstruction=self.network(z))

    encoder, decoder = Encoder(), Decoder()
    x, sigma = standardise(workload, X)
    encoder.network, decoder.network = workload.networks(x.shape[1])
    model_config = VAEConfig(
        x.shape[1:], latent_dim=workload.n_components, reconstruction_loss="mse"
    )
    with tempfile.TemporaryDirectory() as folder, silence():
        config = BaseTrainerConfig(
            folder,
            num_epochs=workload.n_epochs,
            per_device_train_batch_size=workload.batch_size,
            learning_rate=LEARNING_RATE,
            optimizer_params={"fused": True},
            no_cuda=True,
        )
        model = VAE(model_config, encoder, decoder)
        data = BaseDataset(x / sigma, torch.zeros(len(x)))
        BaseTrainer(model, data, training_config=config).train()


FITS = {
    BARE: fit_bare,  # first, since the ratios are to it
    OURS: fit_ours,
    "bare loop, an epoch's rows gathered at once": fit_bare_gathered,
    "PyTorch loop, DataLoader": fit_loader,
    "skorch": fit_skorch,
    "pythae": fit_pythae,
}


def standardise(workload, X):
    """Centred data divided by one scalar, as a tensor, and sigma in its units."""
    x = torch.from_numpy(X).to(torch.float32)
    x = x - x.mean(dim=0)
    scale = x.square().mean().sqrt().item()
    x /= scale
    return x, workload.sigma / scale


class PlainVAE(nn.Module):
    """Module as people write it."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x):
        """Mean and log-variance of the codes, and a reconstruction."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        std = torch.exp(0.5 * log_var)
        return mean, log_var, self.decoder(mean + std * torch.randn_like(std))


class PlainLoss(nn.Module):
    """Negative bound, without its constant, as people write it."""

    def __init__(self, sigma):
        super().__init__()
        self.sigma = sigma

    def forward(self, outputs, x):
        """Mean loss of the rows."""
        mean, log_var, reconstruction = outputs
        error = ((x - reconstruction) / self.sigma).pow(2).sum(dim=1)
        kl = (mean.pow(2) + log_var.exp() - 1 - log_var).sum(dim=1)
        return 0.5 * (error + kl).mean()


@contextlib.contextmanager
def silence():
    """Drop what is logged or written to the terminal, progress bars among it."""
    logging.disable(logging.INFO)
    sink = io.StringIO()
    try:
        with contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
            yield
    finally:
        logging.disable(logging.NOTSET)
