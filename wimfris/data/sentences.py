"""The sentences of the built-in data set: what they state, what they denote in a scene, and how they are worded.

A sentence states *conditions*: attributes of the target (size, colour, shape), and at most one superlative ("the second
largest ...") or relation to a landmark ("... left of the small blue cross"). Two rules make the set a fair test:

- The conditions denote exactly the target, and no proper subset of them does, so every word counts.
- The distances and sizes that decide a superlative or a relation differ by a visible margin.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np

Conditions = tuple[tuple[str, str], ...]  # sorted (attribute, value) pairs

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SIZES = ("small", "medium", "large")
KINDS = ("attribute", "superlative", "relation")
SUPERLATIVES = {  # word -> (attribute of a thing, sign: +1 for its largest value)
    "largest": ("radius", +1),
    "smallest": ("radius", -1),
    "leftmost": ("x", -1),
    "rightmost": ("x", +1),
    "topmost": ("y", -1),
    "bottommost": ("y", +1),
}
RELATIONS = {"left": ("x", -1), "right": ("x", +1), "above": ("y", -1), "below": ("y", +1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
MARGIN = {"radius": 1.3, "x": 4.0, "y": 4.0}  # smallest visible difference, in pixels of a 64-pixel canvas
CHANCES = {"colour": 0.5, "shape": 0.6, "size": 0.35}  # probability that a description states an attribute
SECOND = 0.25  # probability that a superlative is "second"
TRIES = 40  # random descriptions before `describe` gives up

WORDING = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "big"),
    "thing": ("thing", "object", "one"),
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "littlest"),
    "leftmost": ("leftmost", "furthest left"),
    "rightmost": ("rightmost", "furthest right"),
    "topmost": ("topmost", "uppermost", "highest"),
    "bottommost": ("bottommost", "lowest"),
    "left": ("left of", "to the left of", "that is left of"),
    "right": ("right of", "to the right of", "that is right of"),
    "above": ("above", "over", "that is above"),
    "below": ("below", "under", "that is below"),
}


def vocabulary() -> list[str]:
    """Return every word that a sentence of the built-in set may hold, sorted."""
    phrases = [*SHAPES, *COLOURS, "the", "second", *(phrase for synonyms in WORDING.values() for phrase in synonyms)]
    return sorted({word for phrase in phrases for word in phrase.split()})


@dataclass(frozen=True)
class Thing:
    """One object of a scene: its attributes, its centre (x, y) and its half extent (radius) in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Description:
    """The conditions of a sentence."""

    attributes: Conditions
    superlative: str | None = None
    rank: int = 1
    relation: str | None = None
    landmark: Conditions = ()

    @property
    def kind(self) -> str:
        return "superlative" if self.superlative else "relation" if self.relation else "attribute"


class World:
    """The things of a scene, indexed for fast look-up of descriptions. Sets of things are bit sets (bit i: thing i).

    `scale` is the size of the canvas over 64 pixels; it scales the margins.
    """

    def __init__(self, things: list[Thing], scale: float = 1.0) -> None:
        self.things = things
        self.everything = (1 << len(things)) - 1
        self.having: dict[tuple[str, str], int] = {}
        for i, thing in enumerate(things):
            for name in ("size", "colour", "shape"):
                condition = (name, getattr(thing, name))
                self.having[condition] = self.having.get(condition, 0) | 1 << i
        self.values = {key: [getattr(thing, key) for thing in things] for key in ("radius", "x", "y")}
        self.ascending = {
            key: sorted(range(len(things)), key=values.__getitem__) for key, values in self.values.items()
        }
        self.margin = {key: pixels * scale for key, pixels in MARGIN.items()}

    def matching(self, attributes: Conditions) -> int:
        """Return the things with all these attributes."""
        things = self.everything
        for condition in attributes:
            things &= self.having.get(condition, 0)
        return things

    def denotes(self, description: Description) -> int | None:
        """Return the things that meet the description, or None where it is not decided.

        It is undecided where a margin is too small, or where the landmark is not exactly one thing.
        """
        things = self.matching(description.attributes)
        if description.superlative:
            return self._ranked(things, description.superlative, description.rank)
        if description.relation:
            return self._related(things, description.relation, self.matching(description.landmark))
        return things

    def _ranked(self, things: int, superlative: str, rank: int) -> int | None:
        key, sign = SUPERLATIVES[superlative]
        values = self.values[key]
        ordered = [i for i in self.ascending[key][::-sign] if things >> i & 1][: rank + 1]
        if len(ordered) < rank:
            return 0
        if any(abs(values[a] - values[b]) < self.margin[key] for a, b in pairwise(ordered)):
            return None
        return 1 << ordered[rank - 1]

    def _related(self, things: int, relation: str, landmarks: int) -> int | None:
        if landmarks.bit_count() != 1:
            return None
        key, sign = RELATIONS[relation]
        values, landmark = self.values[key], landmarks.bit_length() - 1
        beyond = 0
        for i, value in enumerate(values):
            if i != landmark and things >> i & 1:
                offset = sign * (value - values[landmark])
                if abs(offset) < self.margin[key]:
                    return None
                beyond |= (offset > 0) << i
        return beyond

    @cached_property
    def landmarks(self) -> list[tuple[int, Conditions]]:
        """Every (thing, attributes) where the attributes name exactly that thing: the possible landmarks."""
        named = []
        for i, thing in enumerate(self.things):
            everything = tuple((name, getattr(thing, name)) for name in CHANCES)
            for count in range(1, len(everything) + 1):
                for attributes in combinations(everything, count):
                    if self.names_exactly(Description(attributes), i):
                        named.append((i, attributes))
        return named

    def names_exactly(self, description: Description, target: int) -> bool:
        """Return whether the description denotes the target alone and none of its proper subsets does.

        The same holds for its landmark.
        """
        alone = 1 << target
        if self.denotes(description) != alone:
            return False
        # An undecided subset (None) may denote the target alone, so the dropped condition may be superfluous.
        if any(self.denotes(subset) in (alone, None) for subset in proper_subsets(description)):
            return False
        if description.relation:
            return (self.matching(description.landmark).bit_length() - 1, description.landmark) in self.landmarks
        return True


