"""From a recipe to the encoder and the decoder, and their linear paths."""

from contextlib import nullcontext, suppress
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from torch import nn

from ..networks import MLP, Conv
from .layout import ImagesToRows, RowsToImages

# Those that a file can name.
RECIPES = {"MLP": MLP, "Conv": Conv}


def class_name(value):
    """Full name of the class of an object."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


class Networks(NamedTuple):
    """Encoder and decoder, from and to rows, and what is known of them.

    ``width`` is the size of the widest layer for one row or code, ``recipe`` one of
    this package or the name of a custom class.
    """

    encoder: nn.Module
    decoder: nn.Module
    width: int
    supports_float64: bool
    recipe: object


class _LinearPath(nn.Module):
    """A linear map plus a network that can be made to start at zero.

    Most networks are zero if the parameters of their last layer are; others get a
    learned gate, which trains less well.
    """

    def __init__(self, network, n_in, n_out, starts_at_zero):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        # A network that is linear itself would add parameters and no function.
        self.network = None if _is_linear(network) else network
        needs_gate = self.network is not None and not starts_at_zero
        self.gate = nn.Parameter(torch.ones(())) if needs_gate else None

    def zero_network(self):
        """Make the network's output zero; training opens it again."""
        if self.gate is not None:
            nn.init.zeros_(self.gate)
        elif self.network is not None:
            for parameter in _last_layer(self.network):
                nn.init.zeros_(parameter)

    def linear_part(self, x):
        """Output of the linear path alone."""
        return self.linear(x)

    def forward(self, x):
        """Output of both."""
        linear = self.linear_part(x)
        if self.network is None:
            return linear
        output = self.network(x)
        return linear + (output if self.gate is None else self.gate * output)


class LinearPathEncoder(_LinearPath):
    """Encoder, whose linear path has a constant log-variance, as a linear model has."""

    def __init__(self, network, n_features, n_components, starts_at_zero):
        super().__init__(network, n_features, n_components, starts_at_zero)
        self.log_var = nn.Parameter(torch.zeros(n_components))

    def linear_part(self, x):
        """Mean and log-variance of the linear path alone."""
        mean = self.linear(x)
        return torch.cat([mean, self.log_var.expand_as(mean)], dim=-1)


class LinearPathDecoder(_LinearPath):
    """Decoder: a linear map plus a network."""


class FixedLinear(nn.Module):
    """A linear map that is not trained: from coordinates to features, or back."""

    def __init__(self, weight):
        super().__init__()
        # Not among the weights, since units hold the axes.
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x):
        """Rows (..., n_in) to (..., n_out)."""
        return x @ self.weight


def _is_linear(network):
    """Whether a network is one linear layer, apart from changes of shape."""
    no_layers = nn.Sequential, nn.Flatten, nn.Unflatten, RowsToImages, ImagesToRows
    layers = [type(module) for module in network.modules()]
    others = {*no_layers, FixedLinear}
    return [layer for layer in layers if layer not in others] == [nn.Linear]


def _last_layer(network):
    """Parameters of the last registered layer that has any."""
    layers = [list(layer.parameters(recurse=False)) for layer in network.modules()]
    return next(filter(None, reversed(layers)), [])


