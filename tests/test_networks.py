"""Recipes, the linear path, and networks that users bring."""

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae._layout import Layout
from sklearn_sigmavae.networks import ACTIVATIONS, MLP, Conv, build_networks

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
    """Recipe of any network made from its two widths."""

    def __init__(self, make=Residual, depth=1):
        self.make = make
        self.depth = depth

    def encoder(self, input_shape, n_components):
        return self.make(*input_shape, 2 * n_components)

    def decoder(self, n_components, output_shape):
        return self.make(n_components, *output_shape)


def normalised(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out))


def parameterless_end(n_in, n_out):
    return nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh())


def shifted(n_in, n_out):
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1

    return nn.Sequential(nn.Linear(n_in, n_out), Shift())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_shapes(activation):
    recipe = MLP((7, 5), activation)
    x, z = torch.zeros(3, 10), torch.zeros(3, 2)
    assert recipe.encoder((10,), 2)(x).shape == (3, 4)
    assert recipe.decoder(2, (10,))(z).shape == (3, 10)
    widths = [
        module.out_features
        for module in recipe.decoder(2, (10,))
        if isinstance(module, nn.Linear)
    ]
    assert widths == [5, 7, 10]


@pytest.mark.parametrize(
    "make", [Residual, normalised, parameterless_end, shifted], ids=lambda f: f.__name__
)
def test_any_network_can_start_at_zero_and_train(digits, make):
    rows = digits[:300]
    recipe = Recipe(make)
    shared = {"sigma": 0.2, "random_state": 0, "early_stopping": False}
    linear = SigmaVAE(4, hidden_layer_sizes=(), max_iter=0, **shared).fit(rows)
    start = SigmaVAE(4, network=recipe, max_iter=0, **shared).fit(rows)
    np.testing.assert_array_equal(start.transform(rows), linear.transform(rows))
    assert start.score(rows) == linear.score(rows)
    trained = SigmaVAE(4, network=recipe, max_iter=20, **shared).fit(rows)
    before, after = start.module_.encoder.network, trained.module_.encoder.network
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before.parameters(), after.parameters(), strict=True)
    )
    # These networks add little to the linear model; they must not take from it either.
    assert trained.score(rows) > start.score(rows) - 0.1


def test_networks_that_cannot_be_zeroed_get_a_gate():
    for make, gated in ((Residual, True), (normalised, False), (shifted, True)):
        encoder, decoder, *_ = build_networks(Recipe(make), LAYOUT, 2, linear_path=True)
        assert (encoder.gate is not None) == gated
        assert (decoder.gate is not None) == gated


def test_the_check_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    expected = normalised(6, 4).state_dict()
    torch.manual_seed(0)
    encoder, *_ = build_networks(Recipe(normalised), LAYOUT, 2, linear_path=True)
    assert encoder.network.training
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_without_hidden_layers_there_is_just_the_linear_path():
    encoder, decoder, *_ = build_networks(MLP(()), LAYOUT, 2, linear_path=True)
    assert encoder.network is None
    assert [tuple(p.shape) for p in encoder.parameters()] == [(2,), (2, 6), (2,)]
    assert [tuple(p.shape) for p in decoder.parameters()] == [(6, 2), (6,)]


def test_without_linear_path_there_is_just_the_network():
    encoder, decoder, *_ = build_networks(MLP((5,)), LAYOUT, 2, linear_path=False)
    assert type(encoder) is nn.Sequential
    assert type(decoder) is nn.Sequential


def test_random_init_changes_numbers_only(digits):
    shared = {"max_iter": 0, "random_state": 0, "sigma": 0.2}
    start, random = (
        SigmaVAE(4, init=init, **shared).fit(digits[:100]) for init in ("pca", "random")
    )
    shapes, other = (
        {name: value.shape for name, value in vae.module_.state_dict().items()}
        for vae in (start, random)
    )
    assert shapes == other
    assert random.module_.encoder.network[-1].weight.abs().max() > 0


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


