"""Arrays of images: their shapes, their order of channels, their types, bad ones."""

import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from small_vae import small_vae

from sklearn_sigmavae.networks import MLP, Conv


def pictures(*shape, dtype=np.float64, n_samples=24, top=255):
    """Images of shape (H, W) or (H, W, C): a spot of light each, and a little noise."""
    rng = np.random.RandomState(0)
    height, width, n_channels = shape if len(shape) == 3 else (*shape, 1)
    y, x = np.mgrid[:height, :width]
    centre = rng.uniform(0.2, 0.8, (n_samples, 2)) * (height, width)
    distance = np.square(y - centre[:, :1, None]) + np.square(x - centre[:, 1:, None])
    spot = np.exp(-distance / (0.1 * height * width))[..., None]
    tint = rng.uniform(0.3, 0.9, (n_samples, 1, 1, n_channels))
    noise = rng.uniform(0, 0.1, (n_samples, height, width, n_channels))
    images = (top * (spot * tint + noise)).astype(dtype)
    return images[..., 0] if len(shape) == 2 else images


def image_vae(**params):
    """Estimator with a small convolutional network."""
    network = Conv(channels=(3, 4), hidden_layer_sizes=(6,))
    return small_vae(**{"network": network, "sigma": 20.0, "n_components": 3, **params})


SHAPES = {
    "28x28": pictures(28, 28),
    "32x32x3": pictures(32, 32, 3),
    "17x23": pictures(17, 23),
    "5x9x2": pictures(5, 9, 2),
    "4x4": pictures(4, 4),
    "n,1,28,28": pictures(28, 28)[:, None],
    "n,3,6,7": np.ascontiguousarray(np.moveaxis(pictures(6, 7, 3), -1, 1)),
}


@pytest.mark.parametrize("network", ["mlp", "conv", MLP((7,)), Conv((3,), 5, ())])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.uint16])
@pytest.mark.parametrize("case", SHAPES)
def test_every_method_keeps_shape_and_type(case, dtype, network):
    X = SHAPES[case].astype(dtype)
    vae = image_vae(network=network, channels_first=case.startswith("n,")).fit(X)
    n = len(X)
    expected = np.float64 if dtype == np.float64 else np.float32
    codes = vae.transform(X)
    assert codes.shape == (n, 3)
    assert codes.dtype == expected
    restored = vae.inverse_transform(codes)
    assert restored.shape == X.shape
    assert restored.dtype == expected
    assert np.abs(restored - X).mean() < np.abs(X - X.mean()).mean()
    assert vae.sample(5, random_state=0).shape == (5, *X.shape[1:])
    assert vae.sample(2, add_noise=True, random_state=0).shape == (2, *X.shape[1:])
    assert vae.score(X) == pytest.approx(vae.score_samples(X).mean())
    for codes in (vae.kl_divergence(X), *vae.posterior(X)):
        assert codes.shape == (n, 3)
    assert vae.n_features_in_ == X[0].size


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_integers_are_the_same_data_as_floats(network, dtype):
    top = 255 if dtype == np.uint8 else 60_000
    X = pictures(8, 9, 2, dtype=dtype, top=top)
    params = {"network": network, "sigma": top / 10, "n_components": 3}
    of_integers, of_floats = (
        small_vae(**params).fit(A, X_val=A[:5]) for A in (X, X.astype(np.float32))
    )
    np.testing.assert_allclose(
        of_integers.transform(X), of_floats.transform(X.astype(float)), atol=2e-4
    )
    assert of_integers.score(X) == pytest.approx(of_floats.score(X), abs=1e-3)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_orders_of_channels_are_the_same_images(network):
    last = pictures(6, 7, 3)
    first = np.moveaxis(last, -1, 1)
    params = {"network": network, "max_iter": 0}
    of_last = image_vae(**params).fit(last)
    of_first = image_vae(**params, channels_first=True).fit(first)
    codes = of_last.transform(last)
    np.testing.assert_allclose(of_first.transform(first), codes, atol=1e-10)
    restored = np.moveaxis(of_first.inverse_transform(codes), 1, -1)
    np.testing.assert_allclose(restored, of_last.inverse_transform(codes), atol=1e-8)


def view_of(X):
    """A read-only view on other memory, in another order."""
    view = np.ascontiguousarray(X[:, ::-1].swapaxes(1, 2)).swapaxes(1, 2)[:, ::-1]
    view.setflags(write=False)
    return view


