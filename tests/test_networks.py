"""Recipes, the linear path, and networks that users bring."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae._model.build import _try_out, build_networks
from sklearn_sigmavae._model.layout import Layout
from sklearn_sigmavae.networks import ACTIVATIONS, MLP, Conv

LAYOUT = Layout((6,), (6,))


class Residual(nn.Module):
    """Network with a skip connection: zeros in its last layer are not zero."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.skip = nn.Linear(n_in, n_out)
        self.block = nn.Sequential(nn.Linear(n_in, 8), nn.Tanh(), nn.Linear(8, n_out))

    def forward(self, x):
        return self.skip(x) + self.block(x)


class Recipe(BaseEstimator):
    """Recipe of networks that are made from their two widths."""

    def __init__(self, make=Residual, make_decoder=None, depth=1):
        self.make = make
        self.make_decoder = make_decoder
        self.depth = depth

    def encoder(self, input_shape, n_components):
        return self.make(*input_shape, 2 * n_components)

    def decoder(self, n_components, output_shape):
        return (self.make_decoder or self.make)(n_components, *output_shape)


def normalised(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out))


def parameterless_end(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh())


def shifted(n_in, n_out):
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    return nn.Sequential(nn.Linear(n_in, n_out), Shift())


def lazy(n_in, n_out):
    return nn.Sequential(nn.LazyLinear(8), nn.SiLU(), nn.LazyLinear(n_out))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_shapes(activation):
    recipe = MLP((7, 5), activation)
    x, z = torch.zeros(3, 10), torch.zeros(3, 2)
    assert recipe.encoder((10,), 2)(x).shape == (3, 4)
    assert recipe.decoder(2, (10,))(z).shape == (3, 10)
    linear = [layer for layer in recipe.decoder(2, (10,)) if type(layer) is nn.Linear]
    assert [layer.out_features for layer in linear] == [5, 7, 10]


