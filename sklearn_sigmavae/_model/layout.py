"""How samples lie in arrays, and what networks see of them.

Inside, a sample is a row of numbers, in the order in which the user's array holds them:
units, noise and the linear path need no more. Only networks for images see a shape,
that of torch: channels, height, width.
"""

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layout:
    """Shape of a sample in the user's arrays and for networks.

    Images are (H, W), (H, W, C), if ``channels_last``, or (C, H, W) in arrays, and
    always (C, H, W) for networks; rows of tables are (n_features,) for both.
    """

    sample_shape: tuple
    input_shape: tuple
    channels_last: bool = False

    @property
    def n_features(self):
        """Numbers in a sample."""
        return math.prod(self.sample_shape)

    def to_rows(self, X):
        """Samples as rows, a view of shape (n_samples, n_features)."""
        return X.reshape(len(X), self.n_features)

    def to_samples(self, rows):
        """Rows as samples, a view of shape (n_samples, *sample_shape)."""
        return rows.reshape(len(rows), *self.sample_shape)

    def on_rows(self, encoder, decoder):
        """Modules from and to rows around networks from and to images."""
        if len(self.input_shape) > 1:
            encoder = nn.Sequential(RowsToImages(self), encoder)
            decoder = nn.Sequential(decoder, ImagesToRows(self))
        return encoder, decoder


class _WithLayout(nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout


class RowsToImages(_WithLayout):
    """Rows as images for a network, a view of shape (n, C, H, W)."""

    def forward(self, rows):
        n_channels, height, width = self.layout.input_shape
        if self.layout.channels_last:
            return rows.view(-1, height, width, n_channels).permute(0, 3, 1, 2)
        return rows.view(-1, n_channels, height, width)


class ImagesToRows(_WithLayout):
    """Images from a network as rows, the inverse of :class:`RowsToImages`."""

    def forward(self, images):
        if self.layout.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.flatten(1)
