"""Every sentence names exactly one object and every word counts, by an independent reading of the sentences."""

import itertools
from typing import Any

import numpy as np
import pytest

from wimfris.data.scenes import RADII
from wimfris.data.sentences import MARGIN, Description, Thing, World, to_sentence, vocabulary
from wimfris.data.tokens import WordTokenizer

SHAPES = {"circle", "square", "triangle", "cross", "ring"}
COLOURS = {"red", "green", "blue", "yellow", "purple", "white"}
PHRASES = {  # phrase -> condition, longest phrases first
    "medium sized": "size medium",
    "furthest left": "most left",
    "furthest right": "most right",
    "that is left of": "beyond left",
    "to the left of": "beyond left",
    "left of": "beyond left",
    "that is right of": "beyond right",
    "to the right of": "beyond right",
    "right of": "beyond right",
    "that is above": "beyond above",
    "above": "beyond above",
    "over": "beyond above",
    "that is below": "beyond below",
    "below": "beyond below",
    "under": "beyond below",
    **dict.fromkeys(("small", "little", "tiny"), "size small"),
    "medium": "size medium",
    **dict.fromkeys(("large", "big"), "size large"),
    **dict.fromkeys(("thing", "object", "one"), "any thing"),
    **dict.fromkeys(("largest", "biggest"), "most large"),
    **dict.fromkeys(("smallest", "littlest"), "most small"),
    "leftmost": "most left",
    "rightmost": "most right",
    **dict.fromkeys(("topmost", "uppermost", "highest"), "most above"),
    **dict.fromkeys(("bottommost", "lowest"), "most below"),
    "second": "rank 2",
    **{shape: f"shape {shape}" for shape in SHAPES},
    **{colour: f"colour {colour}" for colour in COLOURS},
}
AXES = {
    "left": ("x", -1),
    "right": ("x", 1),
    "above": ("y", -1),
    "below": ("y", 1),
    "large": ("radius", 1),
    "small": ("radius", -1),
}
Meaning = list[tuple[str, str]]


def read(sentence: str) -> tuple[Meaning, Meaning | None]:
    """Return the conditions that a sentence states of its target, and of its landmark if it has one."""
    parts: list[Meaning] = [[]]
    words = sentence.split()
    while words:
        for length in (4, 3, 2, 1):
            phrase = " ".join(words[:length])
            if len(words) >= length and phrase in PHRASES:
                kind, value = PHRASES[phrase].split()
                parts[-1].append((kind, value))
                if kind == "beyond":
                    parts.append([])
                words = words[length:]
                break
        else:
            assert words[0] == "the", f"{sentence}: {words[0]}"
            words = words[1:]
    assert len(parts) <= 2
    return parts[0], parts[1] if len(parts) == 2 else None


def having(things: list[Thing], meaning: Meaning) -> list[Thing]:
    stated = [(kind, value) for kind, value in meaning if kind in ("size", "colour", "shape")]
    return [thing for thing in things if all(getattr(thing, kind) == value for kind, value in stated)]


def denoted(things: list[Thing], meaning: Meaning, landmark: Meaning | None) -> list[Thing]:
    """Return every thing that meets the conditions."""
    candidates, stated = having(things, meaning), dict(meaning)
    if "most" in stated:
        key, sign = AXES[stated["most"]]
        ordered = sorted(candidates, key=lambda thing: -sign * getattr(thing, key))
        rank = int(stated.get("rank", 1))
        return ordered[rank - 1 : rank]
    if "beyond" in stated:
        assert landmark is not None
        marks = having(things, landmark)
        assert len(marks) == 1, "the landmark must be one thing"
        key, sign = AXES[stated["beyond"]]
        return [t for t in candidates if t is not marks[0] and sign * (getattr(t, key) - getattr(marks[0], key)) > 0]
    return candidates


def weaker(meaning: Meaning) -> list[Meaning]:
    """Return every proper subset of the conditions. A rank belongs to its superlative."""
    units = [part for part in meaning if part[0] not in ("rank", "any")]
    rank = [part for part in meaning if part[0] == "rank"]
    subsets = []
    for count in range(len(units)):
        for subset in itertools.combinations(units, count):
            subsets.append([*subset, *(rank if any(kind == "most" for kind, _ in subset) else [])])
    return subsets


