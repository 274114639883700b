"""The pretraining task of the built-in text encoder: predict the conditions of a sentence from its end token."""

import numpy as np

from wimfris.data.sentences import COLOURS, KINDS, RELATIONS, SHAPES, SIZES, SUPERLATIVES, Conditions, Description

SLOTS = {  # slot -> its classes, None first
    "size": (None, *SIZES),
    "colour": (None, *COLOURS),
    "shape": (None, *SHAPES),
    "superlative": (None, *SUPERLATIVES),
    "rank": (1, 2),
    "relation": (None, *RELATIONS),
    "landmark size": (None, *SIZES),
    "landmark colour": (None, *COLOURS),
    "landmark shape": (None, *SHAPES),
}


def slot_classes(description: Description) -> list[int]:
    """Return the description as one class number for each of the SLOTS."""
    stated: dict[str, object] = dict(description.attributes)
    stated |= {f"landmark {name}": value for name, value in description.landmark}
    stated |= {"superlative": description.superlative, "rank": description.rank, "relation": description.relation}
    return [values.index(stated.get(slot)) for slot, values in SLOTS.items()]


def random_description(rng: np.random.Generator) -> Description:
    """Return any description that the grammar allows, whether or not a scene has such a thing."""
    kind = rng.choice(KINDS)
    if kind == "superlative":
        return Description(
            _random_attributes(rng), superlative=str(rng.choice(list(SUPERLATIVES))), rank=int(rng.integers(1, 3))
        )
    if kind == "relation":
        return Description(
            _random_attributes(rng), relation=str(rng.choice(list(RELATIONS))), landmark=_random_attributes(rng)
        )
    return Description(_random_attributes(rng))


def _random_attributes(rng: np.random.Generator) -> Conditions:
    choices = {"colour": list(COLOURS), "shape": list(SHAPES), "size": list(SIZES)}
    return tuple((name, str(rng.choice(values))) for name, values in choices.items() if rng.random() < 0.5)
