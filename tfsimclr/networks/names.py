"""The names of a network's features, one per layer."""

from tfsimclr.errors import UserError


def feature_names(num_layers: int) -> tuple[str, ...]:
    """Returns ("h", "head_1", ..., "z") for a head of `num_layers` layers.

    Raises:
        UserError: If there is not at least one layer.
    """
    if num_layers < 1:
        raise UserError(f"num_layers must be at least 1, got num_layers={num_layers}.")
    return ("h", *(f"head_{i}" for i in range(1, num_layers)), "z")
