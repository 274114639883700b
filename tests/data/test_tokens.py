"""Tokenizers: CLIP's tokens are OpenAI's, and words are start, words, end and padding."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wimfris.data.tokens import ClipTokenizer, Tokenizer, WordTokenizer
from wimfris.errors import UserError

ROOT = Path(__file__).parents[2]
CASES = json.loads((ROOT / "tests" / "golden" / "clip_tokens.json").read_text(encoding="utf-8"))
BYTE_PAIRS = ROOT.parent / "shared" / "golden" / "bpe_simple_vocab_16e6.txt.gz"
needs_byte_pairs = pytest.mark.skipif(not BYTE_PAIRS.is_file(), reason=f"CLIP's vocabulary not found at {BYTE_PAIRS}")
VOCABULARY = ["the", "left", "of", "small", "blue", "cross", "t-shirt"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's byte pairs in the two files of a model snapshot, with CLIP's ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + number) for number in range(len(hidden)))]
    with gzip.open(BYTE_PAIRS, "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    entries = [*letters, *(letter + "</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({entry: number for number, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder


@needs_byte_pairs
def test_clip_s_golden_tokens_are_reproduced(clip_folder: Path) -> None:
    tokenizers = {length: ClipTokenizer.from_folder(clip_folder, length) for length in {c["length"] for c in CASES}}
    assert len(CASES) == 28
    for case in CASES:
        tokens = tokenizers[case["length"]].encode(case["sentence"])
        assert tokens.tolist() == case["token_ids"], case["sentence"]


@needs_byte_pairs
def test_openai_s_file_of_byte_pairs_gives_the_same_tokens() -> None:
    tokenizer = ClipTokenizer.beside(BYTE_PAIRS.parent / "ViT-B-16.pt", 17)
    assert tokenizer.eot_id == 49407
    for case in CASES:
        if case["length"] == 17:
            assert tokenizer.encode(case["sentence"]).tolist() == case["token_ids"], case["sentence"]


@needs_byte_pairs
def test_clip_cleans_text_before_it_splits(clip_folder: Path) -> None:
    tokenizer = ClipTokenizer.from_folder(clip_folder, 17)
    assert tokenizer.eot_id == 49407

    def same(one: str, other: str) -> bool:
        return bool((tokenizer.encode(one) == tokenizer.encode(other)).all())

    assert same("man &amp;amp; dog", "man & dog")
    assert same("cafÃ© table", "café table")
    assert same("\tLEFT \n man ", "left man")
    assert tokenizer.encode("").tolist() == [49406, 49407] + [0] * 15


@needs_byte_pairs
def test_clip_tokenizers_of_any_length_agree(clip_folder: Path) -> None:
    sentence = "left " * 40
    whole = ClipTokenizer.from_folder(clip_folder, 77).encode(sentence).tolist()
    for length in (2, 5, 22):
        tokens = ClipTokenizer.from_folder(clip_folder, length).encode(sentence).tolist()
        assert tokens == [*whole[: length - 1], 49407]


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json or vocab\.json"):
        ClipTokenizer.from_folder(tmp_path, 17)


@given(st.lists(st.sampled_from(VOCABULARY), max_size=12), st.integers(2, 10))
def test_words_are_start_words_end_padding(words: Sequence[str], length: int) -> None:
    tokenizer: Tokenizer = WordTokenizer(VOCABULARY, length)
    tokens = tokenizer.encode(" ".join(words)).tolist()
    shown = min(len(words), length - 2)
    assert len(tokens) == length == tokenizer.length
    assert tokens[0] == WordTokenizer.START_ID
    assert [VOCABULARY[token - 3] for token in tokens[1 : 1 + shown]] == list(words[:shown])
    assert tokens[1 + shown] == tokenizer.eot_id == WordTokenizer.END_ID
    assert tokens[2 + shown :] == [0] * (length - shown - 2)


def test_case_space_and_punctuation_do_not_matter() -> None:
    tokenizer = WordTokenizer(VOCABULARY, 9)
    plain = tokenizer.encode("left of the small blue cross").tolist()
    assert tokenizer.encode("  Left of, the (small)\tBLUE cross !").tolist() == plain
    assert tokenizer.encode("T-shirt.").tolist()[1] == 3 + VOCABULARY.index("t-shirt")
    assert tokenizer.vocabulary_size == 3 + len(VOCABULARY)


def test_an_unknown_word_is_named_with_its_sentence_and_similar_words() -> None:
    tokenizer = WordTokenizer(VOCABULARY, 5)
    with pytest.raises(UserError, match=r"'crosss' of the sentence 'the crosss' .* did you mean cross\?"):
        tokenizer.encode("the crosss")
    with pytest.raises(UserError, match="the words are blue, cross, left"):
        tokenizer.encode("zzz")
    with pytest.raises(UserError, match="'zebra'"):  # although truncation would hide it
        tokenizer.encode("the left of small blue cross zebra")


@pytest.mark.parametrize("vocabulary", [["Left"], ["left", "left"], ["two words"], ["dot."], [""]])
def test_an_invalid_vocabulary_is_refused(vocabulary: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        WordTokenizer(vocabulary, 5)
    with pytest.raises(ValueError, match="length"):
        WordTokenizer(["left"], 1)
