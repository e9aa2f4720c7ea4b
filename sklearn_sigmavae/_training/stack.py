"""Many models of one architecture trained as one; what only stacks need.

The members of a stack share nothing: each has its own weights, batches, loss and best
epoch, and trains as it would alone, up to rounding. But they take their steps together,
in one matrix product for all where each would take one of its own. On small networks,
whose training is mostly the price of calling torch, this is several times as fast.

``torch.func.vmap`` would stack any layers, but its steps take a sixth to a half longer
(``benchmarks/bench_stack.py``).
"""

import math
from copy import deepcopy

import numpy as np
import torch
from sklearn.utils import check_random_state
from skorch.history import History
from torch import nn
from torch.nn import functional as F

from .._errors import divergence_error
from .._model.blocks import EVALUATED_IN_STACK, STACKED
from .._model.build import FixedLinear, LinearPathDecoder, LinearPathEncoder
from .._model.elbo import NegativeELBO, linear_tau
from .._model.layout import ImagesToRows, RowsToImages
from .._model.prior import Density, build_prior
from .._model.settings import (
    DATA_FRACTION,
    explain_out_of_memory,
    limited_threads,
    resolve_device,
)
from .._model.vae import VAE
from ..networks import ACTIVATIONS
from ..noise import resolve_noise
from ..priors import resolve_prior
from .data import EvaluationBatches, Selection, TrainingBatches
from .fit import make_net, threads_of_steps
from .initial import draw_seeds, initial_model, make_networks, relative_scales
from .net import VALIDATION_POINTS, VAENet
from .outcome import conclude


class NotStackableError(Exception):
    """Why models cannot be trained as a stack."""


# Fits


# Also under a caller's torch.no_grad() or torch.inference_mode(), and in forks.
@limited_threads(0, "cpu")
@torch.inference_mode(False)
@torch.enable_grad()
def fit_stack(estimators, samples, schedule, callbacks=()):
    """Fit several models as one stack, each as it would be alone.

    The estimators' parameters differ in ``sigma``, ``beta`` and ``random_state`` alone
    (all have a number for it, or the same string). ``samples`` has the data of each, of
    equal size and the same object where it is the same. Returns for each its
    ``FittedModel``, or the exception that ended its fit. ``NotStackableError`` if
    networks cannot be stacked.
    """
    models, starts, likes = {}, {}, {}
    if any(data.has_gaps for data in samples):
        # Batches of a stack have one shape. The same object where data is the same.
        with_gaps = {id(data): data._replace(has_gaps=True) for data in samples}
        samples = [with_gaps[id(data)] for data in samples]
    # Those with the least noise first, since they see the most axes.
    for i in sorted(range(len(samples)), key=lambda i: _tau(estimators[i])):
        params, data = estimators[i], samples[i]
        try:
            seeds = draw_seeds(check_random_state(params.random_state))
            _, relative = relative_scales(params, data)
            key = id(data), relative.tobytes()
            if isinstance(params.sigma, str):
                # Which of them sees the most axes is not known yet.
                key = *key, params.beta
            like = likes.get((*key, seeds), likes.get(key))
            starts[i] = initial_model(params, data, seeds, schedule, like)
            for each in (key, (*key, seeds)):
                likes.setdefault(each, starts[i])
        except Exception as error:
            models[i] = error
    starts = {i: starts[i] for i in sorted(starts)}
    if starts:
        trained = train_stack([*starts.values()], schedule, callbacks)
        models |= zip(starts, trained, strict=True)
    return [models[i] for i in range(len(estimators))]


def _tau(params):
    """The tau of the linear model's optimum, up to a factor that others share."""
    noise, is_number = resolve_noise(params.noise), not isinstance(params.sigma, str)
    scale = np.mean(params.sigma) if noise.has_scale and is_number else 1.0
    return linear_tau(noise, scale, params.beta)


