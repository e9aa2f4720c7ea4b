"""The picture of codes and of traversals: what it holds and shows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import DataConversionWarning
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import LatentSpaceDisplay

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")

X = low_rank_rows()
CLASSES, NUMBERS = np.arange(60) % 2, np.linspace(-0.5, 0.7, 60)


def offsets(display):
    return [np.asarray(points.get_offsets()) for points in display.ax_.collections]


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_a_scatter_of_the_components_with_most_information(vae):
    display = LatentSpaceDisplay.from_estimator(vae, X)
    nats = vae.kl_divergence(X).mean(axis=0)
    np.testing.assert_array_equal(display.nats, nats)
    first, second = np.argsort(-nats)[:2]
    codes = vae.transform(X)
    np.testing.assert_array_equal(offsets(display)[0], codes[:, [first, second]])
    assert display.ax_.get_xlabel() == f"component {first} ({nats[first]:.2f} nats)"
    assert display.ax_.get_ylabel() == f"component {second} ({nats[second]:.2f} nats)"
    assert display.ax_.get_legend() is None
    chosen = LatentSpaceDisplay.from_estimator(vae, X, components=[second, first])
    np.testing.assert_array_equal(offsets(chosen)[0], codes[:, [second, first]])


@pytest.mark.parametrize("kind", [int, str, bool])
def test_classes_have_colors_and_a_legend(vae, kind):
    y = CLASSES.astype(kind)
    # Classes have no color map, and labels of their own.
    ignored = {"cmap": "plasma", "label": "?"}
    display = LatentSpaceDisplay.from_estimator(vae, X, y, **ignored)
    np.testing.assert_array_equal(display.y, y)
    for points, label in zip(offsets(display), np.unique(y), strict=True):
        codes = display.codes[y == label][:, display.components[:2]]
        np.testing.assert_array_equal(points, codes)
    assert legend(display) == [str(label) for label in np.unique(y)]


def test_numbers_have_a_color_bar(vae):
    display = LatentSpaceDisplay.from_estimator(vae, X, NUMBERS, cmap="plasma")
    (points,) = display.ax_.collections
    np.testing.assert_array_equal(points.get_array(), NUMBERS)
    assert points.get_cmap().name == "plasma"
    assert len(display.figure_.axes) == 2


def test_many_integers_are_numbers_and_many_names_are_refused(vae):
    for y in (np.arange(60) % 21, np.arange(60)):
        display = LatentSpaceDisplay.from_estimator(vae, X, y)
        assert len(display.ax_.collections) == 1
    y = np.arange(60) % 20
    display = LatentSpaceDisplay.from_estimator(vae, X, y.astype(str))
    assert len(display.ax_.collections) == 20
    y = np.arange(60) % 21
    with pytest.raises(ValueError, match=r"'y' of .* has 21 classes"):
        LatentSpaceDisplay.from_estimator(vae, X, y.astype(str))


@pytest.mark.parametrize(
    "y",
    [
        np.where(np.arange(60) % 2, "a", None),
        np.where(np.arange(60) % 2, 1.5, np.nan),
        pd.Series(np.arange(60)).astype("Int64").mask(np.arange(60) < 3),
        pd.Series(["a", "b"] * 30).mask(np.arange(60) < 3),
        pd.Series(["a", "b"] * 30, dtype="string").mask(np.arange(60) < 3),
    ],
    ids=["None", "NaN", "NA", "strings", "strings, NA"],
)
def test_missing_labels_are_refused(y, vae):
    with pytest.raises(ValueError, match=r"'y' of .* has missing values"):
        LatentSpaceDisplay.from_estimator(vae, X, y)


@pytest.mark.parametrize(
    "y",
    [
        list(CLASSES),
        pd.Series(CLASSES, index=np.arange(60) + 7),
        pd.Series(np.where(CLASSES, "b", "a")).astype("category"),
        CLASSES.astype(object),
        CLASSES[:, None],
    ],
    ids=["list", "Series", "category", "object", "column"],
)
def test_labels_in_any_array(y, vae):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)  # of the column
        display = LatentSpaceDisplay.from_estimator(vae, X, y)
    assert [len(points) for points in offsets(display)] == [30, 30]


@pytest.mark.parametrize("marker", ["x", "o"])
@pytest.mark.parametrize("y", [None, CLASSES, NUMBERS], ids=["none", "class", "number"])
def test_settings_of_the_caller_win(vae, y, marker):
    sizes, red = np.linspace(1, 9, 60), (1.0, 0.0, 0.0, 0.5)
    display = LatentSpaceDisplay.from_estimator(vae, X, y, marker=marker)
    for points in display.ax_.collections:
        assert points.get_linewidths().min() > 0  # "x" has only lines
    for name in ("c", "color"):
        display = LatentSpaceDisplay.from_estimator(
            vae, X, y, **{name: [red]}, s=sizes, lw=2, alpha=None
        )
        drawn = display.ax_.collections
        for points in drawn:
            np.testing.assert_allclose(points.get_facecolors()[0], red)
            assert points.get_linewidths()[0] == 2
        drawn_sizes = np.concatenate([points.get_sizes() for points in drawn])
        np.testing.assert_array_equal(np.sort(drawn_sizes), sizes)
        assert len(display.figure_.axes) == 1


@pytest.mark.parametrize(
    ("y", "n_groups"), [(None, 1), (np.arange(60) % 3, 3), (NUMBERS, 1)]
)
def test_one_component_is_a_histogram(y, n_groups):
    model = small_vae(n_components=1).fit(X)
    display = LatentSpaceDisplay.from_estimator(model, X, y, bins=7)
    heights = [bar.get_height() for bar in display.ax_.patches]
    assert len(heights) == 7 * n_groups
    assert sum(heights) == len(X)
    assert all(bar.get_facecolor()[-1] > 0 for bar in display.ax_.patches)


def test_a_traversal_decodes_one_component_at_a_time():
    rows = np.random.default_rng(0).random((40, 5, 7))
    model = small_vae(sigma=0.1, n_components=4).fit(rows)
    display = LatentSpaceDisplay.from_estimator(
        model, rows, components=[3, 1], kind="traversal"
    )
    assert display.traversal.shape == (2, 7, 5, 7)
    np.testing.assert_array_equal(display.steps, np.arange(-3, 4))
    decoded = model.inverse_transform([[0, display.steps[1], 0, 0]])[0]
    np.testing.assert_allclose(display.traversal[1, 1], decoded, atol=1e-5)
    (picture,) = display.ax_.get_images()
    mosaic = picture.get_array()
    assert mosaic.shape == (2 * 5, 7 * 7)
    np.testing.assert_array_equal(mosaic[5:, 7:14], display.traversal[1, 1])
    assert picture.get_clim() == tuple(np.quantile(display.traversal, (0.02, 0.98)))
    np.testing.assert_array_equal(display.ax_.get_xticks(), 7 * np.arange(7) + 3.0)
    ticks = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert ticks == ["-3", "-2", "-1", "0", "1", "2", "3"]
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels[0] == f"component 3\n({display.nats[3]:.2f} nats)"


def test_by_default_a_traversal_has_eight_rows(of_images, images):
    display = LatentSpaceDisplay.from_estimator(of_images, images)
    np.testing.assert_array_equal(display.components, np.argsort(-display.nats)[:8])
    display.plot(kind="traversal")
    assert display.ax_.get_images()[0].get_array().shape == (8 * 8, 7 * 8)


@pytest.mark.parametrize("shape", [(5,), (5, 7, 2), (5, 7, 4)], ids=str)
def test_codes_need_no_images_that_can_be_drawn(shape):
    rows = np.random.default_rng(0).random((40, *shape))
    display = LatentSpaceDisplay.from_estimator(small_vae(sigma=0.1).fit(rows), rows)
    assert display.traversal is None
    with pytest.raises(ValueError, match="one channel or three"):
        display.plot(kind="traversal")


@pytest.mark.parametrize(
    "components", [[], [5], [-1], [0.5], 0, [[0, 1]], ["a"], [True, False]], ids=str
)
def test_components_that_do_not_exist(vae, components):
    with pytest.raises(ValueError, match="'components' parameter"):
        LatentSpaceDisplay.from_estimator(vae, X, components=components)


def test_bad_input(vae):
    with pytest.raises(ValueError, match="inconsistent numbers"):
        LatentSpaceDisplay.from_estimator(vae, X, [1, 2])
    with pytest.raises(ValueError, match="'kind' parameter"):
        LatentSpaceDisplay.from_estimator(vae, X, kind="codes")
    with pytest.raises(ValueError, match="'kind' parameter"):
        LatentSpaceDisplay.from_estimator(vae, X).plot(kind="codes")
