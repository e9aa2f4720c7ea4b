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
    """Shape of a sample, in the array that holds it and for networks.

    Attributes
    ----------
    sample_shape : tuple of int
        Shape of a sample in arrays: (n_features,) in a table, (H, W), (H, W, C) or
        (C, H, W) for images.
    input_shape : tuple of int
        Shape of a sample for networks: (n_features,) in a table, (C, H, W) for images.
    channels_last : bool
        Whether the channels of an image are the last dimension of its array.
    """

    sample_shape: tuple
    input_shape: tuple
    channels_last: bool = False

    @classmethod
    def of_images(cls, sample_shape, image_shape, channels_first):
        """Layout of samples that are images of shape (H, W), or that with channels."""
        if len(image_shape) == 2:
            return cls(sample_shape, (1, *image_shape))
        if channels_first:
            return cls(sample_shape, image_shape)
        height, width, n_channels = image_shape
        # With one channel the two orders are the same.
        return cls(sample_shape, (n_channels, height, width), n_channels > 1)

    @property
    def n_features(self):
        """int : Numbers in a sample."""
        return math.prod(self.sample_shape)

    def to_rows(self, X):
        """Samples as rows, a view of shape (n_samples, n_features)."""
        return X.reshape(len(X), self.n_features)

    def to_samples(self, rows):
        """Rows as samples, a view of shape (n_samples, *sample_shape)."""
        return rows.reshape(len(rows), *self.sample_shape)

    def on_rows(self, encoder, decoder):
        """Modules from and to rows around networks from and to images."""
        if len(self.input_shape) == 1:
            return encoder, decoder
        return (
            nn.Sequential(RowsToImages(self), encoder),
            nn.Sequential(decoder, ImagesToRows(self)),
        )


class RowsToImages(nn.Module):
    """Rows as images for a network, a view of shape (n, C, H, W)."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, rows):
        n_channels, height, width = self.layout.input_shape
        if self.layout.channels_last:
            return rows.view(-1, height, width, n_channels).permute(0, 3, 1, 2)
        return rows.view(-1, n_channels, height, width)


class ImagesToRows(nn.Module):
    """Images from a network as rows, the inverse of :class:`RowsToImages`."""

    def __init__(self, layout):
        super().__init__()
        self.layout = layout

    def forward(self, images):
        if self.layout.channels_last:
            images = images.permute(0, 2, 3, 1)
        return images.flatten(1)
