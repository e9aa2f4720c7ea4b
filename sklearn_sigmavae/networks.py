"""Network recipes, and the linear path that lets any network start at PCA.

A recipe is an object with ``encoder(input_shape, n_components)`` and
``decoder(n_components, output_shape)``, each returning a module. The encoder's module
maps (n, *input_shape) to (n, 2 * n_components), mean then log-variance; the decoder's
maps (n, n_components) to (n, *output_shape). Both work in internal units.
"""

import math
from contextlib import contextmanager
from itertools import pairwise

import torch
from sklearn.base import BaseEstimator
from torch import nn

__all__ = ["ACTIVATIONS", "MLP"]

ACTIVATIONS = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class MLP(BaseEstimator):
    """Recipe of fully connected networks, the decoder mirroring the encoder.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(256, 256)
        Widths of the encoder's hidden layers; the decoder has them in reverse. An
        empty tuple makes both networks linear.
    activation : str, default="silu"
        One of "elu", "gelu", "leaky_relu", "relu", "silu", "softplus", "tanh".

    Examples
    --------
    >>> from sklearn_sigmavae.networks import MLP
    >>> MLP(hidden_layer_sizes=(32,)).encoder((10,), n_components=2)
    Sequential(
      (0): Linear(in_features=10, out_features=32, bias=True)
      (1): SiLU()
      (2): Linear(in_features=32, out_features=4, bias=True)
    )
    """

    def __init__(self, hidden_layer_sizes=(256, 256), activation="silu"):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation

    def encoder(self, input_shape, n_components):
        """Module from (n, n_features) to (n, 2 * n_components)."""
        (n_features,) = input_shape
        return self._stack(n_features, *self.hidden_layer_sizes, 2 * n_components)

    def decoder(self, n_components, output_shape):
        """Module from (n, n_components) to (n, n_features)."""
        (n_features,) = output_shape
        return self._stack(n_components, *self.hidden_layer_sizes[::-1], n_features)

    def _stack(self, *widths):
        layers = []
        for n_in, n_out in pairwise(widths[:-1]):
            layer = nn.Linear(n_in, n_out)
            # Torch's default shrinks activations from layer to layer, which keeps the
            # networks nearly linear for long; this keeps their variance.
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
            layers += [layer, ACTIVATIONS[self.activation]()]
        layers.append(nn.Linear(*widths[-2:]))
        # One layer is not wrapped: the linear path below replaces it.
        return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


class _LinearPath(nn.Module):
    """A linear map plus a network that can be made to start at zero.

    Where the network's output vanishes with the parameters of its last layer, as in
    most networks, zeros there are the start: that trains best and costs nothing. Any
    other network is multiplied by a learned gate.
    """

    def __init__(self, network, n_in, n_out, probe):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        # A network that is linear itself would add parameters and no function.
        self.network = None if isinstance(network, nn.Linear) else network
        needs_gate = self.network is not None and not _starts_at_zero(network, probe)
        self.gate = nn.Parameter(torch.ones(())) if needs_gate else None

    def close(self):
        """Make the network's output zero; training opens it again."""
        parameters = [] if self.network is None else _last_layer(self.network)
        for parameter in parameters if self.gate is None else [self.gate]:
            nn.init.zeros_(parameter)

    def add_network(self, linear, x):
        if self.network is None:
            return linear
        output = self.network(x)
        return linear + (output if self.gate is None else self.gate * output)


class LinearPathEncoder(_LinearPath):
    """Encoder: a linear mean and a constant log-variance, plus a network.

    The linear path's log-variance is a constant, as a linear model's posterior has
    it, which also keeps the variance of far outliers finite.
    """

    def __init__(self, network, input_shape, n_components, probe):
        super().__init__(network, math.prod(input_shape), n_components, probe)
        self.log_var = nn.Parameter(torch.zeros(n_components))

    def forward(self, x):
        mean = self.linear(x.flatten(1))
        linear = torch.cat([mean, self.log_var.expand_as(mean)], dim=1)
        return self.add_network(linear, x)


class LinearPathDecoder(_LinearPath):
    """Decoder: a linear map plus a network."""

    def __init__(self, network, n_components, output_shape, probe):
        super().__init__(network, n_components, math.prod(output_shape), probe)
        self.output_shape = tuple(output_shape)

    def forward(self, z):
        linear = self.linear(z).reshape(-1, *self.output_shape)
        return self.add_network(linear, z)


def _last_layer(network):
    """Parameters of the last registered layer that has any."""
    layers = (list(module.parameters(recurse=False)) for module in network.modules())
    return next(filter(None, reversed(list(layers))), [])


def _starts_at_zero(network, probe):
    """Whether zeros in the last layer make the network's output zero."""
    parameters = _last_layer(network)
    values = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad(), _evaluating(network):
        for parameter in parameters:
            parameter.zero_()
        is_zero = not network(probe).any()
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    return is_zero


@contextmanager
def _evaluating(module):
    # So that a batch normalisation learns nothing from a check.
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def build_networks(recipe, input_shape, n_components, linear_path):
    """Encoder and decoder modules of a recipe, checked on one small batch.

    Returns
    -------
    encoder, decoder : torch.nn.Module
        With ``linear_path``, a :class:`LinearPathEncoder` and a
        :class:`LinearPathDecoder` around the recipe's modules.

    Raises
    ------
    TypeError
        If the recipe returns something other than modules.
    ValueError
        If a module's output has the wrong shape, or the module cannot take its input.
    """
    owner = type(recipe).__name__
    encoder = recipe.encoder(input_shape, n_components)
    decoder = recipe.decoder(n_components, input_shape)
    x = _probe(input_shape)
    z = _probe((n_components,))
    _check_module(f"encoder ({owner}.encoder)", encoder, x, (2 * n_components,))
    _check_module(f"decoder ({owner}.decoder)", decoder, z, input_shape)
    if linear_path:
        encoder = LinearPathEncoder(encoder, input_shape, n_components, x)
        decoder = LinearPathDecoder(decoder, n_components, input_shape, z)
    return encoder, decoder


def _probe(shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _check_module(name, module, probe, shape_out):
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"The network's {name} must be a torch.nn.Module. Got "
            f"{type(module).__name__} instead."
        )
    expected = (len(probe), *shape_out)
    try:
        with torch.no_grad(), _evaluating(module):
            output = module(probe)
    except Exception as error:
        raise ValueError(
            f"The network's {name} must take an input of shape {tuple(probe.shape)}, "
            f"but fails on it: {error}"
        ) from error
    got = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
    if got != expected:
        raise ValueError(
            f"The network's {name} must map an input of shape {tuple(probe.shape)} to "
            f"one of shape {expected}. Got {got} instead. An encoder returns mean then "
            "log-variance, 2 * n_components numbers a row; a decoder returns locations "
            "in the shape of the encoder's input."
        )
