"""Each noise model against the definition of a density, and against scipy."""

import itertools

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.base import clone
from student_noise import StudentNoise

from sklearn_sigmavae import BernoulliNoise, GeneralizedNormalNoise, equivalent_beta
from sklearn_sigmavae.noise import ALIASES, resolve_noise

EXPONENTS = [1.0, 1.3, 1.5, 2.0, 3.0, 5.0, 10.0]

# The contract below holds for every noise model; a new one is added here.
MODELS = [
    *ALIASES.values(),
    *map(GeneralizedNormalNoise, EXPONENTS),
    StudentNoise(2.5),
    StudentNoise(30.0),
]


def scipy_law(exponent, location, scale):
    return stats.gennorm(exponent, location, scale * exponent ** (1 / exponent))


def density(model, x, location, scale):
    x = torch.tensor([[x]], dtype=torch.float64)
    location = torch.full_like(x, location)
    return model.log_prob(x, location, scale).exp().item()


def probability(model, low, high, location=0.7, scale=0.3):
    """Of an interval, by integration of the density."""
    if not model.has_scale:
        values = [x for x in (0.0, 1.0) if low < x <= high]
        return sum(density(model, x, location, None) for x in values)
    # The peak is where quad must look, and halves have no kink.
    edges = sorted({low, *(x for x in (location,) if low < x < high), high})
    return sum(
        integrate.quad(lambda x: density(model, x, location, scale), *pair)[0]
        for pair in itertools.pairwise(edges)
    )


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_samples_follow_a_density_that_integrates_to_one(model):
    assert probability(model, -np.inf, np.inf) == pytest.approx(1, abs=1e-6)
    location = np.full((20_000, 1), 0.7)
    drawn = model.sample(location, 0.3, np.random.RandomState(0))
    assert drawn.shape == location.shape
    for edge in (0.2, 0.5, 0.69, 0.8, 1.1, 1.5):
        share = (drawn <= edge).mean()
        assert share == pytest.approx(probability(model, -np.inf, edge), abs=0.012)
    assert drawn.mean() == pytest.approx(model.mean(0.7), abs=0.01)
    assert model.mean(model.location_of_mean(0.2)) == pytest.approx(0.2)


@pytest.mark.parametrize("model", MODELS, ids=repr)
def test_log_densities_are_sums_over_entries_each_with_its_scale(model):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, generator=generator)
    location = torch.randn(5, 4, 3, generator=generator)
    for shape in [(3,), (4, 1), (4, 3)]:
        scale = (0.5 + torch.rand(shape, generator=generator)).expand(4, 3)
        expected = torch.zeros(5, 4)
        for i, j in np.ndindex(4, 3):
            each = scale[i, j].item() if model.has_scale else None
            expected[:, i] += model.energy(x[i, [j]], location[:, i, [j]], each)
        energy = model.energy(x, location, scale if model.has_scale else None)
        torch.testing.assert_close(energy, expected)
    one = 0.6 if model.has_scale else None
    constant = 3 * model.log_normalizer(one)
    expected = -model.energy(x, location, one) - constant
    torch.testing.assert_close(model.log_prob(x, location, one), expected)
    assert repr(clone(model)) == repr(model)
    assert resolve_noise(model) is model


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_generalized_normal_agrees_with_scipy(exponent):
    model = GeneralizedNormalNoise(exponent)
    x = np.linspace(-3, 3, 101)
    law = scipy_law(exponent, 0.2, 0.8)
    location = torch.tensor([0.2], dtype=torch.float64)
    ours = model.log_prob(torch.tensor(x[:, None]), location, 0.8)
    np.testing.assert_allclose(ours, law.logpdf(x), rtol=1e-12, atol=1e-12)
    assert 0.8**2 * model.variance_factor == pytest.approx(law.var())


def test_named_members():
    assert ALIASES["gaussian"].exponent == 2
    assert ALIASES["laplace"].exponent == 1


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_mean_power_is_the_maximum_likelihood_scale(exponent):
    model = GeneralizedNormalNoise(exponent)
    x = torch.tensor(np.random.RandomState(0).standard_normal((1, 400)))
    best = model.mean_power(x, torch.zeros(1)).item() ** (1 / exponent)
    at = [model.log_prob(x, torch.zeros(1), best * c).item() for c in (0.99, 1, 1.01)]
    assert at[1] == max(at)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_tiny_scales_do_not_underflow_in_float32(exponent):
    model = GeneralizedNormalNoise(exponent)
    scale = 1e-20
    x = torch.tensor([[2 * scale]], dtype=torch.float32)
    exact = scipy_law(exponent, 0, scale).logpdf(2 * scale)
    assert model.log_prob(x, torch.zeros(1), scale).item() == pytest.approx(exact)


def test_bernoulli_is_finite_at_extreme_logits():
    model = BernoulliNoise()
    logits = torch.tensor([[-1e4], [1e4]])
    x = torch.tensor([[0.0], [1.0]])
    assert model.log_prob(x, logits, None).tolist() == [0, 0]
    assert model.mean(logits.numpy()).ravel().tolist() == [0, 1]


@pytest.mark.parametrize("exponent", [0.99, 0, -1, np.nan, np.inf, "2", None])
def test_bad_exponent(exponent):
    with pytest.raises(ValueError, match="'exponent' of GeneralizedNormalNoise"):
        resolve_noise(GeneralizedNormalNoise(exponent))


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("sigma", [0.5, np.array([0.1, 2.0])], ids=str)
def test_equivalent_beta(exponent, sigma):
    beta = equivalent_beta(sigma, 3 * sigma, GeneralizedNormalNoise(exponent))
    assert beta == pytest.approx(3**exponent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "sigma_from"),
        ((1.0, np.nan), "sigma_to"),
        (([1.0, 1.0], [1.0, 2.0]), "same ratio"),
        ((1.0, 1.0, "bernoulli"), "no scale"),
        ((1.0, 1.0, "cauchy"), "'noise' parameter of equivalent_beta"),
    ],
)
def test_equivalent_beta_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        equivalent_beta(*arguments)
