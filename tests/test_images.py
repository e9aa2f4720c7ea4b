"""Arrays of images: their shapes, their order of channels, their types, bad ones."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from small_vae import small_vae

from sklearn_sigmavae import SigmaVAE
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
    assert vae.score_samples(X).shape == (n,)
    assert vae.score(X) == pytest.approx(vae.score_samples(X).mean())
    assert vae.kl_divergence(X).shape == (n, 3)
    assert all(part.shape == (n, 3) for part in vae.posterior(X))
    assert vae.n_features_in_ == X[0].size
    assert not hasattr(vae, "feature_names_in_")


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


@pytest.mark.parametrize("order", [">u2", ">f4"])
def test_bytes_may_be_in_the_other_order(order):
    X = pictures(5, 6)
    expected = image_vae().fit(X.astype(int)).transform(X.astype(int))
    swapped = X.astype(int).astype(order)
    np.testing.assert_allclose(image_vae().fit(swapped).transform(swapped), expected)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_orders_of_channels_are_the_same_images(network):
    last = pictures(6, 7, 3)
    first = np.moveaxis(last, -1, 1)
    params = {"network": network, "max_iter": 0}
    codes = image_vae(**params).fit(last).transform(last)
    vae = image_vae(**params, channels_first=True).fit(first)
    np.testing.assert_allclose(vae.transform(first), codes, atol=1e-10)
    np.testing.assert_allclose(
        np.moveaxis(vae.inverse_transform(codes), 1, -1),
        image_vae(**params).fit(last).inverse_transform(codes),
        atol=1e-8,
    )


def test_tensors_and_lists_keep_their_type():
    import torch

    X = pictures(6, 7, 3, dtype=np.uint8)
    vae = image_vae().fit(X)
    codes = vae.transform(X)
    tensor = torch.from_numpy(X)
    for same in (tensor, list(X), tuple(X), tensor.float().requires_grad_()):
        np.testing.assert_allclose(vae.transform(same), codes, atol=1e-6)
        assert vae.transform(same).dtype == np.float32
        np.testing.assert_allclose(image_vae().fit(same).transform(X), codes, atol=1e-4)


def test_networks_see_channels_first_and_pixels_where_they_are():
    X = pictures(6, 7, 3)
    vae = image_vae(max_iter=0).fit(X)
    to_images = vae.module_.encoder.network[0]
    rows = vae.module_.units.to_internal(X.reshape(len(X), -1))
    seen = to_images(rows).numpy()
    assert seen.shape == (len(X), 3, 6, 7)
    back = np.moveaxis(seen, 1, -1).reshape(len(X), -1)
    np.testing.assert_allclose(vae.module_.units.to_data(back), X.reshape(len(X), -1))
    to_rows = vae.module_.decoder.network[-1]
    np.testing.assert_array_equal(to_rows(to_images(rows)), rows)


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3)])
def test_flattened_images_are_images(shape):
    X = pictures(*shape)
    rows = X.reshape(len(X), -1)
    of_images = image_vae().fit(X)
    of_rows = image_vae(image_shape=shape).fit(rows)
    codes = of_images.transform(X)
    np.testing.assert_array_equal(of_rows.transform(rows), codes)
    assert of_rows.inverse_transform(codes).shape == rows.shape
    np.testing.assert_array_equal(
        of_rows.sample(2, random_state=0).reshape(2, *shape),
        of_images.sample(2, random_state=0),
    )
    # Said of images it must agree with them.
    also = image_vae(image_shape=list(shape)).fit(X)
    np.testing.assert_array_equal(also.transform(X), codes)


def test_flattened_images_may_have_channels_first():
    X = np.ascontiguousarray(np.moveaxis(pictures(6, 7, 3), -1, 1))
    rows = X.reshape(len(X), -1)
    codes = image_vae(channels_first=True).fit(X).transform(X)
    vae = image_vae(channels_first=True, image_shape=(3, 6, 7)).fit(rows)
    np.testing.assert_array_equal(vae.transform(rows), codes)


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


def test_learned_noise_scale_of_images():
    vae = image_vae(sigma="mle").fit(pictures(8, 8, dtype=np.uint8))
    assert 1 < vae.sigma_ < 60


def test_bernoulli_images():
    X = (pictures(8, 8) > 100).astype(np.uint8)
    vae = image_vae(noise="bernoulli", max_iter=20).fit(X)
    restored = vae.inverse_transform(vae.transform(X))
    assert restored.shape == X.shape
    assert 0 <= restored.min() < restored.max() <= 1
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        image_vae(noise="bernoulli").fit(2 * X)


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


def test_search_clone_pickle_and_pipelines(tmp_path):
    X = pictures(6, 7, 2, dtype=np.uint8, n_samples=30)
    y = X.mean(axis=(1, 2, 3)) > X.mean()
    search = GridSearchCV(image_vae(), {"sigma": [20.0, 40.0]}, cv=2, n_jobs=2)
    search.fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.transform(X).shape == (30, 3)
    assert cross_val_score(image_vae(), X, cv=3).shape == (3,)
    deeper = GridSearchCV(
        image_vae(), {"network__channels": [(2,), (2, 2)]}, cv=2, error_score="raise"
    )
    assert len(deeper.fit(X).cv_results_["params"]) == 2
    pipeline = make_pipeline(image_vae(), LogisticRegression()).fit(X, y)
    assert pipeline.predict(X).shape == (30,)
    vae = image_vae().fit(X)
    np.testing.assert_array_equal(clone(vae).fit(X).transform(X), vae.transform(X))
    restored = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(restored.transform(X), vae.transform(X))
    names = vae.set_output(transform="pandas").transform(X).columns
    assert list(names) == ["sigmavae0", "sigmavae1", "sigmavae2"]


def test_views_are_read_as_they_are():
    X = pictures(8, 7)
    codes = image_vae().fit(X).transform(X)
    turned = np.ascontiguousarray(X[:, ::-1].transpose(0, 2, 1))
    view = turned.transpose(0, 2, 1)[:, ::-1]
    assert not view.flags.c_contiguous
    view.setflags(write=False)
    np.testing.assert_array_equal(image_vae().fit(view).transform(view), codes)
    np.testing.assert_array_equal(image_vae().fit(X.tolist()).transform(X), codes)


# Bad images

IMAGES = pictures(8, 8)


@pytest.mark.parametrize("n_dims", [2, 3, 4, 5])
@pytest.mark.parametrize("fitted", [False, True])
def test_images_of_mixed_sizes_say_so(fitted, n_dims):
    mixed = [np.zeros((n_dims - 1) * (side,)) for side in (5, 6)]
    as_objects = np.empty(2, dtype=object)
    as_objects[:] = mixed
    vae = image_vae().fit(IMAGES) if fitted else image_vae()
    for X in (mixed, as_objects):
        for method in (vae.fit, vae.transform) if fitted else (vae.fit,):
            with pytest.raises(ValueError, match=r"stack them in one array"):
                method(X)
    with pytest.raises(ValueError, match=r"Got \(5,.*, \(6,"):
        image_vae().fit(mixed)


def test_an_array_of_image_objects_says_so():
    as_objects = np.empty(4, dtype=object)
    as_objects[:] = list(IMAGES[:4])
    with pytest.raises(ValueError, match=r"array of objects, of shapes \(8, 8\)"):
        image_vae().fit(as_objects)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((4, 2, 8, 8, 3)), r"Got samples of shape \(2, 8, 8, 3\)"),
        (np.zeros((4, 0, 8)), r"Got samples of shape \(0, 8\)"),
        (np.zeros((0, 8, 8)), "0 sample"),
        (np.zeros((1, 8, 8)), "minimum of 2"),
        (np.full((4, 8, 8), np.nan), "NaN"),
        (np.full((4, 8, 8), "pixel"), "could not convert|numeric"),
        (np.zeros((4, 3, 8)), "at least 4 x 4 pixels. Got 3 x 8 pixels with 1 ch"),
        (np.zeros((4, 3, 8, 8)), "Got 3 x 8 pixels with 8 channels"),
        (np.zeros((4, 64)), "Got rows of 64 features"),
    ],
)
def test_bad_images_are_refused(X, message):
    vae = image_vae()
    with pytest.raises(ValueError, match=message):
        vae.fit(X)
    assert not hasattr(vae, "n_features_in_")


@pytest.mark.parametrize(
    ("image_shape", "X", "message"),
    [
        ((8, 7), np.zeros((4, 64)), r"\(8, 7\), stands for rows of 56 .* 64 features"),
        ((8, 8), IMAGES[:, :7], r"X has samples of shape \(7, 8\)"),
        ((64,), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ((2, 2, 4, 4), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ((8.0, 8.0), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ((True, 64), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ((0, 8), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ((-8, -8), np.zeros((4, 64)), "must be \\(height, width\\)"),
        (64, np.zeros((4, 64)), "'image_shape' parameter of SigmaVAE must be"),
        (np.array(64), np.zeros((4, 64)), "must be \\(height, width\\)"),
        ("8x8", np.zeros((4, 64)), "'image_shape' parameter of SigmaVAE must be"),
    ],
)
def test_bad_image_shapes_are_refused(image_shape, X, message):
    with pytest.raises(ValueError, match=message):
        image_vae(image_shape=image_shape).fit(X)


@pytest.mark.parametrize("method", ["transform", "score", "posterior", "kl_divergence"])
@pytest.mark.parametrize(
    "X", [IMAGES[:, :7], IMAGES[..., None], IMAGES.reshape(24, 64), IMAGES[None]]
)
def test_other_shapes_than_those_of_the_fit_show_both(method, X):
    vae = image_vae().fit(IMAGES)
    shapes = rf"shape \({X.shape[1]}.*, but .* of shape \(8, 8\)"
    with pytest.raises(ValueError, match=shapes):
        getattr(vae, method)(X)


def test_channels_that_change_are_refused():
    colour = pictures(8, 8, 3)
    vae = image_vae().fit(colour)
    for X in (colour[..., :2], colour[..., 0]):
        with pytest.raises(ValueError, match=r"of shape \(8, 8, 3\)"):
            vae.transform(X)
    with pytest.raises(ValueError, match=r"X_val has .*\(8, 8, 2\).*\(8, 8, 3\)"):
        image_vae().fit(colour, X_val=colour[..., :2])


def test_images_given_to_a_model_of_rows_are_refused():
    vae = small_vae().fit(IMAGES.reshape(24, 64))
    with pytest.raises(ValueError, match=r"\(8, 8\), but .* of shape \(64,\)"):
        vae.transform(IMAGES)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"channels": ()}, "'channels' parameter of Conv"),
        ({"channels": (0,)}, "'channels' parameter of Conv"),
        ({"channels": 8}, "'channels' parameter of Conv"),
        ({"channels": (2.5,)}, "'channels' parameter of Conv"),
        ({"kernel_size": 4}, "'kernel_size' parameter of Conv must be an odd"),
        ({"kernel_size": 0}, "'kernel_size' parameter of Conv"),
        ({"hidden_layer_sizes": 8}, "'hidden_layer_sizes' parameter of Conv"),
        ({"channels": (True,)}, "'channels' parameter of Conv"),
        ({"activation": ["silu"]}, "'activation' parameter of Conv"),
        ({"activation": "step"}, "'activation' parameter of Conv"),
    ],
)
def test_bad_parameters_of_conv_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        SigmaVAE(network=Conv(**params)).fit(IMAGES)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (7, 13), (9, 6), (64, 48)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("channels", [(2,), (2, 3), (2, 3, 4, 5)])
def test_conv_takes_any_size(channels, kernel_size, size):
    import torch

    recipe = Conv(channels, kernel_size, hidden_layer_sizes=())
    images = torch.randn(2, 3, *size)
    codes = recipe.encoder((3, *size), 4)(images)
    assert codes.shape == (2, 8)
    assert recipe.decoder(4, (3, *size))(codes[:, :4]).shape == images.shape