def train_stack(starts, schedule, callbacks=()):
    """Train initial models as one stack; see :func:`fit_stack`."""
    first, vaes = starts[0], [start.vae for start in starts]
    device = first.rows.device
    stack = VAEStack(vaes)
    criterion = NegativeELBOStack([start.criterion for start in starts])
    training = SelectionStack([start.selection for start in starts])
    held_out = first.held_out
    if held_out is not None:
        held_out = SelectionStack([start.held_out for start in starts])
    with (
        explain_out_of_memory(device, first.params.batch_size),
        threads_of_steps(starts),
    ):
        net = make_net(
            first,
            schedule,
            callbacks,
            StackNet,
            module=stack,
            criterion=criterion,
            seed=tuple(starts[i].seeds[0] for i in training.distinct),
        )
        try:
            net.train(training, held_out)
        except ValueError as error:  # all have diverged
            return [error] * len(starts)
        if criterion.learns_scale:
            net.learn_scale(SelectionStack([Selection(start.rows) for start in starts]))
        stack.write_to(vaes)
        return [_member(net, i, start, schedule) for i, start in enumerate(starts)]


def _member(net, i, start, schedule):
    """Model of a member of a trained stack, or why its fit failed."""
    member = make_net(start, schedule)
    try:
        member.history_ = net.member_history(i)
        for name in ("start_loss_", "best_epoch_", "is_rising_"):
            value = np.broadcast_to(getattr(net, name), net.module_.n_members)
            setattr(member, name, value[i].item())
        return conclude(member, start, schedule)
    except ValueError as error:
        return error


# Data


