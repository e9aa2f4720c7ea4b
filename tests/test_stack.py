"""A stack's members train as each would alone, whatever happens to the others."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from skorch.callbacks import Callback
from small_vae import (
    BatchNormNetwork,
    DropoutNetwork,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)
from torch import nn

from sklearn_sigmavae import GeneralizedNormalNoise
from sklearn_sigmavae._batches import SelectionStack
from sklearn_sigmavae._bound import NegativeBoundStack
from sklearn_sigmavae._stack import (
    NotStackableError,
    VAEStack,
    stack_modules,
    stack_networks,
)
from sklearn_sigmavae._start import draw_seeds, prepare
from sklearn_sigmavae._training import Plan, train_stack
from sklearn_sigmavae.networks import ACTIVATIONS

X = low_rank_rows(75)
IN_UNIT = (X - X.min()) / np.ptp(X)
# 70 images, of which folds of 35 rows are taken.
IMAGES = low_rank_rows(70, 12, rank=3).astype(np.float32)

# What members differ in: sigma, beta, random_state and the fold.
MEMBERS = [
    ({"sigma": 0.1, "random_state": 0}, 0),
    ({"sigma": 0.3, "random_state": 0}, 0),
    ({"sigma": 0.3, "beta": 2.0, "random_state": 1}, 0),
    ({"sigma": 1.0, "beta": 0.5, "random_state": 1}, 1),
    ({"sigma": 2.0, "beta": 0.5, "random_state": 0}, 1),
]

CASES = {
    "one cycle": {},
    "constant, patience of 1": {
        "lr_schedule": "constant",
        "n_iter_no_change": 1,
        "max_iter": 12,
        "learning_rate": 3e-2,
        "init": "random",
    },
    "constant, patience of 2": {
        "lr_schedule": "constant",
        "n_iter_no_change": 2,
        "max_iter": 12,
        "learning_rate": 3e-2,
        "init": "random",
    },
    "no early stopping": {"early_stopping": False},
    "laplace": {"noise": "laplace"},
    "exponent of 1.5": {"noise": GeneralizedNormalNoise(1.5)},
    "bernoulli": {"noise": "bernoulli"},
    "learned sigma": {"sigma": "mle"},
    "learned sigma, no early stopping": {"sigma": "mle", "early_stopping": False},
    # Its gradient has jumps, which Adam's first steps would make long ones.
    "learned sigma, laplace": {
        "sigma": "mle",
        "noise": "laplace",
        "optimizer": "sgd",
        "learning_rate": 1e-4,
    },
    "learned sigma, at random": {"sigma": "mle", "init": "random"},
    "adamw": {"optimizer": "adamw"},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-4},
    "linear networks": {"hidden_layer_sizes": ()},
    "two hidden layers": {"hidden_layer_sizes": (8, 8)},
    "no linear path": {"linear_path": False, "init": "random"},
    "random start": {"init": "random"},
    "tanh": {"activation": "tanh"},
    "relu": {"activation": "relu"},
    "batches that do not divide the rows": {"batch_size": 10},
    "one batch": {"batch_size": 1000},
    "no epochs": {"max_iter": 0},
    "one component": {"n_components": 1},
    "more components than features": {"n_components": 7},
}


def folds(rows, n_rows=None):
    """Two overlapping parts of equal size."""
    n_rows = n_rows or len(rows) * 3 // 4
    return [rows[:n_rows], rows[-n_rows:]]


def estimators(params, members=MEMBERS):
    """One for each member; what the case gives goes before what members differ in."""
    return [small_vae(**{**of_member, **params}) for of_member, _ in members]


def starts_of(vaes, data, members=MEMBERS):
    """Models ready to be trained, and rows of a fold shared by its members."""
    shared = {}
    starts = []
    for vae, (_, fold) in zip(vaes, members, strict=True):
        checked = vae._check_training_data(*data[fold])
        rows = shared.setdefault(fold, checked)
        starts.append(
            prepare(vae, rows, draw_seeds(check_random_state(vae.random_state)))
        )
    return starts


def fitted_together(vaes, data, members=MEMBERS):
    """The estimators, trained as a stack; an error where that failed."""
    nets = train_stack(starts_of(vaes, data, members), Plan.of_fit(vaes[0]))
    fitted = []
    for vae, net in zip(vaes, nets, strict=True):
        if not isinstance(net, Exception):
            vae._adopt(net)
        fitted.append(net if isinstance(net, Exception) else vae)
    return fitted


def fitted_alone(vaes, data, members=MEMBERS):
    """Copies of the estimators, each fitted by itself."""
    return [
        clone(vae).fit(data[fold][0], X_val=data[fold][1])
        for vae, (_, fold) in zip(vaes, members, strict=True)
    ]


def losses(vae, name):
    return np.array([row.get(name, np.nan) for row in vae.history_])


def assert_same_fit(a, b, rtol=1e-4, atol=1e-5):
    """Weights, history and all that a fit leaves are those of another one."""
    assert a.n_iter_ == b.n_iter_
    for row, other in zip(a.history_, b.history_, strict=True):
        # Which loss is the best so far, skorch tells for one model only.
        assert row.keys() == {name for name in other if not name.endswith("_best")}
        assert row["epoch"] == other["epoch"]
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(
            losses(a, name), losses(b, name), rtol=rtol, atol=10 * atol
        )
    ours, others = weights(a), weights(b)
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, others[name], rtol=rtol, atol=atol, msg=name)
    assert a.n_active_components_ == b.n_active_components_
    if a.sigma_ is None:
        assert b.sigma_ is None
    else:
        np.testing.assert_allclose(a.sigma_, b.sigma_, rtol=rtol)


def assert_members_train_as_alone(params, data, members=MEMBERS, **tolerance):
    vaes = estimators(params, members)
    alone = fitted_alone(vaes, data, members)
    together = fitted_together(vaes, data, members)
    for a, b in zip(together, alone, strict=True):
        assert_same_fit(a, b, **tolerance)
    return alone


# As alone


@pytest.mark.parametrize("case", CASES)
def test_members_train_as_alone(case):
    params = CASES[case]
    rows = IN_UNIT if params.get("noise") == "bernoulli" else X
    data = [(part, None) for part in folds(rows)]
    alone = assert_members_train_as_alone(params, data)
    if "patience" in case:
        # They do not all stop at once, and not all at the end.
        n_iter = {vae.n_iter_ for vae in alone}
        assert len(n_iter) > 1
        assert min(n_iter) < params["max_iter"]


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("params", [{}, {"sigma": "mle"}], ids=str)
def test_members_train_as_alone_with_held_out_rows(params, early_stopping):
    X_val = [low_rank_rows(20, seed=seed) for seed in (3, 4)]
    data = list(zip(folds(X), X_val, strict=True))
    alone = assert_members_train_as_alone(
        {**params, "early_stopping": early_stopping}, data
    )
    assert all(np.isfinite(losses(vae, "valid_loss")).all() for vae in alone)


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        ((4, 3), {}),
        ((2, 3, 2), {}),
        ((2, 3, 2), {"channels_first": True}),
        ((12,), {"image_shape": (2, 3, 2)}),
        ((2, 3, 2), {"linear_path": False, "init": "random"}),
    ],
    ids=str,
)
def test_members_train_as_alone_on_images(shape, params):
    images = IMAGES.reshape(-1, *shape)
    data = [(part, None) for part in folds(images)]
    assert_members_train_as_alone(params, data)


def test_members_train_as_alone_on_integers():
    images = np.clip(128 + 20 * IMAGES, 0, 255).astype(np.uint8).reshape(-1, 4, 3)
    members = [({**params, "sigma": 10.0}, fold) for params, fold in MEMBERS]
    data = [(part, None) for part in folds(images)]
    assert_members_train_as_alone({}, data, members)


def test_members_train_as_alone_in_bfloat16():
    # Its numbers have 8 bits, so that another order of sums is another number.
    data = [(part, None) for part in folds(X)]
    assert_members_train_as_alone({"precision": "bfloat16"}, data, rtol=3e-2, atol=1e-2)


def test_members_with_scales_of_their_own_train_as_alone():
    # Ratios between features change the internal units.
    rng = np.random.RandomState(0)
    members = [
        ({"sigma": rng.uniform(0.1, 1.0, 5), "random_state": seed}, fold)
        for seed, fold in [(0, 0), (0, 0), (1, 1)]
    ]
    members.append(({"sigma": 0.3}, 0))
    data = [(part, None) for part in folds(X)]
    assert_members_train_as_alone({}, data, members)


def test_members_train_as_alone_on_data_of_any_scale():
    # Each member has units of its own.
    data = [(folds(X)[0], None), (1e6 * folds(X)[1] + 1e7, None)]
    members = [
        ({**params, "sigma": params["sigma"] * (1e6 if fold else 1)}, fold)
        for params, fold in MEMBERS
    ]
    assert_members_train_as_alone({}, data, members, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("n_members", [1, 2, 40])
def test_any_number_of_members(n_members):
    members = [({"sigma": 0.1 + 0.03 * i}, i % 2) for i in range(n_members)]
    data = [(part, None) for part in folds(X)]
    assert_members_train_as_alone({}, data, members)


def test_the_members_of_a_fit_under_inference_mode_are_ordinary_models():
    data = [(part, None) for part in folds(X)]
    for vae in fitted_together(estimators({}), data):
        vae.partial_fit(X)
        assert not any(value.is_inference() for value in vae.module_.parameters())
        assert all(value.grad is None for value in vae.module_.parameters())


def test_a_stack_leaves_the_random_state_of_torch_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fitted_together(estimators({}), [(part, None) for part in folds(X)])
    assert torch.equal(torch.rand(3), expected)


def test_the_same_stack_twice_is_the_same():
    data = [(part, None) for part in folds(X)]
    first, second = (fitted_together(estimators({}), data) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert same_weights(weights(a), weights(b))


# Members that fail

DATA = [(part, None) for part in folds(X)]


def poisoned(starts, which):
    """Starts of which some have weights that are not numbers."""
    for i in which:
        for parameter in starts[i].vae.parameters():
            parameter.data.fill_(np.nan)
    return starts


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"early_stopping": False},
        {"sigma": "mle"},
        {"lr_schedule": "constant", "n_iter_no_change": 1, "max_iter": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("which", [(0,), (1, 4)], ids=str)
def test_a_member_that_diverges_leaves_the_others_as_they_are(params, which):
    vaes = estimators(params)
    plan = Plan.of_fit(vaes[0])
    healthy = train_stack(starts_of(vaes, DATA), plan)
    nets = train_stack(poisoned(starts_of(vaes, DATA), which), plan)
    for i, (net, expected) in enumerate(zip(nets, healthy, strict=True)):
        if i in which:
            assert isinstance(net, ValueError)
            assert "diverged" in str(net)
            assert "epoch 1" in str(net)
            continue
        got, wanted = net.module_.state_dict(), expected.module_.state_dict()
        assert same_weights(got, wanted)
        assert net.history[:, "train_loss"] == expected.history[:, "train_loss"]


def test_members_whose_steps_are_too_long_diverge_alone():
    params = {"optimizer": "sgd", "learning_rate": 1e-2, "early_stopping": False}
    members = [({"sigma": sigma}, 0) for sigma in (1e-4, 1.0, 1e-3, 1.5)]
    vaes = estimators(params, members)
    fitted = fitted_together(vaes, DATA, members)
    for i in (0, 2):
        assert isinstance(fitted[i], ValueError)
        with pytest.raises(ValueError, match="diverged") as alone:
            clone(vaes[i]).fit(DATA[0][0])
        assert str(fitted[i]) == str(alone.value)
    for i in (1, 3):
        assert_same_fit(fitted[i], clone(vaes[i]).fit(DATA[0][0]))


def test_where_all_diverge_each_has_an_error():
    params = {"optimizer": "sgd", "learning_rate": 1e30}
    fitted = fitted_together(estimators(params), DATA)
    assert len(fitted) == len(MEMBERS)
    for error in fitted:
        assert isinstance(error, ValueError)
        assert "diverged" in str(error)


class Poison(Callback):
    """Spoils the weights of members of a stack at the end of epochs, from 1."""

    def __init__(self, by_epoch):
        self.by_epoch = by_epoch

    def on_epoch_end(self, net, **kwargs):
        for i in self.by_epoch.get(len(net.history), ()):
            for parameter in net.module_.parameters():
                parameter.data[i] = np.nan


def test_a_member_that_diverges_after_its_end_has_not_failed():
    # A member goes on in the stack when its own training is over.
    params = {
        "lr_schedule": "constant",
        "n_iter_no_change": 1,
        "max_iter": 12,
        "learning_rate": 3e-2,
        "init": "random",
    }
    vaes = estimators(params)
    plan = Plan.of_fit(vaes[0])
    expected = train_stack(starts_of(vaes, DATA), plan)
    ends = [len(net.history) for net in expected]
    first, last = np.argmin(ends), np.argmax(ends)
    assert ends[first] < ends[last]
    poison = Poison({ends[first]: [first]})
    nets = train_stack(starts_of(vaes, DATA), plan, [poison])
    for net, other in zip(nets, expected, strict=True):
        assert same_weights(net.module_.state_dict(), other.module_.state_dict())
        assert len(net.history) == len(other.history)


def test_a_member_that_has_ended_survives_when_all_others_diverge():
    # No improvement is large enough, but those of the second member.
    params = {"lr_schedule": "constant", "n_iter_no_change": 2, "tol": 1e3}
    members = [({"sigma": 0.3}, 0), ({"sigma": 0.5}, 0)]
    vaes = estimators({**params, "max_iter": 12}, members)
    plan = Plan.of_fit(vaes[0])
    healthy, _ = train_stack(starts_of(vaes, DATA, members), plan)
    assert len(healthy.history) == 2
    callbacks = [Improve(member=1, n_epochs=4), Poison({3: [0, 1]})]
    ended, diverged = train_stack(starts_of(vaes, DATA, members), plan, callbacks)
    assert isinstance(diverged, ValueError)
    assert same_weights(ended.module_.state_dict(), healthy.module_.state_dict())
    assert len(ended.history) == 2


class Improve(Callback):
    """Makes the held-out loss of a member of a stack fall, for some epochs."""

    def __init__(self, member, n_epochs):
        self.member = member
        self.n_epochs = n_epochs

    def on_epoch_end(self, net, **kwargs):
        epoch = len(net.history)
        if epoch <= self.n_epochs:
            net.history[-1]["valid_loss"][self.member] = -1e6 * epoch


# What cannot be a stack


def mlp(*layers):
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 2))


def frozen():
    network = mlp(nn.ReLU())
    network[0].weight.requires_grad_(False)
    return network


def hooked():
    network = mlp(nn.ReLU())
    network[1].register_forward_hook(lambda *args: None)
    return network


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: mlp(nn.Dropout(0.5)), "Dropout"),
        (lambda: mlp(nn.BatchNorm1d(6)), "BatchNorm1d"),
        (lambda: mlp(nn.LayerNorm(6)), "LayerNorm"),
        (lambda: mlp(nn.PReLU()), "PReLU"),
        (lambda: mlp(nn.Sequential(nn.Tanh(), nn.GLU())), "GLU"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "Conv2d"),
        (lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3)), "ConvTranspose2d"),
        (lambda: nn.Bilinear(2, 2, 2), "Bilinear"),
        (frozen, "frozen"),
        (hooked, "hooks"),
    ],
)
def test_what_cannot_be_stacked_is_told(make, name):
    with pytest.raises(NotStackableError, match=name):
        stack_modules([make(), make()])


class Halved(nn.Linear):
    """Linear layer that does something else than one."""

    def forward(self, x):
        return 0.5 * super().forward(x)


def test_a_class_derived_from_a_layer_is_not_that_layer():
    with pytest.raises(NotStackableError, match="Halved"):
        stack_modules([mlp(Halved(6, 6))])


@pytest.mark.parametrize(
    "params",
    [
        {"network": "conv"},
        {"network": DropoutNetwork()},
        {"network": BatchNormNetwork()},
    ],
    ids=str,
)
def test_other_networks_are_not_trained_as_a_stack(params):
    images = IMAGES.reshape(-1, 4, 3) if params["network"] == "conv" else X
    if params["network"] == "conv":
        images = np.tile(images, (1, 2, 2))
    with pytest.raises(NotStackableError):
        fitted_together(estimators(params), [(part, None) for part in folds(images)])


# The stack as a module


def members_of_stack(params=None, rows=X):
    starts = starts_of(
        estimators({"init": "random", **(params or {})}),
        [(part, None) for part in folds(rows)],
    )
    return [start.vae for start in starts], starts


def randomised(vaes):
    """Models with random numbers for all parameters, also where they start at 0."""
    generator = torch.Generator().manual_seed(0)
    for vae in vaes:
        for parameter in vae.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return vaes


STRUCTURES = [
    {},
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": (8, 4), "linear_path": False},
    {"n_components": 1},
]


@pytest.mark.parametrize("params", STRUCTURES, ids=str)
def test_write_to_is_the_inverse_of_stacking(params):
    vaes, _ = members_of_stack(params)
    randomised(vaes)
    before = [deepcopy(vae.state_dict()) for vae in vaes]
    stack = VAEStack(vaes)
    for vae in vaes:
        for parameter in vae.parameters():
            parameter.data.zero_()
    stack.write_to(vaes)
    for vae, state in zip(vaes, before, strict=True):
        assert same_weights(vae.state_dict(), state)
    # Nor do they share memory with the stack, or with one another.
    for parameter in stack.parameters():
        parameter.data.zero_()
    for vae, state in zip(vaes, before, strict=True):
        assert same_weights(vae.state_dict(), state)


def test_stacking_leaves_the_members_as_they_are():
    vaes, _ = members_of_stack()
    before = [deepcopy(vae.state_dict()) for vae in vaes]
    stack = VAEStack(vaes)
    for parameter in stack.parameters():
        parameter.data.zero_()
    for vae, state in zip(vaes, before, strict=True):
        assert same_weights(vae.state_dict(), state)


@pytest.mark.parametrize("params", STRUCTURES, ids=str)
def test_a_stack_computes_what_its_members_do(params):
    vaes, _ = members_of_stack(params)
    stack = VAEStack(randomised(vaes))
    assert stack.n_members == len(vaes)
    n, k = 7, vaes[0].n_components
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(vaes), n, X.shape[1], generator=generator)
    z = torch.randn(len(vaes), 3, n, k, generator=generator)
    with torch.no_grad():
        mean, log_var = stack.encode(x)
        location = stack.decode(z)
        common, _ = stack.encode(x[:1])
        assert mean.shape == log_var.shape == (len(vaes), n, k)
        assert location.shape == (len(vaes), 3, n, X.shape[1])
        for i, vae in enumerate(vaes):
            torch.testing.assert_close((mean[i], log_var[i]), vae.encode(x[i]))
            torch.testing.assert_close(location[i], vae.decode(z[i]))
            torch.testing.assert_close(common[i], vae.encode(x[0])[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stacks_of_networks_with_all_activations(activation):
    networks = [mlp(ACTIVATIONS[activation]()) for _ in range(3)]
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = stack_modules(networks)(x)
        for i, network in enumerate(networks):
            torch.testing.assert_close(together[i], network(x[i]))


def test_linear_layers_without_bias():
    layers = [nn.Linear(4, 3, bias=False) for _ in range(2)]
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = stack_modules(layers)(x)
        for i, layer in enumerate(layers):
            torch.testing.assert_close(together[i], layer(x[i]))


@pytest.mark.parametrize("n_points", [None, 3])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("noise", ["gaussian", "laplace", "bernoulli"])
def test_the_gradient_of_a_stack_is_that_of_its_members(noise, learns, n_points):
    params = {"noise": noise}
    if learns:
        params["sigma"] = "mle"
    vaes, starts = members_of_stack(params, IN_UNIT)
    stack = VAEStack(randomised(vaes))
    criteria = [start.criterion for start in starts]
    together = NegativeBoundStack([deepcopy(criterion) for criterion in criteria])
    n, k = 7, vaes[0].n_components
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(len(vaes), n, X.shape[1], generator=generator)
    shape = (n, k) if n_points is None else (n_points, n, k)
    eps = torch.randn(len(vaes), *shape, generator=generator)
    for criterion in [together, *criteria]:
        criterion.train().begin_epoch(torch.device("cpu"))
    loss = together(stack, x, eps)
    loss.backward(torch.ones_like(loss))
    gradients = {name: value.grad for name, value in stack.named_parameters()}
    constant = together.constant(stack)
    together.end_epoch(n)
    for i, (vae, criterion) in enumerate(zip(vaes, criteria, strict=True)):
        own = criterion(vae, x[i], eps[i])
        own.backward()
        torch.testing.assert_close(loss[i], own, rtol=1e-5, atol=1e-5)
        assert float(torch.as_tensor(constant)[i]) == pytest.approx(
            criterion.constant(vae), rel=1e-6, abs=1e-6
        )
        named = dict(vae.named_parameters())
        assert named.keys() == gradients.keys()
        for name, parameter in named.items():
            # Weights of linear layers lie transposed in the stack.
            got = gradients[name][i]
            got = got.mT if parameter.ndim == 2 else got.reshape(parameter.shape)
            torch.testing.assert_close(
                got, parameter.grad, rtol=1e-4, atol=1e-5, msg=name
            )
        if learns and criterion.learns_scale:
            criterion.end_epoch(n)
            assert float(together.scale[i]) == pytest.approx(criterion.scale, rel=1e-5)


def test_no_member_has_a_gradient_from_another():
    vaes, starts = members_of_stack()
    stack = VAEStack(randomised(vaes))
    together = NegativeBoundStack([start.criterion for start in starts]).train()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(vaes), 7, X.shape[1], generator=generator)
    eps = torch.randn(len(vaes), 7, 2, generator=generator)
    together(stack, x, eps)[2].backward()
    for parameter in stack.parameters():
        others = torch.arange(len(vaes)) != 2
        assert parameter.grad[2].any()
        assert not parameter.grad[others].any()


# Batches


@pytest.mark.parametrize("members", [[0, 0, 0], [0, 1, 0], [1, 0]], ids=str)
def test_members_see_the_batches_that_they_would_see_alone(members):
    starts = starts_of(estimators({}), DATA)
    device = torch.device("cpu")
    plan = Plan(3, "one_cycle", early_stopping=False)
    distinct = [starts[i].select(plan, device)[0] for i in (0, 3)][: max(members) + 1]
    stack = SelectionStack(distinct, members)

    def generators():
        return [torch.Generator().manual_seed(i) for i in range(len(distinct))]

    batches = stack.training_batches(10, 2, generators())
    alone = [
        list(selection.training_batches(10, 2, [generator]))
        for selection, generator in zip(distinct, generators(), strict=True)
    ]
    assert len(stack) == len(distinct[0])
    assert len(batches) == len(alone[0])
    seen = list(batches)
    assert len(seen) == len(alone[0])
    for step, (x, eps) in enumerate(seen):
        for i, which in enumerate(members):
            j = i if len(x) > 1 else 0
            assert torch.equal(x[j], alone[which][step][0])
            assert torch.equal(eps[j], alone[which][step][1])


def test_shared_weights_are_not_stacked():
    layer = nn.Linear(4, 4)
    with pytest.raises(NotStackableError, match="share weights"):
        stack_modules([nn.Sequential(layer, nn.Tanh(), layer)])
    with pytest.raises(NotStackableError, match="share weights"):
        stack_networks([(nn.Sequential(layer), nn.Sequential(nn.Tanh(), layer))])