def proper_subsets(description: Description) -> Iterator[Description]:
    """Yield every description with some but not all of the conditions.

    A superlative with its rank, or a relation with its landmark, is one condition.
    """
    for with_predicate in (True, False) if description.kind != "attribute" else (False,):
        for count in range(len(description.attributes) + 1):
            for attributes in combinations(description.attributes, count):
                subset = replace(description, attributes=attributes) if with_predicate else Description(attributes)
                if subset != description:
                    yield subset


def describe(world: World, target: int, kind: str, rng: np.random.Generator) -> Description | None:
    """Return a random description of this kind that names exactly the target, or None if none turned up."""
    for _ in range(TRIES):
        description = _propose(world, target, kind, rng)
        if description.kind == kind and world.names_exactly(description, target):
            return description
    return None


def to_sentence(description: Description, rng: np.random.Generator) -> str:
    """Return one wording of the description; `rng` picks the synonyms and whether it starts with "the"."""
    ordinal = ""
    if description.superlative:
        ordinal = ("second " if description.rank == 2 else "") + _synonym(description.superlative, rng)
    sentence = _noun_phrase(description.attributes, rng, ordinal)
    if description.relation:
        sentence += f" {_synonym(description.relation, rng)} the {_noun_phrase(description.landmark, rng)}"
    return ("the " if rng.random() < 0.5 else "") + sentence


def pick(choices: Collection[str], rng: np.random.Generator) -> str:
    """Return one of the choices at random."""
    return list(choices)[int(rng.integers(len(choices)))]


def _propose(world: World, target: int, kind: str, rng: np.random.Generator) -> Description:
    things, attributes = world.things, _some_attributes(world.things[target], rng)
    if kind == "superlative":
        return Description(attributes, superlative=pick(SUPERLATIVES, rng), rank=1 + int(rng.random() < SECOND))
    if kind == "relation" and world.landmarks:
        index, landmark = world.landmarks[int(rng.integers(len(world.landmarks)))]
        key, sign = RELATIONS[relation := pick(RELATIONS, rng)]
        if sign * (getattr(things[target], key) - getattr(things[index], key)) < 0:
            relation = OPPOSITE[relation]
        return Description(attributes, relation=relation, landmark=landmark)
    return Description(attributes)


def _some_attributes(thing: Thing, rng: np.random.Generator) -> Conditions:
    drawn = rng.random(3)
    return tuple((name, getattr(thing, name)) for name, u in zip(CHANCES, drawn, strict=True) if u < CHANCES[name])


def _noun_phrase(attributes: Conditions, rng: np.random.Generator, ordinal: str = "") -> str:
    stated = dict(attributes)
    size = _synonym(stated["size"], rng) if "size" in stated else ""
    words = [ordinal, size, stated.get("colour", ""), stated.get("shape") or _synonym("thing", rng)]
    return " ".join(word for word in words if word)


def _synonym(name: str, rng: np.random.Generator) -> str:
    return pick(WORDING[name], rng)
