"""Network recipes, and the linear path that lets any network start at PCA.

A recipe is an object with ``encoder(input_shape, n_components)`` and
``decoder(n_components, output_shape)``, each returning a module. The encoder's module
maps (n, *input_shape) to (n, 2 * n_components), mean then log-variance; the decoder's
maps (n, n_components) to (n, *output_shape). Both work in internal units. The shape is
(n_features,) for tables and (channels, height, width) for images.
"""

import math
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from numbers import Integral

import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from ._layout import ImagesToRows, RowsToImages

__all__ = ["ACTIVATIONS", "MLP", "Conv"]

# Smallest height and width of images for convolutions.
MIN_SIZE = 4

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

    The hidden layers start at random weights that keep the variance of what they get
    [1]_. Images are flattened on the way in and get their shape back on the way out.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(256, 256)
        Widths of the encoder's hidden layers; the decoder has them in reverse. An
        empty tuple makes both networks linear.
    activation : str, default="silu"
        One of "elu", "gelu", "leaky_relu", "relu", "silu" [2]_, "softplus", "tanh".

    See Also
    --------
    Conv : Convolutional networks, for images.
    sklearn_sigmavae.SigmaVAE : Takes it as ``network``.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, G. B. Orr, K.-R. Müller, "Efficient BackProp", in Neural
       Networks: Tricks of the Trade, Springer, 1998.
    .. [2] P. Ramachandran, B. Zoph, Q. V. Le, "Searching for Activation Functions",
       arXiv:1710.05941, 2017. D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units
       (GELUs)", arXiv:1606.08415, 2016.

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
        """Module from rows, or images, to means and log-variances of codes.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of a sample: (n_features,) for tables, (C, H, W) for images.
        n_components : int
            Dimension of the codes.

        Returns
        -------
        encoder : torch.nn.Module
            From ``(n, *input_shape)`` to ``(n, 2 * n_components)``: the mean of each
            component, then the log-variance of each.

        Raises
        ------
        ValueError
            If a parameter of the recipe is not valid.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import MLP
        >>> encoder = MLP().encoder((10,), n_components=2)
        >>> mean, log_var = encoder(torch.zeros(5, 10)).chunk(2, dim=1)
        >>> mean.shape, log_var.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
        """
        self._check_parameters()
        n_features = math.prod(input_shape)
        flatten = [nn.Flatten()] if len(input_shape) > 1 else []
        layers = self._layers(n_features, *self.hidden_layer_sizes, 2 * n_components)
        return nn.Sequential(*flatten, *layers)

    def decoder(self, n_components, output_shape):
        """Module from codes to rows, or images.

        Parameters
        ----------
        n_components : int
            Dimension of the codes.
        output_shape : tuple of int
            Shape of a sample: (n_features,) for tables, (C, H, W) for images.

        Returns
        -------
        decoder : torch.nn.Module
            From ``(n, n_components)`` to ``(n, *output_shape)``: locations in centred
            and scaled units, for Bernoulli noise logits.

        Raises
        ------
        ValueError
            If a parameter of the recipe is not valid.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import MLP
        >>> MLP().decoder(2, output_shape=(10,))(torch.zeros(5, 2)).shape
        torch.Size([5, 10])
        """
        self._check_parameters()
        n_features = math.prod(output_shape)
        layers = self._layers(n_components, *self.hidden_layer_sizes[::-1], n_features)
        unflatten = [nn.Unflatten(1, output_shape)] if len(output_shape) > 1 else []
        return nn.Sequential(*layers, *unflatten)

    def _width(self, shape, n_components):
        """Most numbers that a layer makes of one row or code."""
        return max(math.prod(shape), 2 * n_components, *self.hidden_layer_sizes)

    def _check_parameters(self):
        _check_sizes(self, "hidden_layer_sizes")
        _check_activation(self)

    def _layers(self, *widths):
        hidden = _dense(widths[:-1], ACTIVATIONS[self.activation])
        return [*hidden, nn.Linear(*widths[-2:])]


