"""The picture of denoised images: what it holds and shows."""

import numpy as np
import pytest
from small_vae import small_vae

from sklearn_sigmavae import DenoisingDisplay, SigmaVAE

matplotlib = pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")


@pytest.fixture(scope="module")
def vae(images):
    return SigmaVAE(16, sigma=2.0, max_iter=10, random_state=0).fit(images[:1000])


def test_it_shows_what_denoise_gives(vae, images):
    scales = [3.0, 9.0]
    display = DenoisingDisplay.from_estimator(
        vae, images[1000:], noise_scales=scales, n_images=5
    )
    np.testing.assert_array_equal(display.clean, images[1000:1005])
    assert display.noisy.shape == display.restored.shape == (2, 5, 8, 8)
    for scale, noisy, restored in zip(
        scales, display.noisy, display.restored, strict=True
    ):
        assert (noisy - display.clean).std() == pytest.approx(scale, rel=0.2)
        np.testing.assert_array_equal(restored, vae.denoise(noisy, noise_scale=scale))
    expected = np.sqrt(np.square(display.restored - display.clean).mean((1, 2, 3)))
    np.testing.assert_allclose(display.errors, expected)
    assert display.errors[0] < display.errors[1] < 9
    mosaic = display.ax_.get_images()[0].get_array()
    assert mosaic.shape == (5 * 8, 5 * 8)
    np.testing.assert_array_equal(mosaic[:8, 8:16], images[1001])
    np.testing.assert_array_equal(mosaic[32:, :8], display.restored[1, 0])
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels[:2] == ["clean", "noise 3"]
    display.figure_.canvas.draw()


def test_noise_is_the_same_each_time(vae, images):
    first, second = (DenoisingDisplay.from_estimator(vae, images) for _ in range(2))
    np.testing.assert_array_equal(first.noisy, second.noisy)
    spread = np.sqrt(images[:1000].var(axis=0).mean())
    np.testing.assert_allclose(first.noise_scales, spread * np.array([1, 2, 4]))


def test_it_draws_where_it_is_told(vae, images, plt):
    _, ax = plt.subplots()
    display = DenoisingDisplay.from_estimator(vae, images, ax=ax, cmap="viridis")
    assert display.ax_ is ax
    assert ax.get_images()[0].get_cmap().name == "viridis"
    assert display.plot().ax_ is not ax


@pytest.mark.parametrize("order", ["channels last", "channels first", "flat"])
def test_colours_are_shown(images, order):
    X = np.stack([images, images[::-1], 16 - images], axis=-1)[:100]
    params = {"image_shape": (8, 8, 3)} if order == "flat" else {}
    if order == "channels first":
        X_in, params = X.transpose(0, 3, 1, 2), {"channels_first": True}
    else:
        X_in = X.reshape(100, -1) if order == "flat" else X
    vae = small_vae(sigma=3.0, **params).fit(X_in)
    display = DenoisingDisplay.from_estimator(vae, X_in, n_images=3)
    np.testing.assert_array_equal(display.clean, X[:3])
    mosaic = display.ax_.get_images()[0].get_array()
    assert mosaic.shape == (7 * 8, 3 * 8, 3)
    assert 0 <= mosaic.min() <= mosaic.max() <= 1


def test_tables_are_no_images(load):
    X = load("wine")
    with pytest.raises(ValueError, match="fitted to a table"):
        DenoisingDisplay.from_estimator(small_vae().fit(X), X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_images": 0}, "'n_images' parameter"),
        ({"n_images": 2.5}, "'n_images' parameter"),
        ({"noise": "cauchy"}, "'noise' parameter"),
        ({"noise": None}, "'noise' parameter"),
        ({"noise_scales": 3.0}, "must be a list of positive numbers"),
        ({"noise_scales": [0.0]}, "must be a list of positive numbers"),
        ({"noise_scales": []}, "must be a list of positive numbers"),
        ({"noise_scales": ["a"]}, "must be a list of positive numbers"),
        ({"noise_scales": "estimate"}, "must be a list of positive numbers"),
        ({"noise_scales": [1.0, -1.0]}, "must be a list of positive numbers"),
        ({"random_state": "a"}, "'random_state' parameter"),
    ],
    ids=repr,
)
def test_parameters_are_checked(vae, images, params, message):
    with pytest.raises(ValueError, match=message):
        DenoisingDisplay.from_estimator(vae, images, **params)


def test_what_cannot_be_drawn_is_told(vae, images, plt):
    with pytest.raises(TypeError, match="must be a fitted SigmaVAE"):
        DenoisingDisplay.from_estimator(None, images)
    with pytest.raises(ValueError, match="X contains NaN"):
        DenoisingDisplay.from_estimator(vae, np.where(images > 15, np.nan, images))
    with pytest.raises(TypeError, match="'ax' of DenoisingDisplay"):
        DenoisingDisplay.from_estimator(vae, images, ax=plt.subplots(2)[1])
    in_unit = images[:50] / 16
    bernoulli = small_vae(noise="bernoulli").fit(in_unit)
    with pytest.raises(ValueError, match="noise='bernoulli', which has none"):
        DenoisingDisplay.from_estimator(bernoulli, in_unit)
    five = np.random.default_rng(0).random((40, 4, 4, 5))
    with pytest.raises(ValueError, match="to images with 5"):
        DenoisingDisplay.from_estimator(small_vae(sigma=0.1).fit(five), five)
