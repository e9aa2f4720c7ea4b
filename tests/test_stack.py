"""A stack's members train as each would alone, whatever happens to the others."""

import itertools
from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from small_vae import low_rank_rows, same_weights, small_vae, weights
from torch import nn

from sklearn_sigmavae import GeneralizedNormalNoise
from sklearn_sigmavae._training.fit import TrainingSchedule
from sklearn_sigmavae._training.stack import (
    NotStackableError,
    VAEStack,
    fit_stack,
    stack_modules,
)
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

PATIENT = {"lr_schedule": "constant", "max_iter": 12}
RESTLESS = {**PATIENT, "learning_rate": 3e-2, "init": "random"}
SGD = {"optimizer": "sgd", "learning_rate": 1e-4}
AUTO = {"sigma": "auto", "beta": 1.0}
CASES = {
    "one cycle": {},
    "constant, patience of 1": {**RESTLESS, "n_iter_no_change": 1},
    "constant, patience of 2": {**RESTLESS, "n_iter_no_change": 2},
    "no early stopping": {"early_stopping": False},
    "no annealing": {"sigma_annealing": 1.0},
    "much annealing": {"sigma": 0.02, "sigma_annealing": 30.0},
    "laplace": {"noise": "laplace"},
    "exponent of 1.5": {"noise": GeneralizedNormalNoise(1.5)},
    "bernoulli": {"noise": "bernoulli"},
    "learned sigma": {"sigma": "mle"},
    "sigma of held-out rows": AUTO,
    "sigma of held-out rows, laplace": {**AUTO, "noise": "laplace", **SGD},
    "sigma of held-out rows, at random": {**AUTO, "init": "random"},
    "sigma of held-out rows, patient": {**AUTO, **PATIENT},
    "learned sigma, no early stopping": {"sigma": "mle", "early_stopping": False},
    # Its gradient has jumps, which Adam's first steps would make long ones.
    "learned sigma, laplace": {"sigma": "mle", "noise": "laplace", **SGD},
    "learned sigma, at random": {"sigma": "mle", "init": "random"},
    "adamw": {"optimizer": "adamw"},
    "sgd": SGD,
    "linear networks": {"hidden_layer_sizes": ()},
    "two hidden layers": {"hidden_layer_sizes": (8, 8)},
    "no linear path": {"linear_path": False, "init": "random"},
    "random start": {"init": "random"},
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


DATA = [(part, None) for part in folds(X)]


def fitted_together(vaes, data=DATA, members=MEMBERS, callbacks=()):
    """The estimators, trained as a stack; an error where that failed."""
    shared, samples = {}, []
    for vae, (_, fold) in zip(vaes, members, strict=True):
        checked = vae._check_samples(*data[fold])
        samples.append(shared.setdefault(fold, checked))
    models = fit_stack(
        vaes, samples, TrainingSchedule.of_fit(vaes[0], len(samples[0].X)), callbacks
    )
    for vae, model in zip(vaes, models, strict=True):
        if not isinstance(model, Exception):
            vae._adopt(model)
    return [
        model if isinstance(model, Exception) else vae
        for vae, model in zip(vaes, models, strict=True)
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
    names = ("loss", "kl", "reconstruction")
    for name in [f"{part}_{name}" for part in ("train", "valid") for name in names]:
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
    alone = [
        clone(vae).fit(data[fold][0], X_val=data[fold][1])
        for vae, (_, fold) in zip(vaes, members, strict=True)
    ]
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


@pytest.mark.parametrize(
    ("params", "early_stopping"),
    [
        *itertools.product([{}, {"sigma": "mle"}], [True, False]),
        (AUTO, True),
    ],
    ids=str,
)
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
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_members_train_as_alone_on_images(shape, params, dtype):
    images = np.clip(128 + 20 * IMAGES, 0, 255).astype(dtype).reshape(-1, *shape)
    members = [({**of_one, "sigma": 20 * of_one["sigma"]}, i) for of_one, i in MEMBERS]
    data = [(part, None) for part in folds(images)]
    assert_members_train_as_alone(params, data, members)


def test_members_train_as_alone_in_bfloat16():
    # Its numbers have 8 bits, so that another order of sums is another number.
    assert_members_train_as_alone({"precision": "bfloat16"}, DATA, rtol=3e-2, atol=1e-2)


OTHER_MEMBERS = {
    "one": [({"sigma": 0.3}, 0)],
    "forty": [({"sigma": 0.1 + 0.03 * i}, i % 2) for i in range(40)],
    # Ratios between features change the internal units.
    "a scale for each feature": [
        ({"sigma": 0.3}, 0),
        ({"sigma": np.linspace(0.1, 1.0, 5)}, 0),
        ({"sigma": np.linspace(0.4, 0.2, 5), "random_state": 1}, 1),
    ],
}


@pytest.mark.parametrize("name", OTHER_MEMBERS)
def test_other_members_train_as_alone(name):
    assert_members_train_as_alone({}, DATA, OTHER_MEMBERS[name])


def test_members_train_as_alone_on_data_of_any_scale():
    # Each member has units of its own.
    data = [(folds(X)[0], None), (1e6 * folds(X)[1] + 1e7, None)]
    members = [
        ({**params, "sigma": params["sigma"] * (1e6 if fold else 1)}, fold)
        for params, fold in MEMBERS
    ]
    assert_members_train_as_alone({}, data, members, rtol=1e-3, atol=1e-4)


def test_members_that_were_fitted_under_inference_mode_are_ordinary_models():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.inference_mode():
        fitted = fitted_together(estimators({}))
    for vae in fitted:
        vae.partial_fit(X)
        assert not any(value.is_inference() for value in vae.module_.parameters())
        assert all(value.grad is None for value in vae.module_.parameters())
    # Nor has torch's random state moved.
    assert torch.equal(torch.rand(3), expected)


# Members that fail


@pytest.mark.parametrize(
    "params",
    [{}, {"early_stopping": False}, {"sigma": "mle"}, {**PATIENT, "tol": 0.0}],
    ids=str,
)
@pytest.mark.parametrize("which", [(0,), (1, 4)], ids=str)
def test_a_member_that_diverges_leaves_the_others_as_they_are(params, which):
    healthy = fitted_together(estimators(params))
    fitted = fitted_together(estimators(params), callbacks=[Poison({1: which})])
    for i, (vae, expected) in enumerate(zip(fitted, healthy, strict=True)):
        if i in which:
            assert isinstance(vae, ValueError)
            assert "diverged" in str(vae)
            assert "epoch 2" in str(vae)
            continue
        assert same_weights(weights(vae), weights(expected))
        assert vae.history_[:, "train_loss"] == expected.history_[:, "train_loss"]


def test_members_diverge_with_the_error_that_they_have_alone():
    params = {"optimizer": "sgd", "learning_rate": 1e-2, "early_stopping": False}
    members = [({"sigma": sigma}, 0) for sigma in (1e-4, 1.0, 1e-3, 1.5)]
    vaes = estimators(params, members)
    fitted = fitted_together(vaes, members=members)
    all_fail = fitted_together(estimators(params, members[::2]), members=members[::2])
    for error, vae in zip(all_fail, vaes[::2], strict=True):
        with pytest.raises(ValueError, match="diverged") as alone:
            clone(vae).fit(DATA[0][0])
        assert str(error) == str(alone.value)
    assert list(map(str, fitted[::2])) == list(map(str, all_fail))
    for i in (1, 3):
        assert_same_fit(fitted[i], clone(vaes[i]).fit(DATA[0][0]))


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
    params = CASES["constant, patience of 1"]
    expected = fitted_together(estimators(params))
    ends = [vae.n_iter_ for vae in expected]
    first = np.argmin(ends)
    assert ends[first] < max(ends)
    poison = Poison({ends[first]: [first]})
    for vae, other in zip(
        fitted_together(estimators(params), callbacks=[poison]), expected, strict=True
    ):
        assert same_weights(weights(vae), weights(other))
        assert vae.n_iter_ == other.n_iter_


class Improve(Callback):
    """Makes the held-out loss of the second member fall, for four epochs."""

    def on_epoch_end(self, net, **kwargs):
        epoch = len(net.history)
        if epoch <= 4:
            net.history[-1]["valid_loss"][1] = -1e6 * epoch


def test_a_member_that_has_ended_survives_when_all_others_diverge():
    # No improvement is large enough, but those of the second member.
    params = {**PATIENT, "n_iter_no_change": 2, "tol": 1e3}
    members = [({"sigma": 0.3}, 0), ({"sigma": 0.5}, 0)]
    healthy, _ = fitted_together(estimators(params, members), members=members)
    assert healthy.n_iter_ == 2
    ended, diverged = fitted_together(
        estimators(params, members),
        members=members,
        callbacks=[Improve(), Poison({3: [0, 1]})],
    )
    assert isinstance(diverged, ValueError)
    assert same_weights(weights(ended), weights(healthy))
    assert ended.n_iter_ == 2


# What cannot be a stack


def mlp(*layers):
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 2))