class SelectionStack:
    """Selections of equal size, one for each member of a stack.

    Members with the same rows in the same order share batches, those of the one with
    the most axes; ``distinct`` are the numbers of members, one for each of these. The
    rows of a member with fewer axes are these times ``factors``, which are zero where
    it has none, so that it trains as it would alone: its weights there are zero, and so
    are their gradients.
    """

    def __init__(self, selections):
        self.all, self.device = selections, selections[0].device
        # From the narrowest to the widest, the last of which stays.
        widest = {each.order: each for each in sorted(selections, key=_width)}
        orders = [selection.order for selection in selections]
        self.distinct = [orders.index(order) for order in dict.fromkeys(orders)]
        members = [self.distinct.index(orders.index(order)) for order in orders]
        self.members = torch.tensor(members, device=self.device)
        self.selections = [widest[orders[i]] for i in self.distinct]
        self.width, self.factors = max(map(_width, selections)), None
        if any(each is not widest[each.order] for each in selections):
            shape = len(selections), 1, self.width
            factors = torch.zeros(shape, dtype=torch.float32)
            for factor, each in zip(factors, selections, strict=True):
                ratio = each.rows.ratio / widest[each.order].rows.ratio
                factor[:, : _width(each)] = ratio
            self.factors = factors.to(self.device)

    def __len__(self):
        return len(self.all[0])

    @property
    def outside(self):
        """list of float : That of each; see :class:`Selection`."""
        return [selection.outside for selection in self.all]

    @property
    def n_features(self):
        """int : Features of a row."""
        return self.all[0].n_features

    @property
    def n_observed(self):
        """list of float : Those of each; see :class:`Selection`."""
        return [selection.n_observed for selection in self.all]

    def complete_for(self, criterion):
        """See :class:`Selection`."""
        for selection, member in zip(self.all, criterion.members, strict=True):
            selection.complete_for(member)

    def some(self):
        """About a thousand evenly chosen rows of each."""
        return SelectionStack([each.some() for each in self.all])

    def training_batches(self, batch_size, n_components, generators):
        """Shuffled batches, with a generator for each distinct selection."""
        batches = [
            TrainingBatches(selection, batch_size, n_components, generator)
            for selection, generator in zip(self.selections, generators, strict=True)
        ]
        return BatchStacks(self, batches)

    def evaluation_batches(self, vae, n_points):
        """Batches in order, those of the members cut into smaller ones on the CPU."""
        batches = [
            EvaluationBatches(selection, vae, n_points) for selection in self.selections
        ]
        n_rows = None
        if self.device.type == "cpu":
            n_numbers = 2 * batches[0].n_pairs * len(self.members) * vae.width
            n_rows = max(1, EVALUATED_IN_STACK // n_numbers)
        return BatchStacks(self, batches, n_rows)

    def spread(self, x):
        """Rows of the distinct selections, a list, to those of all members."""
        if len(x) == 1:
            x = x[0].unsqueeze(0)
        else:
            padded = [F.pad(rows, (0, self.width - rows.shape[-1])) for rows in x]
            x = torch.stack(padded)[self.members]
        return x if self.factors is None else x * self.factors


def _width(selection):
    return selection.rows.shape[1]


class BatchStacks:
    """The batches of a stack's members, side by side, of at most `n_rows` rows.

    Rows are (n_members, n, n_features) and points (n_members, ..., n, k), with 1 for
    n_members where all members share them.
    """

    def __init__(self, dataset, batches, n_rows=None):
        self.dataset, self.batches, self.n_rows = dataset, batches, n_rows

    def __len__(self):
        return len(self.batches[0])

    @property
    def sizes(self):
        """list of int : Number of rows in each training batch."""
        return self.batches[0].sizes

    def __iter__(self):
        for group in zip(*self.batches, strict=True):
            x, eps = zip(*group, strict=True)
            x = self.dataset.spread(x)
            if len(eps) == 1:
                eps = eps[0].unsqueeze(0)
            else:
                eps = torch.stack(eps)[self.dataset.members]
            n_rows = self.n_rows or x.shape[-2]
            yield from zip(x.split(n_rows, -2), eps.split(n_rows, -2), strict=True)


# Losses


class NegativeELBOStack(NegativeELBO):
    """The losses of a stack's members, a tensor of shape (n_members,).

    The members' own have the same noise, and all of them learn their scale or none.
    """

    def __init__(self, members):
        first = members[0]
        super().__init__(first.noise, None, None, falling=first.falling)
        self.members = nn.ModuleList(members)
        del self.beta, self.scale, self.min_scale, self.kl_factor
        # Buffers, since they must be where the stack is.
        self.register_buffer("beta", _float32([each.beta for each in members]))
        self.register_buffer("kl_factor", torch.ones_like(self.beta))
        scales = [each.scale for each in members] if first.noise.has_scale else None
        self.register_buffer("scale", scales and _float32(scales))
        lowest = [each.min_scale for each in members] if first.learns_scale else None
        self.register_buffer("min_scale", lowest and _float32(lowest))

    @property
    def settings(self):
        """tuple : Numbers that the loss depends on; tensors are seen by captures."""
        return ()

    def in_nats(self, vae, loss, dataset):
        """Losses in nats; see :class:`NegativeELBO`."""
        power = [None] * len(self.members)
        power = power if self.power is None else self.power.tolist()
        of_members = zip(self.members, loss, dataset.all, power, strict=True)
        return np.array(
            [
                member._in_nats(vae, each, selection, energy)
                for member, each, selection, energy in of_members
            ]
        )

    @property
    def best_scale(self):
        """ndarray : Scales that are best for rows evaluated last, or NaN."""
        return np.array([member.best_scale for member in self.members])

    @property
    def best_sigma(self):
        """ndarray : The same in the units of the data."""
        return np.array([member.best_sigma for member in self.members])

    def anneal(self, progress, largest):
        """Set the factors of the KL divergences; see :class:`NegativeELBO`."""
        for member in self.members:
            member.anneal(progress, largest)
        self.kl_factor.copy_(_float32([member.kl_factor for member in self.members]))

    def set_scale(self, scale):
        """Evaluate at other scales, a tensor; see :class:`NegativeELBO`."""
        self.scale.copy_(scale)
        for member, of_member in zip(self.members, scale.tolist(), strict=True):
            member.scale = of_member

    def _for_rows(self, scale):
        return None if scale is None else scale[:, None]


def _float32(values):
    return torch.tensor(values, dtype=torch.float32)


# Modules


class LinearStack(nn.Module):
    """Linear layers side by side: (n_members, n, n_in) to (n_members, n, n_out)."""

    def __init__(self, layers):
        super().__init__()
        # Transposed, as the products need it: neither gradients nor optimizer copy it.
        weight = _padded([layer.weight.detach() for layer in layers])
        self.weight = nn.Parameter(weight.mT.contiguous())
        self.bias = _stacked([layer.bias for layer in layers])

    def forward(self, x):
        """Outputs of the layers, or those of all for the same input."""
        x = x.expand(len(self.weight), -1, -1)
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class FixedLinearStack(nn.Module):
    """Linear maps that are not trained, side by side."""

    def __init__(self, maps):
        super().__init__()
        weight = _padded([each.weight for each in maps])
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x):
        """Images of (n_members or 1, n, n_in)."""
        return torch.bmm(x.expand(len(self.weight), -1, -1), self.weight)


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
    for name, _ in stack.named_children():
        setattr(stack, name, stack_modules([getattr(m, name) for m in modules]))
    for name, _ in modules[0].named_parameters(recurse=False):
        setattr(stack, name, _stacked([getattr(m, name) for m in modules]))
    return stack