def build_networks(recipe, layout, n_components, linear_path, axes=None, fill=None):
    """``Networks`` of a recipe, from and to rows, or coordinates along `axes` of them.

    Recipes other than this package's fully connected one need the layout of samples, so
    theirs get the axes around them. `fill` puts weights into a module with children
    ``encoder`` and ``decoder``; known recipes take neither time nor memory before.
    """
    owner, shape, k = type(recipe).__name__, layout.input_shape, n_components
    is_known = type(recipe) in RECIPES.values()
    n_inside = layout.n_features if axes is None else axes.shape[1]
    needs_layout = axes is None or type(recipe) is not MLP
    if not needs_layout:
        shape = (n_inside,)
    with torch.device("meta") if is_known and fill else nullcontext():
        encoder, decoder = recipe.encoder(shape, k), recipe.decoder(k, shape)
        if is_known:
            facts = [(recipe._width(shape, k), True, True)] * 2
        else:
            # Recipes may keep modules. Both at once, since they may share layers.
            encoder, decoder = deepcopy((encoder, decoder))
            facts = [
                _try_out(f"encoder ({owner}.encoder)", encoder, shape, (2 * k,)),
                _try_out(f"decoder ({owner}.decoder)", decoder, (k,), shape),
            ]
        widths, zeros, casts = zip(*facts, strict=True)
        if needs_layout:
            encoder, decoder = layout.on_rows(encoder, decoder)
        if needs_layout and axes is not None:
            weight = torch.from_numpy(axes).float()
            encoder = nn.Sequential(FixedLinear(weight.mT), encoder)
            decoder = nn.Sequential(decoder, FixedLinear(weight))
        if linear_path:
            encoder = LinearPathEncoder(encoder, n_inside, k, zeros[0])
            decoder = LinearPathDecoder(decoder, k, n_inside, zeros[1])
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    if not any(parameter.requires_grad for parameter in both.parameters()):
        raise ValueError(
            f"The networks of {owner} have no parameters to train. Return modules with "
            "some that require gradients, or set linear_path=True."
        )
    if fill:
        fill(both)
    known = clone(recipe) if is_known else class_name(recipe)
    return Networks(encoder, decoder, max(widths), all(casts), known)


def _try_out(name, module, shape_in, shape_out):
    """Check a module; return its width, if it can be zeroed, if it supports float64."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"The network's {name} must be a torch.nn.Module. Got "
            f"{type(module).__name__} instead."
        )
    # Recipes may choose a type; training is in float32.
    module.float()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape_in, dtype=torch.float32, generator=generator)
    before, expected = x.clone(), (2, *shape_out)
    try:
        output, width, _ = measure(module, lambda: module(x))
    except Exception as error:
        raise ValueError(
            f"The network's {name} fails on an input of shape {(2, *shape_in)}: {error}"
        ) from error
    got = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
    wrong = None
    if got != expected or not output.is_floating_point():
        wrong = f"map shape {(2, *shape_in)} to floating point numbers of shape "
        wrong += f"{expected}. Got {got}, {getattr(output, 'dtype', '')}"
    elif not torch.equal(x, before):
        wrong = "leave its input as it is. Set inplace=False in its first layers"
    if wrong:
        raise ValueError(f"The network's {name} must {wrong}.")
    copied = deepcopy(module).eval()
    supports_float64 = False
    with torch.no_grad():
        for parameter in _last_layer(copied):
            parameter.zero_()
        starts_at_zero = not copied(x).any()
        with suppress(Exception):  # of a network that casts to float32 itself, say
            copied.double()(x.double())
            supports_float64 = True
    return width, starts_at_zero, supports_float64


def count_operations(vae):
    """Floating-point operations of encoding and decoding one row, about."""
    x = next(vae.parameters()).new_zeros((2, vae.units.n_internal))
    return measure(vae, lambda: vae.decode(vae(x)))[2]


def measure(module, call):
    """Result of a call with two rows, and for one the widest layer and operations."""
    sizes, n_products = [0], [0]

    def record(layer, inputs, output):
        if not torch.is_tensor(output):
            return
        sizes.append(output.numel())
        weight = getattr(layer, "weight", None)
        if torch.is_tensor(weight) and weight.ndim > 1:
            # Each number that comes out, or goes in, meets one slice of the weights.
            is_transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
            met = inputs[0] if is_transposed else output
            n_products.append(met.numel() * weight[0].numel())

    was_training = module.training
    layers = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        # So that a batch normalization learns nothing.
        module.eval()
        with torch.no_grad():
            result = call()
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return result, max(sizes) // 2, float(sum(n_products))


def resolve_network(network, hidden_layer_sizes, activation):
    """Recipe that a ``network`` parameter stands for."""
    if isinstance(network, type):
        raise TypeError(
            "The 'network' parameter of SigmaVAE must be an instance, such as "
            f"{network.__name__}(), not a class."
        )
    if not isinstance(network, str):
        return network
    if network == "conv":
        return Conv(activation=activation)
    return MLP(tuple(np.atleast_1d(hidden_layer_sizes).tolist()), activation)
