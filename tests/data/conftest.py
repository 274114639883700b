"""Scenes of every split of the built-in data set, at the size of scale tiny."""

import pytest

from wimfris.data.scenes import Scene, draw_scene
from wimfris.data.sentences import Description

SIDE = 64
COUNTS = {"train": 150, "val": 80, "testA": 80, "testB": 80, "tune": 80}


@pytest.fixture(scope="session")
def drawn() -> dict[str, list[Scene]]:
    """Scenes by split."""
    return {split: [draw_scene(split, k, SIDE) for k in range(count)] for split, count in COUNTS.items()}


@pytest.fixture(scope="session")
def every(drawn: dict[str, list[Scene]]) -> list[tuple[str, Scene, int, Description, str]]:
    """(split, scene, target, description, sentence) of each sentence."""
    return [
        (split, scene, target, description, text)
        for split, all_scenes in drawn.items()
        for scene in all_scenes
        for target, sentences in scene.refs
        for description, text in sentences
    ]
