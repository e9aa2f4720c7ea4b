"""The picture of denoised images: what it holds and shows."""

import numpy as np
import pytest
from small_vae import small_vae

from sklearn_sigmavae import DenoisingDisplay, SigmaVAE

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")


@pytest.fixture(scope="module")
def vae(images):
    return SigmaVAE(16, sigma=2.0, max_iter=10, random_state=0).fit(images[:1000])


def test_it_shows_the_results_of_denoise(vae, images):
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
    # But for what lies outside of the model's axes.
    scales = spread * np.array([1, 2, 4])
    np.testing.assert_allclose(first.noise_scales, scales, rtol=0.02)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_images": 0}, "'n_images' parameter"),
        ({"n_images": 2.5}, "'n_images' parameter"),
        ({"noise": "cauchy"}, "'noise' parameter"),
        ({"noise": None}, "'noise' parameter"),
        ({"noise_scales": 3.0}, "'noise_scales' parameter"),
        ({"noise_scales": "estimate"}, "'noise_scales' parameter"),
        ({"noise_scales": []}, "minimum of 1 is required"),
        ({"noise_scales": ["a"]}, "could not convert string"),
        ({"noise_scales": [np.nan]}, "noise_scales contains NaN"),
        ({"noise_scales": [0.0]}, "must be positive"),
        ({"noise_scales": [1.0, -1.0]}, "must be positive"),
        ({"random_state": "a"}, "'random_state' parameter"),
    ],
    ids=repr,
)
def test_bad_parameters_are_refused(vae, images, params, message):
    with pytest.raises(ValueError, match=message):
        DenoisingDisplay.from_estimator(vae, images, **params)


def test_bad_data_and_models_are_refused(vae, images):
    with pytest.raises(ValueError, match="X contains NaN"):
        DenoisingDisplay.from_estimator(vae, np.where(images > 15, np.nan, images))
    bernoulli = small_vae(noise="bernoulli").fit(images[:50] / 16)
    with pytest.raises(ValueError, match="'bernoulli', has no scale"):
        DenoisingDisplay.from_estimator(bernoulli, images[:50] / 16)
