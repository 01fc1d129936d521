"""The weights that a run starts from, with a copy in the run folder."""

import io
import pathlib

import numpy as np

from tfsimclr import files, resolve
from tfsimclr.distribution import workers
from tfsimclr.networks.initial_weights import InitialWeights
from tfsimclr.settings.config import Config
from tfsimclr.training import weight_files


def load(config: Config, workdir: pathlib.Path) -> InitialWeights | None:
    """Returns the weights that a run starts from, or None if they are random.

    The first call copies them into the run folder, so that a run is resumed and scored
    where the file of `--init` is not.

    Args:
        config: Resolved.
        workdir: The run folder.

    Raises:
        UserError: If there are no such weights.
        OSError: If the copy cannot be written.
    """
    weights = resolve.initial_weights(config)
    if weights is None:
        return None
    path = workdir / weight_files.COPY
    if workers.is_chief() and not path.exists():
        content = io.BytesIO()
        arrays: dict = weight_files.copy_arrays(weights)
        np.savez(content, **arrays)
        files.write_atomically(path, content.getvalue())
    return weights
