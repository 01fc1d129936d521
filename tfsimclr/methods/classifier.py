"""Networks that end in a classifier, trained on labels or by distillation."""

import keras
import tensorflow as tf

from tfsimclr import losses
from tfsimclr.distribution import replicas
from tfsimclr.errors import UserError
from tfsimclr.methods.base import Method
from tfsimclr.views import random_view


@keras.saving.register_keras_serializable("tfsimclr")
class Classifier(Method):
    """An encoder and a head that ends in logits, trained on labelled images.

    Encoder and head are both trained, on one view of each image, with batch statistics.
    Called on images in 0-1 it returns `[h, head_1, ..., logits]`. It is evaluated on
    the un-augmented images.

        model = Classifier(encoder, heads.ProjectionHead(1, dim=10, bias=True), views)
        model.compile(optimizer=lars.LARS(0.06))
        model.fit(images, labels)

    The arguments are those of `Method`.

    Source: Chen et al. 2020 (arXiv:2006.10029), section 2.
    """

    metric_names = ("top1",)
    takes_microbatches = False

    def prepare_batch(self, images, labels, step=None):
        """Returns one view of each image, `[n, s, s, 3]`, and the labels."""
        return super().prepare_batch(images, labels, step)[0], _required(labels)

    def prepare_test_batch(self, images, labels):
        """Returns the un-augmented images, `[n, s, s, 3]` in 0-1, and the labels."""
        view = random_view.plain_view(images, self.views.image_size)
        return view, _required(labels)

    def objective(self, view, labels, training=True):
        logits = self(view, training=training)[-1]
        if training:
            logits, labels = replicas.gather(logits), replicas.gather(labels)
        right = tf.equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64))
        top1 = tf.reduce_mean(tf.cast(right, tf.float32))
        return losses.cross_entropy(logits, labels), {"top1": top1}


def _required(labels):
    if labels is None:
        raise UserError("A Classifier needs labels beside the images, got None.")
    return labels


@keras.saving.register_keras_serializable("tfsimclr")
class Student(Method):
    """An encoder and a head that ends in logits, trained by distillation.

    It sees no labels: the targets are the teacher's logits on the same view. It is
    evaluated on the un-augmented images.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.
        head: h -> `[h, head_1, ..., logits]`.
        views: Makes a view of a batch, e.g. `augment.Views(image_size=96)`.
        seed: Integer.
        teacher: Function: view `[n, s, s, 3]` in 0-1 -> logits `[n, classes]`. Its
            network is neither trained nor saved with this model, so a loaded student
            has none (None): it predicts, and needs a teacher to be trained further.
        temperature: Temperature of `losses.distillation`, positive.
        **kwargs: Arguments of `keras.Model`.

    Source: Chen et al. 2020 (arXiv:2006.10029), section 2 and equation 2.
    """

    metric_names = ("agreement",)
    takes_microbatches = False

    def __init__(
        self,
        encoder,
        head,
        views,
        seed: int = 0,
        *,
        teacher=None,
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

    def prepare_batch(self, images, labels, step=None):
        """Returns one view of each image, and the teacher's logits of that view."""
        return self._with_answer(super().prepare_batch(images, labels, step)[0])

    def prepare_test_batch(self, images, labels):
        """Returns the un-augmented images, and the teacher's logits of them."""
        return self._with_answer(random_view.plain_view(images, self.views.image_size))

    def _with_answer(self, view):
        if self.teacher is None:
            raise UserError(
                "A Student needs a teacher to be trained or evaluated, got None. Set "
                "its `teacher` to a function from views to logits."
            )
        return view, tf.stop_gradient(self.teacher(view))

    def objective(self, view, teacher_logits, training=True):
        logits = self(view, training=training)[-1]
        if training:
            logits = replicas.gather(logits)
            teacher_logits = replicas.gather(teacher_logits)
        same = tf.equal(tf.argmax(logits, axis=1), tf.argmax(teacher_logits, axis=1))
        agreement = tf.reduce_mean(tf.cast(same, tf.float32))
        loss = losses.distillation(logits, teacher_logits, self.temperature)
        return loss, {"agreement": agreement}

    def get_config(self):
        return {**super().get_config(), "temperature": self.temperature}