def test_lazy_layers_are_materialised(digits):
    def lazy(n_in, n_out):
        return nn.Sequential(nn.LazyLinear(8), nn.SiLU(), nn.LazyLinear(n_out))

    vae = SigmaVAE(4, network=Recipe(lazy), sigma=0.2, max_iter=1).fit(digits[:100])
    assert vae.transform(digits[:3]).shape == (3, 4)


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


def shared_layers(n_in, n_out):
    return nn.Sequential(SHARED, nn.LazyLinear(n_out)) if n_in == 6 else SHARED


SHARED = nn.Linear(6, 6)


def test_modules_that_encoder_and_decoder_share_stay_shared():
    encoder, decoder, *_ = build_networks(Recipe(shared_layers), LAYOUT, 6, False)
    assert encoder[0] is decoder[0]
    assert encoder[0] is not SHARED


class Casting(nn.Module):
    """Network that computes in one type, whatever it is given."""

    def __init__(self, n_in, n_out, dtype):
        super().__init__()
        self.layer = nn.Linear(n_in, n_out)
        self.dtype = dtype

    def forward(self, x):
        return self.layer(x.to(self.dtype))


def casting(n_in, n_out):
    return Casting(n_in, n_out, torch.float32)


@pytest.mark.parametrize("linear_path", [True, False])
def test_networks_that_cast_to_float32_take_float64_data(digits, linear_path):
    init = "pca" if linear_path else "random"
    params = {"linear_path": linear_path, "init": init, "sigma": 0.2, "max_iter": 1}
    vae = SigmaVAE(4, network=Recipe(casting), **params).fit(digits[:100])
    codes = vae.transform(digits[:9])
    assert codes.dtype == np.float64
    np.testing.assert_allclose(
        vae.transform(digits[:9].astype(np.float32)), codes, atol=1e-5
    )
    assert vae.sample(3).shape == (3, 64)
    assert np.isfinite(vae.score(digits))


def in_place(n_in, n_out):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(n_in, n_out))


def counting(n_in, n_out):
    class Counting(nn.Linear):
        def forward(self, x):
            return super().forward(x).long()

    return Counting(n_in, n_out)


def parameterless(n_in, n_out):
    class Repeat(nn.Module):
        def forward(self, x):
            return x[:, :1].expand(-1, n_out)

    return Repeat()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (in_place, r"encoder \(Recipe.encoder\) must leave its input as it is"),
        (counting, "must return floating point numbers. Got torch.int64"),
        (parameterless, "networks of Recipe have no parameters to train"),
    ],
)
def test_networks_that_could_not_train_are_refused(digits, make, message):
    vae = SigmaVAE(4, network=Recipe(make), linear_path=False, init="random", sigma=0.2)
    with pytest.raises(ValueError, match=message):
        vae.fit(digits)
    assert not hasattr(vae, "net_")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"hidden_layer_sizes": 64}, "'hidden_layer_sizes' parameter of MLP"),
        ({"hidden_layer_sizes": (0,)}, "'hidden_layer_sizes' parameter of MLP"),
        ({"hidden_layer_sizes": (1.5,)}, "'hidden_layer_sizes' parameter of MLP"),
        ({"activation": "step"}, "'activation' parameter of MLP"),
    ],
)
def test_bad_parameters_of_mlp_are_refused(digits, params, message):
    with pytest.raises(ValueError, match=message):
        SigmaVAE(4, network=MLP(**params)).fit(digits)


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (MLP((5, 300)), (6,)),
        (MLP(()), (6,)),
        (MLP((3,)), (3, 4, 5)),
        (Conv(), (1, 9, 6)),
        (Conv((40, 2), hidden_layer_sizes=()), (3, 8, 8)),
        (Conv((2, 50), hidden_layer_sizes=(7,)), (2, 5, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_components", [1, 500])
def test_recipes_know_the_size_of_their_widest_layer(recipe, shape, n_components):
    sample_shape = shape if len(shape) == 1 else (*shape[1:], shape[0])
    layout = Layout(sample_shape, shape, len(shape) > 1)
    *_, width, _ = build_networks(recipe, layout, n_components, linear_path=True)
    assert recipe._width(shape, n_components) == width
