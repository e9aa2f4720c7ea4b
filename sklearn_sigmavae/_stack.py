"""Many modules of one architecture as one module, and one net that trains them.

The members of a stack share nothing: each has its own weights, batches, loss and best
epoch, and trains as it would alone, up to rounding. But they take their steps together,
in one matrix product for all where each would take one of its own. On small networks,
whose training is mostly the price of calling torch, this is several times as fast.
"""

import math
from copy import deepcopy

import torch
from skorch.history import History
from torch import nn

from ._layout import ImagesToRows, RowsToImages
from ._module import VAE
from ._net import BoundNet, divergence_error
from .networks import ACTIVATIONS, LinearPathDecoder, LinearPathEncoder


class NotStackableError(Exception):
    """Says why models cannot be trained as a stack."""


class LinearStack(nn.Module):
    """Linear layers side by side: (n_members, n, n_in) to (n_members, n, n_out)."""

    def __init__(self, layers):
        super().__init__()
        # Transposed, as the products need it: neither their gradients nor the optimizer
        # copies anything.
        weight = torch.stack([layer.weight.detach() for layer in layers])
        self.weight = nn.Parameter(weight.mT.contiguous())
        self.bias = _stacked([layer.bias for layer in layers])

    def forward(self, x):
        """Outputs of the layers, or those of all for the same input."""
        x = x.expand(len(self.weight), -1, -1)
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class OnRowsOfAll(nn.Module):
    """A module that treats each row by itself, on the rows of all members at once."""

    def __init__(self, modules):
        super().__init__()
        self.module = modules[0]

    def forward(self, x):
        """Outputs of the module."""
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _stack_children(modules):
    """A module with stacks for its children and for its own parameters."""
    stack = deepcopy(modules[0])
    for name, _ in modules[0].named_children():
        children = [getattr(module, name) for module in modules]
        setattr(stack, name, stack_modules(children))
    for name, _ in modules[0].named_parameters(recurse=False):
        setattr(stack, name, _stacked([getattr(module, name) for module in modules]))
    return stack


def _stacked(parameters):
    """Vectors or numbers as a parameter that broadcasts over the rows of a member."""
    if parameters[0] is None:
        return None
    stack = torch.stack([parameter.detach() for parameter in parameters])
    return nn.Parameter(stack.reshape(len(parameters), 1, -1))


_STACKS = {
    nn.Linear: LinearStack,
    nn.Sequential: _stack_children,
    LinearPathEncoder: _stack_children,
    LinearPathDecoder: _stack_children,
    nn.Flatten: OnRowsOfAll,
    nn.Unflatten: OnRowsOfAll,
    RowsToImages: OnRowsOfAll,
    ImagesToRows: OnRowsOfAll,
}
# What works number by number works on any shape.
_STACKS |= dict.fromkeys(ACTIVATIONS.values(), lambda modules: modules[0])


def stack_modules(modules):
    """One module for several of one architecture, fully connected ones.

    Parameters
    ----------
    modules : list of torch.nn.Module

    Returns
    -------
    stack : torch.nn.Module
        From (n_members, n, n_in), or 1 for n_members, to (n_members, n, n_out). Its
        state has the names of a member's, and tensors whose first dimension tells the
        members apart, those of linear layers transposed.

    Raises
    ------
    NotStackableError
        If there is a kind of layer in them for which no stack is known.
    """
    first = modules[0]
    if type(first) not in _STACKS:
        raise NotStackableError(
            f"its networks have layers of type {type(first).__name__}"
        )
    every_use = list(first.named_parameters(remove_duplicate=False))
    if len(every_use) > len(list(first.parameters())):
        raise NotStackableError("its networks share weights between layers")
    if not all(parameter.requires_grad for _, parameter in every_use):
        raise NotStackableError("its networks have frozen weights")
    if any(module._forward_hooks for module in first.modules()):
        raise NotStackableError("its networks have hooks")
    return _STACKS[type(first)](modules)


def stack_networks(pairs):
    """Stacks of encoders and of decoders; see :func:`stack_modules`."""
    # Both at once, since they may share weights.
    return stack_modules([nn.Sequential(*pair) for pair in pairs])


class VAEStack(VAE):
    """Several VAEs as one, for training.

    Parameters
    ----------
    members : list of VAE
        With the same layout, dimension and architecture; units may differ.
    """

    n_stack_dims = 1

    def __init__(self, members):
        first = members[0]
        super().__init__(
            *stack_networks([(vae.encoder, vae.decoder) for vae in members]),
            first.units,
            first.layout,
            first.n_components,
            first.width,
            takes_float64=False,
        )
        self.n_members = len(members)

    def decode(self, z):
        """Locations for codes (n_members, ..., k), any dimensions in between."""
        location = self.decoder(z.flatten(1, -2)).to(z.dtype)
        return location.unflatten(1, z.shape[1:-1])

    def write_to(self, members):
        """Put the weights of the stack into its members."""
        stacks = {name: value.cpu() for name, value in self.state_dict().items()}
        for name, module in self.named_modules():
            if isinstance(module, LinearStack):
                stacks[f"{name}.weight"] = stacks[f"{name}.weight"].mT
        for i, vae in enumerate(members):
            vae.load_state_dict(
                {
                    name: stacks[name][i].reshape(value.shape)
                    for name, value in vae.state_dict().items()
                }
            )


class StackNet(BoundNet):
    """Net of a stack; losses in its history are arrays of shape (n_members,)."""

    def get_default_callbacks(self):
        """Those of skorch that take arrays for losses."""
        return [item for item in super().get_default_callbacks() if "timer" in item[0]]

    def record_epoch(self, prefix, loss, iterator):
        """Record the loss of an epoch for each member."""
        super().record_epoch(prefix, loss, iterator)
        self.history.record(prefix + "_loss", loss)

    def check_finite(self, losses):
        """Raise ``ValueError`` if all members have diverged.

        Not those that have ended before: they have not failed, whatever they do since.
        """
        keeper = self.keeper
        if keeper is None or not keeper.any_has_ended:
            super().check_finite(losses)

    def member_history(self, i):
        """History of a member: up to the end of its own training.

        Raises
        ------
        ValueError
            If its loss became non-finite.
        """
        history = History()
        for row in self.history[: self._n_epochs(i)]:
            batches = [_of_member(batch, i) for batch in row["batches"]]
            history.append(_of_member(row, i) | {"batches": batches})
            if not math.isfinite(history[-1]["train_loss"]):
                raise divergence_error(len(history), self.lr)
        return history

    def _n_epochs(self, i):
        if not self.history or self.keeper is None:
            return len(self.history)
        return int(self.keeper.n_epochs_[i])


def _of_member(row, i):
    return {
        name: value[i].item() if getattr(value, "ndim", 0) else value
        for name, value in row.items()
    }
