"""Network recipes: what makes the encoder and the decoder of a model.

A recipe is an object with ``encoder(input_shape, n_components)`` and
``decoder(n_components, output_shape)``, each returning a module; see the ``network``
parameter of ``SigmaVAE``.
"""

import math
from itertools import pairwise
from numbers import Integral

from sklearn.base import BaseEstimator
from torch import nn

__all__ = ["ACTIVATIONS", "MLP", "Conv"]

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

    Hidden layers start at random weights that keep the variance of their input [1]_.
    Images are flattened on the way in and get their shape back on the way out.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(256, 256)
        Widths of the encoder's hidden layers, reversed in the decoder; () is linear.
    activation : str, default="silu"
        One of "elu", "gelu", "leaky_relu", "relu", "silu", "softplus", "tanh".

    See Also
    --------
    Conv : Convolutional networks, for images.
    sklearn_sigmavae.SigmaVAE : Takes it as ``network``.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, G. B. Orr, K.-R. Müller, "Efficient BackProp", in Neural
       Networks: Tricks of the Trade, Springer, 1998.

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
        """Module from samples to means and log-variances of codes.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of a sample: (n_features,) for tables, (C, H, W) for images.
        n_components : int
            Dimension of the codes.

        Returns
        -------
        encoder : torch.nn.Module
            From ``(n, *input_shape)`` to ``(n, 2 * n_components)``, means first.

        Raises
        ------
        ValueError
            If a parameter is not valid.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import MLP
        >>> MLP().encoder((10,), n_components=2)(torch.zeros(5, 10)).shape
        torch.Size([5, 4])
        """
        _check_parameters(self, "hidden_layer_sizes", "activation")
        flatten = [nn.Flatten()] if len(input_shape) > 1 else []
        widths = math.prod(input_shape), *self.hidden_layer_sizes
        hidden = _dense(widths, self.activation)
        return nn.Sequential(*flatten, *hidden, nn.Linear(widths[-1], 2 * n_components))

    def decoder(self, n_components, output_shape):
        """Module from codes to samples.

        Parameters
        ----------
        n_components : int
            Dimension of the codes.
        output_shape : tuple of int
            Shape of a sample: (n_features,) for tables, (C, H, W) for images.

        Returns
        -------
        decoder : torch.nn.Module
            From ``(n, n_components)`` to ``(n, *output_shape)``: locations.

        Raises
        ------
        ValueError
            If a parameter is not valid.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import MLP
        >>> MLP().decoder(2, output_shape=(10,))(torch.zeros(5, 2)).shape
        torch.Size([5, 10])
        """
        _check_parameters(self, "hidden_layer_sizes", "activation")
        widths = n_components, *self.hidden_layer_sizes[::-1]
        hidden = _dense(widths, self.activation)
        output = nn.Linear(widths[-1], math.prod(output_shape))
        unflatten = [nn.Unflatten(1, output_shape)] if len(output_shape) > 1 else []
        return nn.Sequential(*hidden, output, *unflatten)

    def _width(self, shape, n_components):
        """Size of the widest layer for one row or code."""
        return max(math.prod(shape), 2 * n_components, *self.hidden_layer_sizes)