class Conv(BaseEstimator):
    """Recipe of convolutional networks for images, the decoder mirroring the encoder.

    Each level halves height and width (rounding up) with a convolution of stride two;
    what is left passes through fully connected layers. The decoder goes the same way
    back with transposed convolutions [1]_. Images may have any height and width from 4
    up, odd ones too, and any number of channels.

    Parameters
    ----------
    channels : tuple of int, default=(16, 32)
        Channels at each level.
    kernel_size : int, default=3
        Height and width of the filters, an odd number.
    hidden_layer_sizes : tuple of int, default=(512,)
        Widths of the fully connected layers between the last level and the codes.
    activation : str, default="silu"
        One of "elu", "gelu", "leaky_relu", "relu", "silu" [2]_, "softplus", "tanh".

    See Also
    --------
    MLP : Fully connected networks.
    sklearn_sigmavae.SigmaVAE : Takes it as ``network``.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning",
       arXiv:1603.07285, 2016.
    .. [2] P. Ramachandran, B. Zoph, Q. V. Le, "Searching for Activation Functions",
       arXiv:1710.05941, 2017. D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units
       (GELUs)", arXiv:1606.08415, 2016.

    Examples
    --------
    Smaller networks than those of ``network="conv"``, for images and back:

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
            From (n, C, H, W) to (n, 2 * n_components): the mean of each component,
            then the log-variance of each.

        Raises
        ------
        ValueError
            If a parameter of the recipe is not valid, or `input_shape` is not that of
            images of at least 4 x 4 pixels.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import Conv
        >>> encoder = Conv().encoder((3, 32, 32), n_components=16)
        >>> mean, log_var = encoder(torch.zeros(5, 3, 32, 32)).chunk(2, dim=1)
        >>> mean.shape, log_var.shape
        (torch.Size([5, 16]), torch.Size([5, 16]))
        """
        n_channels, sizes = self._levels(input_shape)
        activation = ACTIVATIONS[self.activation]
        layers = []
        for n_in, n_out in pairwise((n_channels, *self.channels)):
            convolution = nn.Conv2d(
                n_in, n_out, self.kernel_size, stride=2, padding=self.kernel_size // 2
            )
            n_inputs = n_in * self.kernel_size**2
            layers += [_keep_variance(convolution, n_inputs), activation()]
        widths = self.channels[-1] * math.prod(sizes[-1]), *self.hidden_layer_sizes
        layers += [nn.Flatten(), *_dense(widths, activation)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 2 * n_components))

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
            From (n, n_components) to (n, C, H, W): locations in centred and scaled
            units, for Bernoulli noise logits.

        Raises
        ------
        ValueError
            If a parameter of the recipe is not valid, or `output_shape` is not that of
            images of at least 4 x 4 pixels.

        Examples
        --------
        >>> import torch
        >>> from sklearn_sigmavae.networks import Conv
        >>> Conv().decoder(16, output_shape=(3, 32, 32))(torch.zeros(5, 16)).shape
        torch.Size([5, 3, 32, 32])
        """
        n_channels, sizes = self._levels(output_shape)
        activation = ACTIVATIONS[self.activation]
        coarsest = self.channels[-1], *sizes[-1]
        widths = n_components, *self.hidden_layer_sizes[::-1], math.prod(coarsest)
        layers = [*_dense(widths, activation), nn.Unflatten(1, coarsest)]
        ways = pairwise((*self.channels[::-1], n_channels))
        for (n_in, n_out), size in zip(ways, sizes[-2::-1], strict=True):
            convolution = nn.ConvTranspose2d(
                n_in,
                n_out,
                self.kernel_size,
                stride=2,
                padding=self.kernel_size // 2,
                # An even number came from two pixels each, an odd one from one less.
                output_padding=tuple(1 - side % 2 for side in size),
            )
            # At stride two a quarter of the filter falls on each pixel.
            n_inputs = n_in * self.kernel_size**2 / 4
            layers += [_keep_variance(convolution, n_inputs), activation()]
        return nn.Sequential(*layers[:-1])

    def _width(self, shape, n_components):
        """Most numbers that a layer makes of one row or code."""
        _, sizes = self._levels(shape)
        levels = zip(self.channels, sizes[1:], strict=True)
        return max(
            math.prod(shape),
            2 * n_components,
            *self.hidden_layer_sizes,
            *(n_channels * math.prod(size) for n_channels, size in levels),
        )

    def _levels(self, shape):
        """Number of channels of an image, and its size at each level."""
        self._check_parameters()
        if len(shape) != 3 or min(shape[1:]) < MIN_SIZE:
            raise ValueError(
                f"The convolutional network of SigmaVAE needs images of at least "
                f"{MIN_SIZE} x {MIN_SIZE} pixels. Got {_in_words(shape)} instead. Pass "
                "images as (n, H, W) or (n, H, W, C), set channels_first=True if they "
                "are (n, C, H, W), or image_shape if they are flattened rows; for "
                "smaller ones use network='mlp'."
            )
        n_channels, *size = shape
        sizes = [tuple(size)]
        for _ in self.channels:
            sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
        return n_channels, sizes

    def _check_parameters(self):
        _check_sizes(self, "channels", at_least=1)
        _check_sizes(self, "hidden_layer_sizes")
        _check_activation(self)
        if not (is_count(self.kernel_size) and self.kernel_size % 2):
            raise ValueError(
                "The 'kernel_size' parameter of Conv must be an odd integer >= 1. Got "
                f"{self.kernel_size!r} instead."
            )


# Those whose networks a file can name.
RECIPES = {"MLP": MLP, "Conv": Conv}


def known_recipe(recipe):
    """A recipe of this module, a copy; of others the name of the class."""
    return clone(recipe) if type(recipe) in RECIPES.values() else class_name(recipe)


def class_name(value):
    """Full name of the class of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def is_count(value):
    """Whether a value is an integer of at least 1, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def _check_sizes(recipe, name, at_least=0):
    value = getattr(recipe, name)
    valid = isinstance(value, tuple | list) and all(map(is_count, value))
    if not valid or len(value) < at_least:
        raise ValueError(
            f"The '{name}' parameter of {type(recipe).__name__} must be a tuple of "
            f"{'at least one integer' if at_least else 'integers'} >= 1. Got {value!r} "
            "instead."
        )


def _check_activation(recipe):
    value = recipe.activation
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ValueError(
            f"The 'activation' parameter of {type(recipe).__name__} must be one of "
            f"{sorted(ACTIVATIONS)}. Got {value!r} instead."
        )


def _in_words(shape):
    if len(shape) == 1:
        return f"rows of {shape[0]} features"
    n_channels, height, width = shape
    return f"{height} x {width} pixels with {n_channels} channels"


def _dense(widths, activation):
    """Fully connected layers, each with its activation."""
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [_keep_variance(nn.Linear(n_in, n_out), n_in), activation()]
    return layers


def _keep_variance(layer, n_inputs):
    """Give a layer random weights that keep the variance of what it gets.

    Torch's default shrinks activations from layer to layer, which keeps the networks
    nearly linear for long.
    """
    # Where there is nothing to fill, torch would import for seconds.
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=n_inputs**-0.5)
        nn.init.zeros_(layer.bias)
    return layer


class _LinearPath(nn.Module):
    """A linear map plus a network that can be made to start at zero.

    Where the network's output vanishes with the parameters of its last layer, as in
    most networks, zeros there are the start: that trains best and costs nothing. Any
    other network is multiplied by a learned gate.
    """

    def __init__(self, network, n_in, n_out, has_gate):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        # A network that is linear itself would add parameters and no function.
        self.network = None if _is_linear(network) else network
        needs_gate = self.network is not None and has_gate
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

    def __init__(self, network, n_features, n_components, has_gate):
        super().__init__(network, n_features, n_components, has_gate)
        self.log_var = nn.Parameter(torch.zeros(n_components))

    def forward(self, x):
        mean = self.linear(x)
        linear = torch.cat([mean, self.log_var.expand_as(mean)], dim=-1)
        return self.add_network(linear, x)


class LinearPathDecoder(_LinearPath):
    """Decoder: a linear map plus a network."""

    def forward(self, z):
        return self.add_network(self.linear(z), z)


def _is_linear(network):
    """Whether a network is one linear layer, apart from changes of shape."""
    reshaping = nn.Flatten, nn.Unflatten, RowsToImages, ImagesToRows
    layers = [
        module
        for module in network.modules()
        if type(module) is not nn.Sequential and not isinstance(module, reshaping)
    ]
    return len(layers) == 1 and type(layers[0]) is nn.Linear


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


def build_networks(recipe, layout, n_components, linear_path):
    """Encoder and decoder modules of a recipe, checked on one small batch.

    Parameters
    ----------
    recipe : object
        See the top of this module.
    layout : Layout
        What the recipe's networks see of a row.
    n_components : int
        Dimension of the codes.
    linear_path : bool
        Whether to add a linear map to each network.

    Returns
    -------
    encoder, decoder : torch.nn.Module
        From and to rows. With ``linear_path``, a :class:`LinearPathEncoder` and a
        :class:`LinearPathDecoder` around the recipe's modules.
    width : int
        Most numbers that a layer makes of one row or code.
    takes_float64 : bool
        Whether the modules, cast to float64, take input in it.

    Raises
    ------
    TypeError
        If the recipe returns something other than modules.
    ValueError
        If a module's output has the wrong shape or type, the module cannot take its
        input or changes it, or there is nothing to train.
    """
    modules = _modules(recipe, layout, n_components)
    # Copies, both at once, since a recipe may return modules that it, another model, or
    # each of the two keeps. Recipes may choose a type; training is in float32.
    modules = [
        module.float() if isinstance(module, nn.Module) else module
        for module in deepcopy(modules)
    ]
    width = _check_modules(recipe, modules, layout, n_components)
    codes, rows = _probe((n_components,)), _probe((layout.n_features,))
    encoder, decoder = layout.on_rows(*modules)
    if linear_path:
        gates = not _starts_at_zero(encoder, rows), not _starts_at_zero(decoder, codes)
        encoder, decoder = _add_linear_path(
            encoder, decoder, layout, n_components, gates
        )
    parameters = [*encoder.parameters(), *decoder.parameters()]
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"The networks of {type(recipe).__name__} have no parameters to train. "
            "Return modules with some that require gradients, or set linear_path=True."
        )
    takes_float64 = _takes_float64(encoder, rows) and _takes_float64(decoder, codes)
    return encoder, decoder, width, takes_float64


def rebuild_networks(recipe, layout, n_components, linear_path, fill):
    """Networks of a recipe with weights that are at hand.

    Those of this module's own recipes take neither time nor memory before it is known
    that the weights fit.

    Parameters
    ----------
    recipe, layout, n_components, linear_path
        As for :func:`build_networks`.
    fill : callable
        Puts the weights into a module whose children are ``encoder`` and ``decoder``.
        Its parameters may be on the device "meta", without values.

    Returns
    -------
    encoder, decoder, width, takes_float64
        As from :func:`build_networks`.
    """
    if type(recipe) not in RECIPES.values():
        encoder, decoder, *facts = build_networks(
            recipe, layout, n_components, linear_path
        )
        fill(nn.ModuleDict({"encoder": encoder, "decoder": decoder}))
        return encoder, decoder, *facts
    with torch.device("meta"):
        modules = [module.float() for module in _modules(recipe, layout, n_components)]
        encoder, decoder = layout.on_rows(*modules)
        if linear_path:
            # Zeros in their last layers make their outputs zero.
            gates = False, False
            encoder, decoder = _add_linear_path(
                encoder, decoder, layout, n_components, gates
            )
    fill(nn.ModuleDict({"encoder": encoder, "decoder": decoder}))
    return encoder, decoder, recipe._width(layout.input_shape, n_components), True


def _modules(recipe, layout, n_components):
    shape = layout.input_shape
    return recipe.encoder(shape, n_components), recipe.decoder(n_components, shape)


def _add_linear_path(encoder, decoder, layout, n_components, gates):
    n_features = layout.n_features
    # Torch's default type may be another.
    return (
        LinearPathEncoder(encoder, n_features, n_components, gates[0]).float(),
        LinearPathDecoder(decoder, n_components, n_features, gates[1]).float(),
    )


def _probe(shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, dtype=torch.float32, generator=generator)


def _takes_float64(module, probe):
    try:
        with torch.no_grad(), _evaluating(module):
            deepcopy(module).double()(probe.double())
    # Networks that cast to float32 themselves, for one.
    except Exception:
        return False
    return True


def _check_modules(recipe, modules, layout, n_components):
    """Check a recipe's modules; return the size of their widest layer."""
    owner, shape = type(recipe).__name__, layout.input_shape
    encoder, decoder = modules
    rows, codes = _probe(shape), _probe((n_components,))
    return max(
        _check_module(f"encoder ({owner}.encoder)", encoder, rows, (2 * n_components,)),
        _check_module(f"decoder ({owner}.decoder)", decoder, codes, shape),
    )


def _check_module(name, module, probe, shape_out):
    """Run a module on a probe; return the size of its widest layer."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"The network's {name} must be a torch.nn.Module. Got "
            f"{type(module).__name__} instead."
        )
    expected, before = (len(probe), *shape_out), probe.clone()
    try:
        with torch.no_grad(), _evaluating(module), _watch_sizes(module) as sizes:
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
    if not output.is_floating_point():
        raise ValueError(
            f"The network's {name} must return floating point numbers. Got "
            f"{output.dtype} instead."
        )
    if not torch.equal(probe, before):
        raise ValueError(
            f"The network's {name} must leave its input as it is, since the loss needs "
            "it. Set inplace=False in its first layers."
        )
    return max(sizes) // len(probe)


@contextmanager
def _watch_sizes(module):
    """List that receives the size of each layer's output."""
    sizes = [0]

    def record(layer, inputs, output):
        if torch.is_tensor(output):
            sizes.append(output.numel())

    hooks = [
        layer.register_forward_hook(record)
        for layer in module.modules()
        if not isinstance(layer, torch.jit.ScriptModule)
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()
