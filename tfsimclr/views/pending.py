"""Views of a batch that are made for a few rows at a time."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfsimclr.distribution import replicas
from tfsimclr.views.random_view import Rows


@dataclasses.dataclass(frozen=True)
class PendingView:
    """A view of a batch of which only a part is in memory at any time.

    Attributes:
        views: Callable like `random_view.Views`: images, seed and rows -> views.
        images: The batch, `[n, H, W, 3]` in 0-255, n known.
        seed: int32 `[2]`.
        rows: None, or which rows of a larger batch these are, all n of them.
    """

    views: Callable
    images: tf.Tensor
    seed: tf.Tensor
    rows: Rows | None = None

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
    of_batch = Rows(rows, view.batch_size)
    if view.rows is not None:
        of_batch = Rows(tf.gather(view.rows.indices, rows), view.rows.batch_size)
    made = view.views(images, view.seed, of_batch)
    return tf.ensure_shape(made, [rows.shape[0], *made.shape[1:]])


def gather(view):
    """Returns the view of the whole batch, of which each replica has a part."""
    if not isinstance(view, PendingView):
        return replicas.gather(view)
    # Bytes cannot be added up on all devices.
    images = replicas.gather(tf.cast(view.images, tf.int32))
    return PendingView(view.views, tf.cast(images, view.images.dtype), view.seed)
