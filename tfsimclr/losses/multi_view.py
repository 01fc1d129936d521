"""Contrastive losses of any number of views of each image, always in float32.

Every view is an anchor. Its positives are the other views of its image, its negatives
are all views of the other images. A loss is the mean over the ordered pairs of an
anchor and a positive: V (V - 1) n pairs of V views of n images, each with V (n - 1)
negatives. With two views these are the losses of `contrastive`.

All functions take these arguments:

    z: Projections: V tensors `[n, d]`, one for each view, or a tensor `[V, n, d]`, any
        float type; at least two views.
    temperature: Positive scalar; smaller is sharper.
    keys: None, or projections like `z` with which the anchors are compared instead of
        each other: those of a momentum encoder. The key of an anchor's own view is
        neither positive nor negative.
    block_rows: 0 computes all similarities, `[V n, V n]`, at once; otherwise this many
        rows at a time, in the gradient too, which saves memory and computes the
        similarities twice. Must divide V n.

They raise a UserError if the temperature is not positive or the shapes do not fit.

Source of the loss of more than two views: Caron et al. 2020 (arXiv:2006.09882),
appendix A.8.
"""

import tensorflow as tf

from tfsimclr.errors import UserError
from tfsimclr.losses import blockwise
from tfsimclr.losses.normalization import normalize

# Value of `log_means` of an image that no batch has contained.
UNSEEN = tf.float32.min


def nt_xent(z, temperature: float, keys=None, block_rows: int = 0) -> tf.Tensor:
    """Returns the mean NT-Xent loss, scalar float32; ln(1 + V (n - 1)) at chance.

    The denominator of a pair holds that pair and the negatives, not the other positives
    of the anchor.

    Sources: Chen et al. 2020 (arXiv:2002.05709), equation 1; more than two views as in
    the text above.
    """
    pairs = _Pairs(z, temperature, keys, block_rows)
    positives = pairs.positives() / temperature
    if pairs.views == 2:
        # All candidates but the anchor itself are the positive and the negatives.
        return tf.reduce_mean(pairs.log_sum_exp(temperature, False) - positives)
    negatives = pairs.log_sum_exp(temperature)
    return tf.reduce_mean(tf.math.softplus(negatives - positives))


def dcl(z, temperature: float, keys=None, block_rows: int = 0) -> tf.Tensor:
    """Returns the decoupled loss, scalar float32; ln(V (n - 1)) at chance.

    It is NT-Xent without the positive in the denominator.

    Source: Yeh et al. 2022 (arXiv:2110.06848), equation 6.
    """
    pairs = _Pairs(z, temperature, keys, block_rows)
    positives = pairs.positives() / temperature
    return tf.reduce_mean(pairs.log_sum_exp(temperature) - positives)


