"""Views of a batch that are made for a few rows at a time."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfsimclr.views.random_view import Rows


@dataclasses.dataclass(frozen=True)
class PendingView:
    """A view of a batch of which only a part is in memory at any time.

    Attributes:
        views: Callable like `random_view.Views`: images, seed and rows -> views.
        images: The batch, `[n, H, W, 3]` in 0-255, n known.
        seed: int32 `[2]`.
    """

    views: Callable
    images: tf.Tensor
    seed: tf.Tensor

    @property
    def batch_size(self) -> int:
        """Rows of the batch."""
        return self.images.shape[0]


def batch_size(view) -> int | None:
    """Returns the number of images of a view; None where a graph does not know it."""
    return view.batch_size if isinstance(view, PendingView) else view.shape[0]


def make_rows(view, rows):
    """Returns some rows of a view, `[m, s, s, 3]` in 0-1.

    Each is the view that its image has when the whole batch is made at once.

    Args:
        view: A `PendingView`, or the view of the whole batch, `[n, s, s, 3]`.
        rows: int32 `[m]`.
    """
    if not isinstance(view, PendingView):
        return tf.gather(view, rows)
    images = tf.gather(view.images, rows)
    made = view.views(images, view.seed, Rows(rows, view.batch_size))
    return tf.ensure_shape(made, [rows.shape[0], *made.shape[1:]])
