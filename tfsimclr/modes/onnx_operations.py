"""Operations that tf2onnx does not convert. Imported only to write an ONNX file."""

import numpy as np
from tf2onnx import utils
from tf2onnx.handler import tf_op


@tf_op("Erfc")
class Erfc:
    """erfc(x) = 1 - erf(x), in the GELU of ConvNeXt."""

    @classmethod
    def version_9(cls, ctx, node, **kwargs):
        """Replaces the operation, from ONNX's operator set 9 on."""
        shapes, dtypes = node.output_shapes, node.output_dtypes
        outputs = list(node.output)
        ctx.remove_node(node.name)
        erf = ctx.make_node("Erf", node.input[:1], shapes=shapes, dtypes=dtypes)
        value = np.array(1, utils.map_onnx_to_numpy_type(dtypes[0]))
        one = ctx.make_const(utils.make_name("one"), value)
        ctx.make_node(
            "Sub",
            [one.output[0], erf.output[0]],
            name=node.name,
            outputs=outputs,
            shapes=shapes,
            dtypes=dtypes,
        )
