"""Sentences as token ids: words for the built-in set, CLIP's byte pairs for natural language. Padding is always 0."""

import difflib
import gzip
import html
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ftfy
import numpy as np
from numpy.typing import NDArray

from wimfris.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PADDING_ID = 0
BYTE_PAIRS = "bpe_simple_vocab_16e6.txt.gz"  # in the repository openai/CLIP
CLIP_VOCABULARY = 49408  # bytes, with and without the end of a word, merges, start and end of text


class Tokenizer(Protocol):
    """What a text encoder needs to know of its tokens."""

    @property
    def length(self) -> int:
        """Tokens a sentence, padding included."""

    @property
    def eot_id(self) -> int:
        """The id of the end-of-text token, at whose position the sentence's state is read."""

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Token ids (length,): start, the sentence, end of text, padding 0. A long sentence is cut before the end."""


class WordTokenizer:
    """One token a word of a closed vocabulary; ids are 0 padding, 1 end, 2 start, then the vocabulary in its order.

    Sentences are lowercased, split at white space, and freed of the punctuation around their words.
    """

    END_ID = 1  # not 2: transformers takes that for a mark of old CLIP configurations, and pools elsewhere
    START_ID = 2
    FIRST_WORD_ID = 3

    def __init__(self, vocabulary: Sequence[str], length: int) -> None:
        """`vocabulary` holds distinct words as `_words` leaves them; raises ValueError otherwise."""
        _check_length(length)
        foreign = [word for word in vocabulary if _words(word) != [word]]
        if foreign or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(f"a vocabulary is distinct, lowercased words without punctuation around them: {foreign}")
        self._length = length
        self._ids = {word: number for number, word in enumerate(vocabulary, start=self.FIRST_WORD_ID)}

    @property
    def length(self) -> int:
        return self._length

    @property
    def eot_id(self) -> int:
        return self.END_ID

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: the words and the three special tokens."""
        return self.FIRST_WORD_ID + len(self._ids)

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Token ids (length,). Raises UserError for a word that is not in the vocabulary."""
        words = [self._id(word, sentence) for word in _words(sentence)]
        return _padded([self.START_ID, *words, self.END_ID], self._length)

    def _id(self, word: str, sentence: str) -> int:
        if word in self._ids:
            return self._ids[word]
        close = difflib.get_close_matches(word, self._ids, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(sorted(self._ids))}"
        raise UserError(f"word {word!r} of the sentence {sentence!r} is not in the vocabulary: {hint}")


class ClipTokenizer:
    """CLIP's byte pairs as its own code yields them: padded with 0 (not with end-of-text), which is last when cut."""

    def __init__(self, tokenizer: "CLIPTokenizer", length: int) -> None:
        _check_length(length)
        self._tokenizer = tokenizer
        self._length = length

    @classmethod
    def from_folder(cls, folder: Path, length: int) -> "ClipTokenizer":
        """The tokenizer of a local snapshot of a CLIP model. Raises UserError where the folder holds none."""
        from transformers import CLIPTokenizer  # seconds to import, and not needed by the built-in set

        folder = Path(folder)
        if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
            raise UserError(f"{folder}: no tokenizer.json or vocab.json; give the snapshot folder of a CLIP model")
        return cls(CLIPTokenizer.from_pretrained(folder, local_files_only=True), length)

    @classmethod
    def beside(cls, weights: Path, length: int) -> "ClipTokenizer":
        """The tokenizer in the folder of an original weight file: that of a snapshot, or OpenAI's file of byte pairs.
        Raises UserError where the folder holds neither.
        """
        folder, pairs = Path(weights).parent, Path(weights).parent / BYTE_PAIRS
        if not pairs.is_file() or (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            try:
                return cls.from_folder(folder, length)
            except UserError as error:
                raise UserError(f"{error}, or put CLIP's {BYTE_PAIRS} beside the weights") from None
        from transformers import CLIPTokenizer

        vocabulary, merges = _byte_pairs(pairs)
        return cls(CLIPTokenizer(vocab=vocabulary, merges=merges), length)

    @property
    def length(self) -> int:
        return self._length

    @property
    def eot_id(self) -> int:
        return int(self._tokenizer.eos_token_id)

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Token ids (length,)."""
        # CLIP's own cleaning; transformers has the rest: white space to single spaces, lower case.
        text = html.unescape(html.unescape(ftfy.fix_text(sentence))).strip()
        return _padded(self._tokenizer(text)["input_ids"], self._length)


def _byte_pairs(path: Path) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges in OpenAI's file, ids as CLIP numbers them (openai/CLIP, simple_tokenizer.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = file.read().split("\n")[1 : CLIP_VOCABULARY - 2 * 256 - 2 + 1]
    except (OSError, EOFError, UnicodeDecodeError):
        raise UserError(f"{path}: damaged; fetch it again from the repository openai/CLIP") from None
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [tuple(pair.split()) for pair in merges]  # transformers' hints say strings, its tokenizers take pairs
    return {entry: number for number, entry in enumerate(entries)}, pairs


def _words(sentence: str) -> list[str]:
    stripped = (word.strip(string.punctuation) for word in sentence.lower().split())
    return [word for word in stripped if word]


def _check_length(length: int) -> None:
    if length < 2:
        raise ValueError(f"start and end need two tokens, the length is {length}")


def _padded(ids: Sequence[int], length: int) -> NDArray[np.int64]:
    """Ids (length,): cut with the last id (end of text) kept last, or padded."""
    tokens = np.full(length, PADDING_ID, dtype=np.int64)
    kept = [*ids[: length - 1], ids[-1]] if len(ids) > length else ids
    tokens[: len(kept)] = kept
    return tokens