def test_containers_and_views_do_not_matter():
    X = pictures(6, 7, 3, dtype=np.uint8)
    vae = image_vae().fit(X)
    codes = vae.transform(X)
    tensor = torch.from_numpy(X)
    of_float = tensor.float().requires_grad_()
    for same in (tensor, list(X), tuple(X), view_of(X), of_float):
        np.testing.assert_allclose(vae.transform(same), codes, atol=1e-6)
        assert vae.transform(same).dtype == np.float32
        np.testing.assert_allclose(image_vae().fit(same).transform(X), codes, atol=1e-4)
    for swapped in (X.astype(">u2"), X.astype(">f4")):
        np.testing.assert_allclose(vae.transform(swapped), codes, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3), (3, 6, 7)], ids=str)
def test_networks_see_channels_first_and_pixels_where_they_are(shape):
    channels_first = shape[0] == 3
    X = np.random.default_rng(0).normal(size=(4, *shape))
    params = {"max_iter": 0, "channels_first": channels_first, "init": "random"}
    vae = image_vae(sigma=0.1, **params).fit(X)
    rows = torch.from_numpy(X.reshape(len(X), -1))
    seen = vae.module_.encoder.network[0](rows)
    expected = X if channels_first else np.moveaxis(X.reshape(4, 6, 7, -1), -1, 1)
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(vae.module_.decoder.network[-1](seen), rows)


@pytest.mark.parametrize("shape", [(6, 7), (3, 6, 7), (6, 7, 3)], ids=str)
def test_flattened_images_are_images(shape):
    X = np.random.default_rng(0).uniform(0, 255, (24, *shape))
    rows = X.reshape(len(X), -1)
    params = {"channels_first": shape[0] == 3}
    of_images = image_vae(**params).fit(X)
    of_rows = image_vae(image_shape=list(shape), **params).fit(rows)
    codes = of_images.transform(X)
    np.testing.assert_array_equal(of_rows.transform(rows), codes)
    assert of_rows.inverse_transform(codes).shape == rows.shape
    drawn = of_rows.sample(2, random_state=0).reshape(2, *shape)
    np.testing.assert_array_equal(drawn, of_images.sample(2, random_state=0))
    # Said of images it must agree with them.
    also = image_vae(image_shape=shape, **params).fit(X)
    np.testing.assert_array_equal(also.transform(X), codes)


def test_the_linear_model_of_images_is_that_of_rows():
    X = pictures(6, 7, 3)
    rows = X.reshape(len(X), -1)
    params = {"network": "mlp", "hidden_layer_sizes": (), "max_iter": 0, "sigma": 9.0}
    images = image_vae(**params).fit(X)
    assert images.module_.encoder.network is None
    assert images.score(X) == image_vae(**params).fit(rows).score(rows)
    # A network that starts at zero starts at the same optimum.
    assert image_vae(max_iter=0, sigma=9.0).fit(X).score(X) == images.score(X)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_noise_scales_may_have_the_shape_of_an_image(shape):
    X = pictures(*shape)
    sigma = np.linspace(10, 30, X[0].size)
    of_rows = image_vae(sigma=sigma).fit(X)
    of_images = image_vae(sigma=sigma.reshape(shape)).fit(X)
    assert of_images.sigma_.shape == shape
    assert of_images.score(X) == of_rows.score(X)
    noisy = of_images.sample(400, add_noise=True, random_state=0)
    clean = of_images.sample(400, random_state=0)
    spread = (noisy - clean).std(axis=0).ravel()
    assert np.corrcoef(spread, sigma)[0, 1] > 0.8


def test_bernoulli_images():
    X = (pictures(8, 8) > 100).astype(np.uint8)
    vae = image_vae(noise="bernoulli", max_iter=20).fit(X)
    restored = vae.inverse_transform(vae.transform(X))
    assert restored.shape == X.shape
    assert 0 <= restored.min() < restored.max() <= 1


def test_training_goes_on_with_images():
    X = pictures(8, 8, dtype=np.uint8)
    vae = image_vae().partial_fit(X).partial_fit(X[:10])
    assert vae.n_iter_ == 2
    warm = image_vae(warm_start=True).fit(X).fit(X)
    assert warm.n_iter_ == 6
    for other in (X.reshape(len(X), -1), X[:, :7], X[..., None]):
        with pytest.raises(ValueError, match=r"fitted on samples of shape \(8, 8\)"):
            vae.partial_fit(other)
    warm.set_params(channels_first=True)
    with pytest.raises(ValueError, match="cannot change channels_first"):
        warm.fit(X)