@pytest.mark.slow
def test_a_sentence_names_its_target_and_no_part_of_it_does(every: list[Any]) -> None:
    assert len(every) > 1000
    for split, scene, target, _, sentence in every:
        meaning, landmark = read(sentence)
        where = f"{split}: {sentence!r}"
        assert denoted(scene.things, meaning, landmark) == [scene.things[target]], where
        for part in weaker(meaning):
            mark = landmark if any(kind == "beyond" for kind, _ in part) else None
            assert denoted(scene.things, part, mark) != [scene.things[target]], f"{where}: {part} is enough"
        if landmark is not None:
            marks = having(scene.things, landmark)
            for part in weaker(landmark):
                assert having(scene.things, part) != marks, f"{where}: landmark {part} is enough"


@pytest.mark.slow
def test_a_sentence_states_its_description(every: list[Any]) -> None:
    for _, _, _, description, sentence in every:
        meaning, landmark = read(sentence)
        stated = dict(meaning)
        assert {k: v for k, v in stated.items() if k in ("size", "colour", "shape")} == dict(description.attributes)
        assert (stated.get("beyond"), int(stated.get("rank", 1))) == (description.relation, description.rank)
        assert dict(part for part in landmark or [] if part[0] != "any") == dict(description.landmark)
        kinds = {"most": "superlative", "beyond": "relation"}
        assert description.kind == next((kinds[kind] for kind, _ in meaning if kind in kinds), "attribute")


@pytest.mark.slow
def test_the_deciding_differences_are_visible(every: list[Any]) -> None:
    """The first and second of a superlative differ by a margin, and so do the things of a relation and its landmark."""
    for _, scene, target, _, sentence in every:
        meaning, landmark = read(sentence)
        stated, thing = dict(meaning), scene.things[target]
        others = [other for other in having(scene.things, meaning) if other is not thing]
        if "most" in stated:
            key, _ = AXES[stated["most"]]
            margin = min(abs(getattr(thing, key) - getattr(other, key)) for other in others)
            assert margin >= MARGIN[key], sentence
        if "beyond" in stated and landmark is not None:
            key, _ = AXES[stated["beyond"]]
            (mark,) = having(scene.things, landmark)
            for other in [thing, *others]:
                if other is not mark:
                    assert abs(getattr(other, key) - getattr(mark, key)) >= MARGIN[key], sentence


def test_size_words_are_apart() -> None:
    for (_, most), (least, _) in itertools.pairwise(RADII.values()):
        assert least - most > 1


def test_an_ambiguous_or_superfluous_description_is_refused() -> None:
    red = [Thing("circle", "red", "small", x, 20.0, 4.5) for x in (10.0, 30.0)]
    blue = Thing("circle", "blue", "small", 50.0, 20.0, 4.5)
    world = World([*red, blue])
    assert world.names_exactly(Description((("colour", "blue"),)), 2)
    assert not world.names_exactly(Description((("colour", "red"),)), 0)
    assert not world.names_exactly(Description((("colour", "blue"), ("shape", "circle"))), 2), (
        "the shape is superfluous"
    )
    assert not world.names_exactly(Description((), superlative="topmost"), 0), "the margin is too small"
    left_of_blue = Description((), relation="left", landmark=(("colour", "blue"),))
    assert not world.names_exactly(left_of_blue, 0), "two red things are left of it"
    assert world.names_exactly(Description((), superlative="leftmost", rank=2), 1)
    assert world.names_exactly(Description((), superlative="leftmost"), 0)
    assert not world.names_exactly(Description((("colour", "red"),), superlative="leftmost"), 0), (
        "the colour is superfluous"
    )


@pytest.mark.slow
def test_the_vocabulary_is_that_of_the_sentences(every: list[Any]) -> None:
    words = {word for *_, text in every for word in text.split()}
    assert words == set(vocabulary()), "every word of it occurs, and no other"
    tokenizer = WordTokenizer(vocabulary(), 16)
    longest = max((text for *_, text in every), key=lambda text: len(text.split()))
    assert (tokenizer.encode(longest) == tokenizer.eot_id).sum() == 1
    assert len(longest.split()) + 2 <= 16, "no sentence is truncated at the tokens of scale tiny"


def test_the_longest_possible_sentence_is_not_truncated() -> None:
    phrase = Description(
        (("colour", "yellow"), ("shape", "triangle"), ("size", "medium")),
        relation="left",
        landmark=(("colour", "purple"), ("shape", "triangle"), ("size", "medium")),
    )
    lengths = {len(to_sentence(phrase, np.random.default_rng(seed)).split()) for seed in range(300)}
    assert max(lengths) + 2 <= 16