def _stacked(parameters):
    """Vectors or numbers as a parameter that broadcasts over the rows of a member."""
    if parameters[0] is None:
        return None
    stack = _padded([parameter.detach() for parameter in parameters])
    return nn.Parameter(stack.reshape(len(parameters), 1, -1))


def _padded(tensors):
    """Tensors, stacked, with zeros where one is smaller than others."""
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    stack = tensors[0].new_zeros(len(tensors), *shape)
    for padded, tensor in zip(stack, tensors, strict=True):
        padded[tuple(map(slice, tensor.shape))] = tensor
    return stack


_STACKS = {
    nn.Linear: LinearStack,
    FixedLinear: FixedLinearStack,
    **dict.fromkeys(
        (nn.Sequential, LinearPathEncoder, LinearPathDecoder), _stack_children
    ),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, RowsToImages, ImagesToRows), OnRowsOfAll
    ),
    # Elementwise layers work on any shape.
    **dict.fromkeys(ACTIVATIONS.values(), lambda modules: modules[0]),
}


def stack_modules(modules):
    """One module for several fully connected ones of one architecture.

    It maps (n_members or 1, n, n_in) to (n_members, n, n_out). Its state has a member's
    names and a first dimension for the members; weights of linear layers are
    transposed. Raises ``NotStackableError`` for other layers.
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


def stack_networks(members):
    """``Networks`` of stacks; see :func:`stack_modules`."""
    # Both at once, since they may share weights.
    pairs = [nn.Sequential(member.encoder, member.decoder) for member in members]
    encoder, decoder = stack_modules(pairs)
    return members[0]._replace(encoder=encoder, decoder=decoder, supports_float64=False)


class DensityStack(Density):
    """Priors side by side, with one recipe."""

    def log_prob(self, z):
        """Log-densities of codes (n_members, ..., k)."""
        return torch.func.vmap(lambda z, values: self.recipe.log_prob(z, **values))(
            z, self.named_values()
        )


def stack_priors(members, n_components):
    """A module for several priors of one recipe."""
    first = members[0]
    if not first.named_values():
        return first
    values = {
        name: torch.stack([member.named_values()[name].detach() for member in members])
        for name in first.named_values()
    }
    stack = DensityStack(first.recipe, values)
    try:
        shape = len(members), 2, n_components
        stack.log_prob(torch.zeros(shape, dtype=torch.float32))
    except Exception as error:
        raise NotStackableError("torch.func.vmap cannot run its prior") from error
    return stack


@limited_threads(0, "cpu")
def limit_of_stack(estimator, layout):
    """Why an estimator cannot be trained in a stack, or None; and how many can.

    The third result is the number of operations for a row, about.
    """
    if estimator.callbacks:
        return "their callbacks would see a stack instead of one model", 1, 0
    if estimator.checkpoint_dir is not None:
        return "checkpoints are of one model", 1, 0
    if not isinstance(estimator.optimizer, str):
        return "a custom optimizer may mix the members of a stack", 1, 0
    networks = make_networks(estimator, layout, seed=0, axes=None)
    width, k = networks.width, estimator.n_components
    recipe = resolve_prior(estimator.prior)
    try:
        networks = nn.ModuleList(stack_networks([networks])[:2])
        prior = stack_priors([build_prior(recipe, recipe.parameters(k))], k)
    except NotStackableError as error:
        return str(error), 1, 0
    # Weights, the best ones, gradients and two moments.
    parameters = [*networks.parameters(), *prior.parameters()]
    n_numbers = 5 * sum(parameter.numel() for parameter in parameters)
    # Outputs of the layers for a batch, which the gradients need.
    n_layers = sum(1 for _ in networks.modules())
    n_numbers += n_layers * width * estimator.batch_size
    device, budget = resolve_device(estimator.device), STACKED
    if device.type != "cpu":
        # And for the held-out rows, which on the CPU come a few at a time.
        n_numbers += 3 * width * VALIDATION_POINTS
    if device.type == "cuda":
        budget = DATA_FRACTION * torch.cuda.mem_get_info(device)[0] / 4
    # A weight is multiplied, and what comes of it added, for each row.
    n_operations = 2 * sum(parameter.numel() for parameter in networks.parameters())
    return None, max(1, int(budget // n_numbers)), n_operations


class VAEStack(VAE):
    """Several VAEs as one, for training; their units may differ."""

    def __init__(self, members):
        # Units with the most axes, since others are padded.
        widest = max(members, key=lambda vae: vae.units.n_seen)
        networks = stack_networks([vae.networks for vae in members])
        k = widest.n_components
        prior = stack_priors([vae.prior for vae in members], k)
        super().__init__(networks, prior, widest.units, widest.layout, k)
        self.width = max(vae.width for vae in members)
        self.n_members = len(members)
        if self.axes is not None:
            self.axes = _padded([vae.axes for vae in members])
        if self.filter is not None:
            self.filter = _padded([vae.filter for vae in members]).unsqueeze(1)

    def decode(self, z):
        """Locations for codes (n_members, ..., k), any dimensions in between."""
        location = self.decoder(z.flatten(1, -2)).to(z.dtype)
        if self.axes is not None:
            location = location @ self.axes.mT
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
                    name: _cropped(stacks[name][i], value.shape)
                    for name, value in vae.state_dict().items()
                }
            )


def _cropped(tensor, shape):
    """The part of a padded tensor; see :func:`_padded`."""
    # Vectors and numbers have a dimension for the rows.
    tensor = tensor.reshape(tensor.shape[tensor.ndim - len(shape) :])
    return tensor[tuple(map(slice, shape))]


class StackNet(VAENet):
    """Net of a stack; losses in its history are arrays of shape (n_members,)."""

    def get_default_callbacks(self):
        """Those of skorch that take arrays for losses."""
        return [item for item in super().get_default_callbacks() if "timer" in item[0]]

    def record_epoch(self, prefix, loss, iterator):
        """Record the loss of an epoch for each member."""
        super().record_epoch(prefix, loss, iterator)
        self.history.record(prefix + "_loss", loss)

    def check_finite(self, losses):
        """Raise ``DivergenceError`` if all members have diverged before any ended."""
        if self.keeper is None or not self.keeper.any_has_ended:
            super().check_finite(losses)

    def member_history(self, i):
        """History of a member up to its own end; raises if its loss was not finite."""
        n_epochs = len(self.history)
        if n_epochs and self.keeper is not None:
            n_epochs = int(self.keeper.n_epochs[i])
        history = History()
        for row in self.history[:n_epochs]:
            batches = [_of_member(batch, i) for batch in row["batches"]]
            history.append(_of_member(row, i) | {"batches": batches})
            if not math.isfinite(history[-1]["train_loss"]):
                raise divergence_error(len(history), self.lr)
        return history


def _of_member(row, i):
    return {
        name: value[i].item() if getattr(value, "ndim", 0) else value
        for name, value in row.items()
    }
