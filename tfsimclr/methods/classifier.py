"""Networks that end in a classifier: fine-tuned with labels or taught by another."""

import keras
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.errors import UserError
from tfsimclr.methods.base import Method


@keras.saving.register_keras_serializable("tfsimclr")
class Classifier(Method):
    """An encoder and a head that ends in logits, trained on labelled images.

    All of it is trained, on one view of each image, with batch statistics. Called on
    images in 0-1 it returns `[h, head_1, ..., logits]`.

        model = Classifier(encoder, heads.ProjectionHead(1, dim=10, bias=True), views)
        model.compile(optimizer=lars.LARS(0.06))
        model.fit(images, labels)

    Args: Those of `Method`.

    Source: Chen et al. 2020 (arXiv:2006.10029), section 2.
    """

    metric_names = ("top1",)

    def prepare_batch(self, images, labels):
        """Returns one view of each image, `[n, s, s, 3]`, and the labels."""
        if labels is None:
            raise UserError("A Classifier needs labels beside the images, got None.")
        return self.two_views(images, self.step)[0], labels

    def objective(self, view, labels):
        logits = self(view, training=True)[-1]
        right = tf.equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64))
        top1 = tf.reduce_mean(tf.cast(right, tf.float32))
        return losses.cross_entropy(logits, labels), {"top1": top1}


class Student(Method):
    """An encoder and a head that ends in logits, trained to answer as a teacher does.

    It sees no label: the teacher's logits on the very same view take their place.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.
        head: h -> `[h, head_1, ..., logits]`.
        views: As for `Method`.
        seed: Integer.
        teacher: Function: view `[n, s, s, 3]` in 0-1 -> logits `[n, classes]`. What it
            computes with is not part of this model, neither trained nor saved.
        temperature: As for `distillation`.
        **kwargs: Of `keras.Model`.

    Source: Chen et al. 2020 (arXiv:2006.10029), section 2 and equation 2.
    """

    metric_names = ("agreement",)

    def __init__(
        self,
        encoder,
        head,
        views,
        seed: int = 0,
        *,
        teacher,
        temperature: float = 0.5,
        **kwargs,
    ):
        if not temperature > 0:
            raise UserError(
                f"temperature must be above 0, got temperature={temperature}. SimCLRv2 "
                "has 0.1 for a student like its teacher and 1 for a smaller one."
            )
        super().__init__(encoder, head, views, seed, **kwargs)
        self.teacher = teacher
        self.temperature = temperature

    def prepare_batch(self, images, labels):
        """Returns one view of each image, and what the teacher says of it."""
        view = self.two_views(images, self.step)[0]
        return view, tf.stop_gradient(self.teacher(view))

    def objective(self, view, teacher_logits):
        logits = self(view, training=True)[-1]
        same = tf.equal(tf.argmax(logits, axis=1), tf.argmax(teacher_logits, axis=1))
        agreement = tf.reduce_mean(tf.cast(same, tf.float32))
        loss = losses.distillation(logits, teacher_logits, self.temperature)
        return loss, {"agreement": agreement}