class Conv(BaseEstimator):
    """Recipe of convolutional networks for images, the decoder mirroring the encoder.

    Each level halves height and width, rounding up, by a convolution; fully connected
    layers follow. The decoder has transposed convolutions [1]_. Images have a height
    and width of at least 4, and any number of channels.

    Parameters
    ----------
    channels : tuple of int, default=(16, 32)
        Channels at each level.
    kernel_size : int, default=3
        Height and width of the filters, an odd number.
    hidden_layer_sizes : tuple of int, default=(512,)
        Widths of the fully connected layers between the last level and the codes.
    activation : str, default="silu"
        One of "elu", "gelu", "leaky_relu", "relu", "silu", "softplus", "tanh".

    See Also
    --------
    MLP : Fully connected networks.
    sklearn_sigmavae.SigmaVAE : Takes it as ``network``.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning",
       arXiv:1603.07285, 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import SigmaVAE
    >>> from sklearn_sigmavae.networks import Conv
    >>> X = load_digits().images[:200]
    >>> network = Conv(channels=(8,), hidden_layer_sizes=(32,))
    >>> vae = SigmaVAE(8, sigma=2.0, network=network, max_iter=1).fit(X)
    >>> vae.inverse_transform(vae.transform(X)).shape
    (200, 8, 8)
    """

    def __init__(
        self,
        channels=(16, 32),
        kernel_size=3,
        hidden_layer_sizes=(512,),
        activation="silu",
    ):
        self.channels = channels
        self.kernel_size = kernel_size
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation

    def encoder(self, input_shape, n_components):
        """Module from images to means and log-variances of codes.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of an image, (C, H, W).
        n_components : int
            Dimension of the codes.

        Returns
        -------
        encoder : torch.nn.Module
            As for :meth:`MLP.encoder`.

        Raises
        ------
        ValueError
            If a parameter is not valid, or images are smaller than 4 x 4 pixels.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import Conv
        >>> Conv().encoder((3, 32, 32), 16)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 32])
        """
        shapes, size = self._shapes(input_shape), self.kernel_size
        layers = []
        for (n_in, *_), (n_out, *_) in pairwise(shapes):
            layer = nn.Conv2d(n_in, n_out, size, stride=2, padding=size // 2)
            layers += _with_activation(layer, n_in * size**2, self.activation)
        dense = MLP(self.hidden_layer_sizes, self.activation)
        return nn.Sequential(*layers, *dense.encoder(shapes[-1], n_components))

    def decoder(self, n_components, output_shape):
        """Module from codes to images.

        Parameters
        ----------
        n_components : int
            Dimension of the codes.
        output_shape : tuple of int
            Shape of an image, (C, H, W).

        Returns
        -------
        decoder : torch.nn.Module
            From (n, n_components) to (n, C, H, W): locations.

        Raises
        ------
        ValueError
            If a parameter is not valid, or images are smaller than 4 x 4 pixels.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import Conv
        >>> Conv().decoder(16, output_shape=(3, 32, 32))(torch.zeros(5, 16)).shape
        torch.Size([5, 3, 32, 32])
        """
        shapes, size = self._shapes(output_shape), self.kernel_size
        widths = n_components, *self.hidden_layer_sizes[::-1], math.prod(shapes[-1])
        layers = [*_dense(widths, self.activation), nn.Unflatten(1, shapes[-1])]
        for (n_in, *_), (n_out, *sides) in pairwise(shapes[::-1]):
            # An even side came from two pixels each, an odd one from one less.
            extra = tuple(1 - side % 2 for side in sides)
            layer = nn.ConvTranspose2d(n_in, n_out, size, 2, size // 2, extra)
            # At stride two a quarter of the filter falls on each pixel.
            layers += _with_activation(layer, n_in * size**2 / 4, self.activation)
        return nn.Sequential(*layers[:-1])

    def _width(self, shape, n_components):
        """Size of the widest layer for one image or code."""
        sizes = map(math.prod, self._shapes(shape))
        return max(2 * n_components, *self.hidden_layer_sizes, *sizes)

    def _shapes(self, shape):
        """Shape of an image, then of what each level makes of it."""
        _check_parameters(self, *_VALID)
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(
                "The convolutional network of SigmaVAE needs images of at least 4 x 4 "
                f"pixels. Got shape {shape}, channels first. Set image_shape if images "
                "are flattened, channels_first=True if they are (n, C, H, W), or "
                "network='mlp'."
            )
        shapes = [shape]
        for n_channels in self.channels:
            _, height, width = shapes[-1]
            shapes.append((n_channels, (height + 1) // 2, (width + 1) // 2))
        return shapes


def is_count(value):
    """Whether a value is an integer of at least 1, and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _are_counts(value):
    return isinstance(value, tuple | list) and all(map(is_count, value))


# For each parameter what is valid, and whether a value is.
_VALID = {
    "hidden_layer_sizes": ("a tuple of integers >= 1", _are_counts),
    "channels": ("a non-empty tuple of integers >= 1", lambda v: _are_counts(v) and v),
    "kernel_size": ("an odd integer >= 1", lambda v: is_count(v) and v % 2),
    "activation": (f"one of {sorted(ACTIVATIONS)}", lambda v: v in [*ACTIVATIONS]),
}


def _check_parameters(recipe, *names):
    """Raise ``ValueError`` unless these parameters of a recipe are valid."""
    for name in names:
        expected, is_valid = _VALID[name]
        value = getattr(recipe, name)
        if not is_valid(value):
            raise ValueError(
                f"The '{name}' parameter of {type(recipe).__name__} must be "
                f"{expected}. Got {value!r} instead."
            )


def _dense(widths, activation):
    """Fully connected layers, each with its activation."""
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += _with_activation(nn.Linear(n_in, n_out), n_in, activation)
    return layers


def _with_activation(layer, n_inputs, activation):
    """A layer, its random weights keeping the variance of its input, and an activation.

    Torch's default shrinks activations from layer to layer, so that networks stay
    nearly linear for long.
    """
    # Without values to fill torch would import modules for seconds.
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=n_inputs**-0.5)
        nn.init.zeros_(layer.bias)
    return [layer, ACTIVATIONS[activation]()]