class Halved(nn.Linear):
    """Linear layer that does something else than one."""

    def forward(self, x):
        return 0.5 * super().forward(x)


FROZEN, HOOKED, SHARED = mlp(), mlp(), nn.Linear(4, 4)
FROZEN[0].weight.requires_grad_(False)
HOOKED[0].register_forward_hook(lambda *args: None)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (mlp(nn.Dropout(0.5)), "Dropout"),
        (mlp(nn.BatchNorm1d(6)), "BatchNorm1d"),
        (mlp(nn.PReLU()), "PReLU"),
        (mlp(nn.Sequential(nn.Tanh(), nn.GLU())), "GLU"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "Conv2d"),
        (nn.Bilinear(2, 2, 2), "Bilinear"),
        (mlp(Halved(6, 6)), "Halved"),
        (FROZEN, "frozen"),
        (HOOKED, "hooks"),
        (nn.Sequential(SHARED, nn.Tanh(), SHARED), "share weights"),
        # As an encoder and a decoder may.
        (nn.Sequential(nn.Sequential(SHARED), mlp(SHARED)), "share weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_stacked_is_reported(network, name):
    with pytest.raises(NotStackableError, match=name):
        stack_modules([network, deepcopy(network)])


# The stack as a module


def random_members(params):
    """Models with random numbers for all parameters, also where they start at 0."""
    generator = torch.Generator().manual_seed(0)
    vaes = [small_vae(max_iter=0, **params).fit(X).module_ for _ in range(3)]
    for vae in vaes:
        # Beyond the training data it is not the networks that decide.
        vae.tails = None
        for parameter in vae.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return vaes


STRUCTURES = [
    {},
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": (8, 4), "linear_path": False, "init": "random"},
    {"n_components": 1},
]


@pytest.mark.parametrize("params", STRUCTURES, ids=str)
def test_a_stack_computes_what_its_members_do_and_gives_them_back(params):
    vaes = random_members(params)
    stack = VAEStack(vaes)
    assert stack.n_members == len(vaes)
    n, k = 7, vaes[0].n_components
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(vaes), n, X.shape[1], generator=generator)
    z = torch.randn(len(vaes), 3, n, k, generator=generator)
    with torch.no_grad():
        posterior = stack.encode(x)
        location = stack.decode(z)
        common = stack.encode(x[:1]).mean
        assert posterior.mean.shape == posterior.log_var.shape == (len(vaes), n, k)
        assert location.shape == (len(vaes), 3, n, X.shape[1])
        for i, vae in enumerate(vaes):
            one = vae.encode(x[i])
            torch.testing.assert_close(posterior.mean[i], one.mean)
            torch.testing.assert_close(posterior.log_var[i], one.log_var)
            torch.testing.assert_close(location[i], vae.decode(z[i]))
            torch.testing.assert_close(common[i], vae.encode(x[0]).mean)
    before = [deepcopy(vae.state_dict()) for vae in vaes]
    for parameter in [p for vae in vaes for p in vae.parameters()]:
        parameter.data.zero_()
    stack.write_to(vaes)
    # They share memory neither with the stack nor with one another.
    for parameter in stack.parameters():
        parameter.data.zero_()
    for vae, state in zip(vaes, before, strict=True):
        assert same_weights(vae.state_dict(), state)


@pytest.mark.parametrize("name", ["no bias", *ACTIVATIONS])
def test_stacks_of_layers(name):
    if name == "no bias":
        networks = [nn.Linear(4, 3, bias=False) for _ in range(3)]
    else:
        networks = [mlp(ACTIVATIONS[name]()) for _ in range(3)]
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = stack_modules(networks)(x)
        for i, network in enumerate(networks):
            torch.testing.assert_close(together[i], network(x[i]))