@pytest.mark.parametrize(
    ("make", "has_gate"),
    [
        (Residual, True),
        (normalised, False),
        (parameterless_end, False),
        (shifted, True),
        (lazy, False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_network_can_start_at_zero_and_train(digits, make, has_gate):
    rows = digits[:300]
    recipe = Recipe(make)
    shared = {"sigma": 0.2, "random_state": 0, "early_stopping": False}
    linear = SigmaVAE(4, hidden_layer_sizes=(), max_iter=0, **shared).fit(rows)
    start = SigmaVAE(4, network=recipe, max_iter=0, **shared).fit(rows)
    np.testing.assert_array_equal(start.transform(rows), linear.transform(rows))
    assert start.score(rows) == linear.score(rows)
    trained = SigmaVAE(4, network=recipe, max_iter=20, **shared).fit(rows)
    before, after = start.module_.encoder.network, trained.module_.encoder.network
    assert not any(map(torch.equal, before.parameters(), after.parameters()))
    # These networks add little to the linear model; they must not take from it either.
    assert trained.score(rows) > start.score(rows) - 0.1
    # Networks that cannot be zeroed get a gate.
    for path in (start.module_.encoder, start.module_.decoder):
        assert (path.gate is not None) == has_gate


def test_the_check_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    expected = normalised(6, 4).state_dict()
    torch.manual_seed(0)
    encoder, *_ = build_networks(Recipe(normalised), LAYOUT, 2, linear_path=True)
    assert encoder.network.training
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_either_path_may_be_alone():
    encoder, decoder, *_ = build_networks(MLP(()), LAYOUT, 2, linear_path=True)
    assert encoder.network is None
    assert [tuple(p.shape) for p in encoder.parameters()] == [(2,), (2, 6), (2,)]
    assert [tuple(p.shape) for p in decoder.parameters()] == [(6, 2), (6,)]
    encoder, decoder, *_ = build_networks(MLP((5,)), LAYOUT, 2, linear_path=False)
    assert type(encoder) is type(decoder) is nn.Sequential


def test_random_init_changes_numbers_only(digits):
    shared = {"max_iter": 0, "random_state": 0, "sigma": 0.2}
    # Of rows that vary in all directions.
    rows = np.random.RandomState(0).standard_normal((100, 6))
    start, random = (
        SigmaVAE(4, init=init, **shared).fit(rows).module_.state_dict()
        for init in ("pca", "random")
    )
    assert {k: v.shape for k, v in start.items()} == {
        k: v.shape for k, v in random.items()
    }
    assert random["encoder.network.4.weight"].abs().max() > 0


def test_hidden_layer_sizes_may_be_one_number(digits):
    vae = SigmaVAE(4, hidden_layer_sizes=8, sigma=0.2, max_iter=0).fit(digits)
    assert vae.module_.encoder.network[0].out_features == 8


def test_recipes_are_cloned_and_searchable(digits):
    vae = SigmaVAE(4, network=Recipe(depth=3), sigma=0.2, max_iter=0)
    assert clone(vae).get_params()["network__depth"] == 3
    assert vae.set_params(network__depth=4).network.depth == 4
    recipe = vae.network
    vae.fit(digits)
    assert vae.network is recipe


class Stored:
    """Recipe that hands out modules it keeps."""

    def __init__(self, n_in, n_components):
        self.modules = nn.Linear(n_in, 2 * n_components), nn.Linear(n_components, n_in)

    def encoder(self, input_shape, n_components):
        return nn.Sequential(self.modules[0], nn.Identity())

    def decoder(self, n_components, output_shape):
        return nn.Sequential(self.modules[1], nn.Identity())


def test_modules_that_a_recipe_keeps_are_not_trained(digits):
    recipe = Stored(64, 4)
    before = [p.detach().clone() for m in recipe.modules for p in m.parameters()]
    params = {"network": recipe, "sigma": 0.2, "max_iter": 2, "random_state": 0}
    first = SigmaVAE(4, **params).fit(digits[:100])
    codes = first.transform(digits[:9])
    SigmaVAE(4, **params).fit(digits[100:200])
    np.testing.assert_array_equal(first.transform(digits[:9]), codes)
    after = [p for m in recipe.modules for p in m.parameters()]
    assert all(map(torch.equal, before, after))


SHARED = nn.Linear(6, 6)


def shared_layers(n_in, n_out):
    return nn.Sequential(SHARED, nn.LazyLinear(n_out)) if n_in == 6 else SHARED


def test_modules_that_encoder_and_decoder_share_stay_shared():
    encoder, decoder, *_ = build_networks(Recipe(shared_layers), LAYOUT, 6, False)
    assert encoder[0] is decoder[0]
    assert encoder[0] is not SHARED


class Casting(nn.Linear):
    """Network that computes in float32, whatever it is given."""

    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize("linear_path", [True, False])
def test_networks_that_cast_to_float32_take_float64_data(digits, linear_path):
    init = "pca" if linear_path else "random"
    params = {"linear_path": linear_path, "init": init, "sigma": 0.2, "max_iter": 1}
    vae = SigmaVAE(4, network=Recipe(Casting), **params).fit(digits[:100])
    codes = vae.transform(digits[:9])
    assert codes.dtype == np.float64
    in_float32 = vae.transform(digits[:9].astype(np.float32))
    np.testing.assert_allclose(in_float32, codes, atol=1e-5)
    assert vae.sample(3).shape == (3, 64)
    assert np.isfinite(vae.score(digits))


def in_place(n_in, n_out):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(n_in, n_out))


class Counting(nn.Linear):
    def forward(self, x):
        return super().forward(x).long()


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def parameterless(n_in, n_out):
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(n_out))


BAD = {
    "width": (lambda n_in, n_out: nn.Linear(n_in, n_out + 1), r"map shape .*Got \(2, "),
    "string": (lambda n_in, n_out: "a string", r"torch\.nn\.Module.*str"),
    "class": (lambda n_in, n_out: nn.Linear, r"torch\.nn\.Module.*type"),
    "input": (lambda n_in, n_out: nn.Linear(3, 4), "fails on an input of shape"),
    "pair": (Pair, "Got tuple"),
    "in place": (in_place, "must leave its input as it is"),
    "integers": (Counting, r"to floating point .*, torch\.int64"),
}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_modules_that_do_not_fit_are_refused(digits, part, make, message):
    recipe = Recipe(make) if part == "encoder" else Recipe(make_decoder=make)
    vae = SigmaVAE(4, network=recipe, linear_path=False, init="random", sigma=0.2)
    message = rf"{part} \(Recipe\.{part}\).*{message}"
    with pytest.raises((ValueError, TypeError), match=message):
        vae.fit(digits)
    assert not hasattr(vae, "net_")


def test_networks_that_could_not_train_are_refused():
    with pytest.raises(ValueError, match="networks of Recipe have no parameters"):
        build_networks(Recipe(parameterless), LAYOUT, 2, linear_path=False)


BAD_PARAMETERS = [
    *[("hidden_layer_sizes", value) for value in (64, (0,), (1.5,), (True,))],
    *[("activation", value) for value in ("step", ["silu"], None)],
]
OF_CONV = [
    *[("channels", value) for value in ((), (0,), 8, (2.5,), (True,))],
    *[("kernel_size", value) for value in (4, 0, 3.0)],
]


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [
        *[(MLP, *bad) for bad in BAD_PARAMETERS],
        *[(Conv, *bad) for bad in BAD_PARAMETERS + OF_CONV],
    ],
)
def test_bad_parameters_are_refused(images, recipe, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter of {recipe.__name__}"):
        SigmaVAE(4, network=recipe(**{name: value})).fit(images)


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (MLP((5, 300)), (6,)),
        (MLP(()), (6,)),
        (MLP((3,)), (3, 4, 5)),
        (Conv(), (1, 9, 6)),
        (Conv((40, 2), hidden_layer_sizes=()), (3, 8, 8)),
        (Conv((2, 50), hidden_layer_sizes=(7,)), (2, 5, 4)),
        (Conv((2, 3, 4, 5), 7, ()), (3, 7, 13)),
        (Conv((2,), 1, ()), (3, 64, 48)),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_components", [1, 500])
def test_what_is_known_of_our_recipes_is_true(recipe, shape, n_components):
    """They are not tried out as others are."""
    k = n_components
    facts = (
        _try_out("encoder", recipe.encoder(shape, k), shape, (2 * k,)),
        _try_out("decoder", recipe.decoder(k, shape), (k,), shape),
    )
    widths, zeros, casts = zip(*facts, strict=True)
    assert recipe._width(shape, k) == max(widths)
    assert all(zeros)
    assert all(casts)
