"""Which layers of an encoder hold an adapter."""


def placed(layers: tuple[int, ...], placement: str, depth: int) -> tuple[int, ...]:
    """Return the layers with an adapter, of an encoder with `depth` layers.

    They are `layers` themselves (spread), or as many consecutive layers at the start (early), in the middle (middle) or
    at the end (late) of the encoder.
    """
    first = {"early": 0, "middle": (depth - len(layers)) // 2, "late": depth - len(layers)}
    if placement == "spread":
        return layers
    return tuple(range(first[placement], first[placement] + len(layers)))
