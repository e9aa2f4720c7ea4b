"""The picture of codes and of what components draw: what it holds and shows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import DataConversionWarning
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import LatentSpaceDisplay

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")


@pytest.fixture
def display(vae):
    return LatentSpaceDisplay.from_estimator(vae, low_rank_rows())


def offsets(display):
    return [np.asarray(points.get_offsets()) for points in display.ax_.collections]


def test_a_scatter_of_the_components_that_know_most(vae, display):
    X = low_rank_rows()
    nats = vae.kl_divergence(X).mean(axis=0)
    np.testing.assert_array_equal(display.nats, nats)
    first, second = np.argsort(-nats)[:2]
    np.testing.assert_array_equal(
        offsets(display)[0], vae.transform(X)[:, [first, second]]
    )
    assert display.ax_.get_xlabel() == f"component {first} ({nats[first]:.2f} nats)"
    assert display.ax_.get_ylabel() == f"component {second} ({nats[second]:.2f} nats)"
    assert display.ax_.get_legend() is None
    assert display.traversal is None


def test_components_may_be_chosen(vae):
    X = low_rank_rows()
    display = LatentSpaceDisplay.from_estimator(vae, X, components=[1, 0])
    np.testing.assert_array_equal(offsets(display)[0], vae.transform(X)[:, [1, 0]])


@pytest.mark.parametrize("kind", [int, str, bool])
def test_classes_have_colours_and_a_legend(vae, kind):
    X = low_rank_rows()
    y = (np.arange(len(X)) % 2).astype(kind)
    display = LatentSpaceDisplay.from_estimator(vae, X, y)
    np.testing.assert_array_equal(display.y, y)
    drawn = offsets(display)
    assert len(drawn) == 2
    for points, label in zip(drawn, np.unique(y), strict=True):
        codes = display.codes[y == label][:, display.components[:2]]
        np.testing.assert_array_equal(points, codes)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == [str(label) for label in np.unique(y)]


def test_numbers_have_a_colour_bar(vae):
    X = low_rank_rows()
    y = np.linspace(-0.5, 0.7, len(X))
    display = LatentSpaceDisplay.from_estimator(vae, X, y)
    (points,) = display.ax_.collections
    np.testing.assert_array_equal(points.get_array(), y)
    assert len(display.figure_.axes) == 2


def test_many_integers_are_numbers_and_many_names_are_refused(vae):
    X = low_rank_rows()
    y = np.arange(len(X)) % 21
    display = LatentSpaceDisplay.from_estimator(vae, X, y)
    assert len(display.ax_.collections) == 1
    display = LatentSpaceDisplay.from_estimator(vae, X, np.minimum(y, 19).astype(str))
    assert len(display.ax_.collections) == 20
    with pytest.raises(ValueError, match=r"'y' of .* has 21 classes"):
        LatentSpaceDisplay.from_estimator(vae, X, y.astype(str))


@pytest.mark.parametrize(
    "y",
    [
        np.where(np.arange(60) % 2, "a", None),
        np.where(np.arange(60) % 2, 1.5, np.nan),
        pd.Series(np.arange(60)).astype("Int64").mask(np.arange(60) < 3),
        pd.Series(["a", "b"] * 30).mask(np.arange(60) < 3),
    ],
    ids=["None", "NaN", "NA", "strings"],
)
def test_missing_labels_are_refused(y, vae):
    with pytest.raises(ValueError, match=r"'y' of .* has missing values"):
        LatentSpaceDisplay.from_estimator(vae, low_rank_rows(), y)


@pytest.mark.parametrize(
    "kind", ["list", "Series", "category", "object", "column", "bool"]
)
def test_labels_in_any_array(kind, vae):
    y = np.arange(60) % 2
    y_in = {
        "list": list(y),
        "Series": pd.Series(y, index=np.arange(60) + 7),
        "category": pd.Series(np.where(y, "b", "a")).astype("category"),
        "object": y.astype(object),
        "column": y[:, None],
        "bool": y.astype(bool),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataConversionWarning)  # of the column
        display = LatentSpaceDisplay.from_estimator(vae, low_rank_rows(), y_in)
    assert [len(points) for points in offsets(display)] == [30, 30]


@pytest.mark.parametrize("marker", ["x", "+", "o"])
@pytest.mark.parametrize("y", [None, "classes", "numbers"])
def test_every_marker_leaves_ink(y, marker, vae):
    y = {"classes": np.arange(60) % 2, "numbers": np.linspace(0, 1.5, 60)}.get(y)
    display = LatentSpaceDisplay.from_estimator(vae, low_rank_rows(), y, marker=marker)
    for points in display.ax_.collections:
        assert points.get_linewidths().min() > 0


def test_settings_of_the_caller_win(vae):
    X = low_rank_rows()
    classes, numbers = np.arange(60) % 2, np.linspace(0, 1.5, 60)
    sizes = np.linspace(1, 9, 60)
    red = (1.0, 0.0, 0.0, 0.5)
    for y in (None, classes, numbers):
        for name in ("c", "color"):
            display = LatentSpaceDisplay.from_estimator(
                vae, X, y, **{name: [red]}, s=sizes, lw=2, alpha=None
            )
            drawn = display.ax_.collections
            for points in drawn:
                np.testing.assert_allclose(points.get_facecolors()[0], red)
                assert points.get_linewidths()[0] == 2
            assert sorted(np.concatenate([p.get_sizes() for p in drawn])) == sorted(
                sizes
            )
            assert len(display.figure_.axes) == 1
    display = LatentSpaceDisplay.from_estimator(vae, X, numbers, cmap="plasma")
    assert display.ax_.collections[0].get_cmap().name == "plasma"
    display = LatentSpaceDisplay.from_estimator(
        vae, X, classes, cmap="plasma", label="?"
    )
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["0", "1"]


@pytest.mark.parametrize("y", [None, "classes", "numbers"])
def test_one_component_is_a_histogram(y):
    X = low_rank_rows()
    y = {"classes": np.arange(len(X)) % 3, "numbers": np.linspace(0, 0.5, len(X))}.get(
        y
    )
    model = small_vae(n_components=1).fit(X)
    display = LatentSpaceDisplay.from_estimator(model, X, y, bins=7)
    n_groups = 3 if y is not None and y.max() == 2 else 1
    heights = [bar.get_height() for bar in display.ax_.patches]
    assert len(heights) == 7 * n_groups
    assert sum(heights) == len(X)
    assert all(bar.get_facecolor()[-1] > 0 for bar in display.ax_.patches)


def test_a_traversal_decodes_one_component_at_a_time(of_images, images):
    display = LatentSpaceDisplay.from_estimator(
        of_images, images[1000:], components=[3, 5], kind="traversal"
    )
    assert display.traversal.shape == (2, 7, 8, 8)
    assert (display.steps[0], display.steps[-1]) == (-3, 3)
    code = np.zeros((1, 16))
    code[0, 5] = display.steps[1]
    np.testing.assert_allclose(
        display.traversal[1, 1], of_images.inverse_transform(code)[0], atol=1e-5
    )
    mosaic = display.ax_.get_images()[0].get_array()
    np.testing.assert_array_equal(mosaic[8:, 8:16], display.traversal[1, 1])
    ticks = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert ticks == ["-3", "-2", "-1", "0", "1", "2", "3"]
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels[0] == f"component 3\n({display.nats[3]:.2f} nats)"


def test_by_default_a_traversal_has_eight_rows(of_images, images):
    display = LatentSpaceDisplay.from_estimator(of_images, images)
    best = np.argsort(-display.nats)[:8]
    np.testing.assert_array_equal(display.components, best)
    display.plot(kind="traversal")
    assert display.ax_.get_images()[0].get_array().shape == (8 * 8, 7 * 8)


def test_it_draws_where_it_is_told(display, plt):
    _, ax = plt.subplots()
    assert display.plot(ax, s=3) is display
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert ax.collections[0].get_sizes() == [3]


def test_a_table_has_no_traversal(vae, display):
    with pytest.raises(ValueError, match="fitted to a table"):
        display.plot(kind="traversal")
    with pytest.raises(ValueError, match="fitted to a table"):
        LatentSpaceDisplay.from_estimator(vae, low_rank_rows(), kind="traversal")


@pytest.mark.parametrize(
    "components", [[], [5], [-1], [0.5], 0, [[0, 1]], ["a"], [True, False]]
)
def test_components_that_are_none(vae, components):
    with pytest.raises(ValueError, match="'components' parameter"):
        LatentSpaceDisplay.from_estimator(vae, low_rank_rows(), components=components)


@pytest.mark.parametrize("n_channels", [2, 4])
def test_images_that_cannot_be_drawn_have_codes_all_the_same(n_channels):
    X = np.random.default_rng(0).random((40, 5, 7, n_channels))
    model = small_vae(sigma=0.1).fit(X)
    display = LatentSpaceDisplay.from_estimator(model, X)
    assert display.traversal is None
    with pytest.raises(ValueError, match=f"to images with {n_channels}"):
        LatentSpaceDisplay.from_estimator(model, X, kind="traversal")
    with pytest.raises(ValueError, match="one channel or three"):
        display.plot(kind="traversal")


def test_images_need_not_be_square():
    X = np.random.default_rng(0).random((40, 5, 7))
    model = small_vae(sigma=0.1).fit(X)
    display = LatentSpaceDisplay.from_estimator(model, X, kind="traversal")
    mosaic = display.ax_.get_images()[0]
    assert mosaic.get_array().shape == (2 * 5, 7 * 7)
    np.testing.assert_array_equal(display.ax_.get_yticks(), [2.0, 7.0])
    np.testing.assert_array_equal(display.ax_.get_xticks(), 7 * np.arange(7) + 3.0)
    low, high = np.quantile(display.traversal, (0.02, 0.98))
    assert mosaic.get_clim() == (low, high)


def test_bad_input(vae, display, plt):
    X = low_rank_rows()
    with pytest.raises(TypeError, match=r"'ax' of LatentSpaceDisplay\.plot"):
        display.plot(plt.subplots(2)[1])
    with pytest.raises(TypeError, match="must be a fitted SigmaVAE"):
        LatentSpaceDisplay.from_estimator(None, X)
    with pytest.raises(ValueError, match="inconsistent numbers"):
        LatentSpaceDisplay.from_estimator(vae, X, [1, 2])
    with pytest.raises(ValueError, match="'kind' parameter"):
        LatentSpaceDisplay.from_estimator(vae, X, kind="codes")
    with pytest.raises(ValueError, match="'kind' parameter"):
        display.plot(kind="codes")