def dclw(z, temperature: float, keys=None, block_rows: int = 0) -> tf.Tensor:
    """Returns the decoupled loss with larger weights for positives farther apart.

    The weights of each ordered pair of views have mean 1 over the n images.

    Source: Yeh et al. 2022 (arXiv:2110.06848), equation 7 and the sigma of its code.
    """
    pairs = _Pairs(z, temperature, keys, block_rows)
    similarity = pairs.positives()
    by_view = tf.reshape(similarity, [-1, tf.shape(pairs.anchors)[0] // pairs.views])
    n = tf.cast(tf.shape(by_view)[1], tf.float32)
    weight = 2.0 - n * tf.nn.softmax(by_view / 0.5, axis=1)
    weight = tf.reshape(weight, tf.shape(similarity))
    negatives = pairs.log_sum_exp(temperature)
    return tf.reduce_mean(negatives - weight * similarity / temperature)


def hcl(
    z,
    temperature: float,
    keys=None,
    block_rows: int = 0,
    *,
    beta: float,
    tau_plus: float,
) -> tf.Tensor:
    """Returns the loss with hard negatives, debiased; ln(1 + V (n - 1)) at chance.

    Negatives are weighted by exp(beta * similarity / temperature), and a share
    `tau_plus` of them is taken to be of the anchor's own class. With `beta` and
    `tau_plus` 0 it is NT-Xent, with `beta` 0 the debiased loss of Chuang et al. 2020
    (arXiv:2007.00224).

    Args:
        z: See the text above; so are `temperature`, `keys` and `block_rows`.
        temperature: As above.
        keys: As above.
        block_rows: As above.
        beta: Concentration on hard negatives, at least 0.
        tau_plus: Probability that a negative is of the anchor's class, at least 0 and
            below 1.

    Returns:
        Scalar float32.

    Source: Robinson et al. 2021 (arXiv:2010.04592), section 4 and algorithm 1.
    """
    if not beta >= 0 or not 0 <= tau_plus < 1:
        raise UserError(
            "hcl needs beta of at least 0 and tau_plus of at least 0 and below 1, got "
            f"beta={beta} and tau_plus={tau_plus}. The paper uses 1 and 0.1."
        )
    pairs = _Pairs(z, temperature, keys, block_rows)
    positives = pairs.positives() / temperature
    # The logarithm of the sum of the weighted negatives, whose weights have mean 1.
    hard = pairs.log_sum_exp(temperature / (1 + beta))
    if beta:
        hard += pairs.log_count - pairs.log_sum_exp(temperature / beta)
    if not tau_plus:
        return tf.reduce_mean(tf.math.softplus(hard - positives))
    # Clipped, or the exponential overflows at small temperatures.
    ratio = tf.exp(tf.minimum(positives - hard + pairs.log_count, 80.0))
    left = 1.0 - tau_plus * ratio
    lowest = pairs.log_count - 1.0 / temperature
    debiased = tf.math.log(tf.where(left > 0, left, 1.0)) + hard
    debiased -= tf.math.log(1.0 - tau_plus)
    negatives = tf.where(left > 0, tf.maximum(debiased, lowest), lowest)
    return tf.reduce_mean(tf.math.softplus(negatives - positives))


def sogclr(
    z,
    temperature: float,
    keys=None,
    block_rows: int = 0,
    *,
    log_means,
    gamma: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss whose denominator is a running mean, and the new means.

    Every image has a running mean u of exp(similarity / temperature) over the negatives
    of the batches that it was in. The gradient of an anchor's negatives is divided by u
    instead of by the mean over one small batch. With `gamma` 1 it is `dcl`.

    Differs: the gradient in the authors' code is `temperature` times this one. As
    there, each anchor's mean is updated by itself, and the mean over an image's anchors
    is stored; algorithm 1 uses the stored mean for all of them.

    Args:
        z: See the text above; so are `temperature`, `keys` and `block_rows`.
        temperature: As above.
        keys: As above.
        block_rows: As above.
        log_means: ln u of the n images, `[n]` float32; `UNSEEN` for a new image.
        gamma: Weight of the newest batch in u, above 0, at most 1.

    Returns:
        Scalar float32, ln(V (n - 1)) at chance; and the new `log_means`.

    Source: Yuan et al. 2022 (arXiv:2202.12387), algorithm 1, and the authors' code.
    """
    if not 0 < gamma <= 1:
        raise UserError(f"gamma must be above 0 and at most 1, got gamma={gamma}.")
    pairs = _Pairs(z, temperature, keys, block_rows)
    positives = pairs.positives() / temperature
    of_batch = pairs.log_sum_exp(temperature) - pairs.log_count  # [V n]
    constant = tf.stop_gradient(of_batch)
    running = constant
    if gamma < 1:
        before = tf.tile(log_means, [pairs.views])
        mixed = tf.math.reduce_logsumexp(
            [before + tf.math.log(1.0 - gamma), constant + tf.math.log(gamma)], axis=0
        )
        running = tf.where(before > UNSEEN, mixed, constant)
    # Its value is ln u, its gradient that of the batch's mean divided by u.
    log_u = running + tf.exp(constant - running) * (of_batch - constant)
    loss = tf.reduce_mean(log_u + pairs.log_count - positives)
    of_views = tf.reshape(running, [pairs.views, -1])
    mean = tf.reduce_logsumexp(of_views, axis=0) - tf.math.log(float(pairs.views))
    return loss, mean


class _Pairs:
    """Anchors, positives and negatives of the views of a batch.

    Attributes:
        views: Number of views V.
        anchors: `[V n, d]` float32, rows of length one; all images of view 0 first.
        candidates: The rows with which they are compared, in the same order.
        log_count: ln of the number of negatives of an anchor, scalar float32.
    """

    def __init__(self, z, temperature: float, keys, block_rows: int):
        self.anchors, self.views = _rows(z, temperature)
        self.candidates = self.anchors
        if keys is not None:
            self.candidates, key_views = _rows(keys, temperature)
            if key_views != self.views or not self.anchors.shape.is_compatible_with(
                self.candidates.shape
            ):
                raise UserError(
                    "keys must have the shape of the projections, got "
                    f"{key_views} views of {self.candidates.shape} rows in all, and "
                    f"{self.views} of {self.anchors.shape}."
                )
        self.block_rows = block_rows
        self.temperature = temperature

    @property
    def log_count(self):
        n = tf.shape(self.anchors)[0] // self.views
        # A batch of one image has no negatives; ln 1 keeps the loss finite.
        return tf.math.log(tf.cast(tf.maximum(self.views * (n - 1), 1), tf.float32))

    def positives(self) -> tf.Tensor:
        """Returns the similarity of each anchor to its positives, `[V - 1, V n]`."""
        parts = tf.split(self.candidates, self.views)
        return tf.stack(
            [
                tf.reduce_sum(
                    self.anchors * tf.concat(parts[shift:] + parts[:shift], axis=0),
                    axis=1,
                )
                for shift in range(1, self.views)
            ]
        )

    def log_sum_exp(self, temperature: float, negatives_only: bool = True):
        """Returns ln of the sum of exp(similarity / temperature), `[V n]`.

        The sum is over the negatives, or over all candidates but the anchor itself.
        """
        return blockwise.log_sum_exp(
            self.anchors,
            self.candidates,
            temperature,
            self.views if negatives_only else 1,
            self.block_rows,
        )


def _rows(z, temperature: float) -> tuple[tf.Tensor, int]:
    """Returns the normalised rows of all views, `[V n, d]`, and V."""
    if not temperature > 0:
        raise UserError(
            f"temperature must be above 0, got temperature={temperature}. "
            "The paper uses 0.5."
        )
    views = z if isinstance(z, (list, tuple)) else tf.unstack(z)
    views = [tf.convert_to_tensor(view) for view in views]
    shapes = [view.shape for view in views]
    equal = all(shape.is_compatible_with(shapes[0]) for shape in shapes)
    if len(views) < 2 or any(shape.rank != 2 for shape in shapes) or not equal:
        raise UserError(
            "The batches of projections must be [n, d] of the same shape, one for each "
            f"of at least two views, got {' and '.join(map(str, shapes)) or 'none'}."
        )
    return normalize(tf.concat(views, axis=0)), len(views)