def test_search_clone_pickle_and_pipelines():
    X = pictures(6, 7, 2, dtype=np.uint8, n_samples=30)
    y = X.mean(axis=(1, 2, 3)) > X.mean()
    grid = {"sigma": [20.0, "mle"], "network__channels": [(2,), (2, 2)]}
    search = GridSearchCV(image_vae(), grid, cv=2, error_score="raise").fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(X).shape == (30, 3)
    pipeline = make_pipeline(image_vae(), LogisticRegression()).fit(X, y)
    assert pipeline.predict(X).shape == (30,)
    vae = image_vae().fit(X)
    np.testing.assert_array_equal(clone(vae).fit(X).transform(X), vae.transform(X))
    restored = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(restored.transform(X), vae.transform(X))
    names = vae.set_output(transform="pandas").transform(X).columns
    assert list(names) == ["sigmavae0", "sigmavae1", "sigmavae2"]


# Bad images

IMAGES = pictures(8, 8)


@pytest.mark.parametrize("n_dims", [1, 2, 3])
@pytest.mark.parametrize("fitted", [False, True])
def test_images_of_mixed_sizes_are_refused(fitted, n_dims):
    mixed = [np.zeros(n_dims * (side,)) for side in (5, 6)]
    as_objects = np.empty(2, dtype=object)
    as_objects[:] = mixed
    method = image_vae().fit(IMAGES).transform if fitted else image_vae().fit
    for X in (mixed, as_objects):
        with pytest.raises(ValueError, match=r"array of objects.* stack them"):
            method(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((4, 2, 8, 8, 3)), r"Got samples of shape \(2, 8, 8, 3\)"),
        (np.zeros((4, 0, 8)), r"Got samples of shape \(0, 8\)"),
        (np.zeros((0, 8, 8)), "0 sample"),
        (np.zeros((1, 8, 8)), "minimum of 2"),
        (np.full((4, 8, 8), np.nan), "Column 0 of X has no entries"),
        (np.full((4, 8, 8), "pixel"), "could not convert|numeric"),
        (np.zeros((4, 3, 8)), r"at least 4 x 4 pixels. Got shape \(1, 3, 8\)"),
        (np.zeros((4, 3, 8, 8)), r"Got shape \(8, 3, 8\)"),
        (np.zeros((4, 64)), r"Got shape \(64,\)"),
    ],
)
def test_bad_images_are_refused(X, message):
    vae = image_vae()
    with pytest.raises(ValueError, match=message):
        vae.fit(X)
    assert not hasattr(vae, "n_features_in_")


@pytest.mark.parametrize(
    ("image_shape", "X"),
    [((8, 7), IMAGES.reshape(24, 64)), ((8, 8), IMAGES[:, :7])],
)
def test_image_shapes_that_do_not_match_are_refused(image_shape, X):
    shape = re.escape(str(X.shape[1:]))
    with pytest.raises(ValueError, match=rf"\(8, .\), does not match X.* {shape}\."):
        image_vae(image_shape=image_shape).fit(X)


BAD_SHAPES = (64,), (2, 2, 4, 4), (8.0, 8.0), (True, 64), (0, 8), (-8, -8), (8, (8, 1))


@pytest.mark.parametrize("image_shape", [*BAD_SHAPES, 64, np.array(64), "8x8"], ids=str)
def test_bad_image_shapes_are_refused(image_shape):
    with pytest.raises(ValueError, match="'image_shape' parameter of SigmaVAE must be"):
        image_vae(image_shape=image_shape).fit(IMAGES.reshape(24, 64))


COLOR = pictures(8, 8, 3)


@pytest.mark.parametrize("method", ["transform", "score", "posterior", "kl_divergence"])
@pytest.mark.parametrize(
    ("fitted", "X"),
    [
        *[(IMAGES, X) for X in (IMAGES[:, :7], IMAGES[..., None], IMAGES[None])],
        (IMAGES, IMAGES.reshape(24, 64)),
        (IMAGES.reshape(24, 64), IMAGES),
        *[(COLOR, X) for X in (COLOR[..., :2], COLOR[..., 0])],
    ],
)
def test_other_shapes_than_those_of_the_fit_show_both(method, fitted, X):
    vae = small_vae(max_iter=0).fit(fitted)
    shapes = [re.escape(f"of shape {rows.shape[1:]}") for rows in (X, fitted)]
    with pytest.raises(ValueError, match=f"X has .*{shapes[0]}.*{shapes[1]}"):
        getattr(vae, method)(X)
    with pytest.raises(ValueError, match=f"X_val has .*{shapes[0]}.*{shapes[1]}"):
        small_vae().fit(fitted, X_val=X)
