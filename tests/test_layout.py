"""Layouts: what they say of shapes, and that both ways undo each other."""

import pytest
import torch
from torch import nn

from sklearn_sigmavae._layout import Layout


@pytest.mark.parametrize(
    ("image_shape", "channels_first", "input_shape"),
    [
        ((5, 6), False, (1, 5, 6)),
        ((5, 6), True, (1, 5, 6)),
        ((5, 6, 1), False, (1, 5, 6)),
        ((5, 6, 3), False, (3, 5, 6)),
        ((3, 5, 6), True, (3, 5, 6)),
    ],
)
def test_rows_and_images(image_shape, channels_first, input_shape):
    layout = Layout.of_images(image_shape, image_shape, channels_first)
    assert layout.input_shape == input_shape
    X = torch.randn(2, *image_shape)
    rows = layout.to_rows(X)
    assert rows.shape == (2, layout.n_features)
    assert torch.equal(layout.to_samples(rows), X)
    to_images, to_rows = layout.on_rows(nn.Identity(), nn.Identity())
    images = to_images(rows)
    assert images.shape == (2, *input_shape)
    expected = X.reshape(2, *input_shape)
    if layout.channels_last:
        expected = X.permute(0, 3, 1, 2)
    assert torch.equal(images, expected)
    assert torch.equal(to_rows(images), rows)


def test_rows_stay_rows():
    layout = Layout((7,), (7,))
    encoder, decoder = nn.Identity(), nn.Identity()
    assert layout.on_rows(encoder, decoder) == (encoder, decoder)
