"""Tokenizers: whole words for the built-in set, and those of CLIP and other published encoders for natural language.

The padding id is always 0.
"""

import gzip
import hashlib
import html
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ftfy
import numpy as np
from numpy.typing import NDArray

from wimfris.errors import UserError, one_line, suggestion

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerBase

PADDING_ID = 0
BYTE_PAIRS = "bpe_simple_vocab_16e6.txt.gz"  # from the repository openai/CLIP
# The files that decide how a published tokenizer reads a sentence, as far as a folder has them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
CLIP_VOCABULARY = 49408  # 256 bytes with and without end of word, the merges, start and end of text


class Tokenizer(Protocol):
    """The interface of a tokenizer to a text encoder."""

    @property
    def length(self) -> int:
        """Number of tokens of a sentence, padding included."""

    @property
    def eot_id(self) -> int:
        """Id of the end-of-text token, where the text encoder pools the sentence."""

    @property
    def sha256(self) -> str | None:
        """Hash of the files that it was read from; None for the words of the built-in set."""

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Return token ids (length,): start, the sentence, end of text, padding 0.

        A long sentence is truncated before its end-of-text token.
        """

    def count(self, sentence: str) -> int:
        """Return the number of tokens of the whole sentence, start and end included."""


class WordTokenizer:
    """A tokenizer with one token per word of a closed vocabulary.

    Ids are 0 padding, 1 end, 2 start, then the vocabulary in its order. Sentences are lowercased and split at white
    space, and punctuation around words is removed.
    """

    END_ID = 1  # not 2, which selects argmax pooling in transformers' CLIP
    START_ID = 2
    FIRST_WORD_ID = 3

    def __init__(self, vocabulary: Sequence[str], length: int) -> None:
        """Raises ValueError if the vocabulary has a repeated word, or one that `_words` would change."""
        _check_length(length)
        invalid = [word for word in vocabulary if _words(word) != [word]]
        if invalid or len(set(vocabulary)) != len(vocabulary):
            raise ValueError(
                f"the vocabulary must be distinct lowercase words without punctuation around them, got {invalid}"
            )
        self._length = length
        self._ids = {word: number for number, word in enumerate(vocabulary, start=self.FIRST_WORD_ID)}

    @property
    def length(self) -> int:
        return self._length

    @property
    def eot_id(self) -> int:
        return self.END_ID

    @property
    def sha256(self) -> None:
        return None

    @property
    def words(self) -> list[str]:
        """The vocabulary, in its order."""
        return list(self._ids)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: the words and three special tokens."""
        return self.FIRST_WORD_ID + len(self._ids)

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Return token ids (length,). Raises UserError for a word that is not in the vocabulary."""
        words = [self._id(word, sentence) for word in _words(sentence)]
        return _padded([self.START_ID, *words, self.END_ID], self._length)

    def count(self, sentence: str) -> int:
        """Return the number of tokens of the whole sentence, start and end included."""
        return len(_words(sentence)) + 2

    def _id(self, word: str, sentence: str) -> int:
        if word in self._ids:
            return self._ids[word]
        hint = suggestion(word, sorted(self._ids), "words")
        raise UserError(f"word {word!r} of the sentence {sentence!r} is not in the vocabulary; {hint}")


class _PublishedTokenizer:
    """What the tokenizers of published text encoders share."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", length: int, end_id: int, sha256: str | None) -> None:
        _check_length(length)
        self._tokenizer = tokenizer
        self.length = length
        self.eot_id = end_id
        self.sha256 = sha256

    def encode(self, sentence: str) -> NDArray[np.int64]:
        """Return token ids (length,)."""
        return _padded(self._ids(sentence), self.length)

    def count(self, sentence: str) -> int:
        """Return the number of tokens of the whole sentence, special ones included."""
        return len(self._ids(sentence))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files, as `from_folder` reads them."""
        self._tokenizer.save_pretrained(folder)

    def _ids(self, sentence: str) -> list[int]:
        ids: list[int] = self._tokenizer(sentence.strip())["input_ids"]
        return ids


class ClipTokenizer(_PublishedTokenizer):
    """CLIP's byte pairs, as OpenAI's code encodes them: padding is 0, a truncated sentence ends with end-of-text."""

    def __init__(self, tokenizer: "CLIPTokenizer", length: int, sha256: str | None = None) -> None:
        super().__init__(tokenizer, length, int(tokenizer.eos_token_id), sha256)

    @classmethod
    def from_folder(cls, folder: Path, length: int) -> "ClipTokenizer":
        """Load the tokenizer of a local snapshot of a CLIP model. Raises UserError if the folder holds none."""
        from transformers import CLIPTokenizer  # slow to import, and the built-in set does not need it

        folder = Path(folder)
        if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
            raise UserError(f"{folder}: no tokenizer.json or vocab.json; name the snapshot folder of a CLIP model")
        return cls(CLIPTokenizer.from_pretrained(folder, local_files_only=True), length, _files_hash(folder))

    @classmethod
    def beside(cls, weights: Path, length: int) -> "ClipTokenizer":
        """Load the tokenizer beside an original weight file: a snapshot's, or OpenAI's file of byte pairs.

        Raises UserError if the folder holds neither.
        """
        folder, pairs = Path(weights).parent, Path(weights).parent / BYTE_PAIRS
        if not pairs.is_file() or (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
            try:
                return cls.from_folder(folder, length)
            except UserError as error:
                raise UserError(f"{error}, or put CLIP's {BYTE_PAIRS} beside the weights") from None
        from transformers import CLIPTokenizer

        vocabulary, merges = _byte_pairs(pairs)
        return cls(CLIPTokenizer(vocab=vocabulary, merges=merges), length, _files_hash(folder, (BYTE_PAIRS,)))

    def _ids(self, sentence: str) -> list[int]:
        # CLIP's cleaning of text; transformers' tokenizer does the rest (white space and lower case).
        return super()._ids(html.unescape(html.unescape(ftfy.fix_text(sentence))))


class PretrainedTokenizer(_PublishedTokenizer):
    """The tokenizer of any other published text encoder, as transformers reads it."""

    @classmethod
    def from_folder(cls, folder: Path, length: int) -> "PretrainedTokenizer":
        """Load the tokenizer of a local folder, without a network and without running code that the folder holds.

        Raises UserError if there is none, or if it does not end every sentence with the same special token.
        """
        from transformers import AutoTokenizer

        if not (folder / "tokenizer.json").is_file():
            raise UserError(f"{folder}: no tokenizer.json; name an encoder that is published with one")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise UserError(
                f"{folder}: its tokenizer does not load ({one_line(error)[:200]}); fetch it again"
            ) from None
        ends = {tokenizer(text)["input_ids"][-1:][0] for text in ("a", "left of the b")}
        if len(ends) > 1 or not ends <= set(tokenizer.all_special_ids):
            raise UserError(
                f"{folder}: its tokenizer does not end a sentence with a special token, where the text encoder pools "
                "it; name another encoder"
            )
        return cls(tokenizer, length, ends.pop(), _files_hash(folder))


def _files_hash(folder: Path, names: Sequence[str] = TOKENIZER_FILES) -> str:
    """Return the SHA-256 of names and contents of the files, of those that the folder has."""
    digest = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            digest.update(f"{name}\0".encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def _byte_pairs(path: Path) -> tuple[dict[str, int], Any]:
    """Return vocabulary and merges of OpenAI's file, with CLIP's ids (openai/CLIP, simple_tokenizer.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            merges = file.read().split("\n")[1 : CLIP_VOCABULARY - 2 * 256 - 2 + 1]
    except (OSError, EOFError, UnicodeDecodeError):
        raise UserError(f"{path}: damaged; download it again from the repository openai/CLIP") from None
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [tuple(pair.split()) for pair in merges]  # transformers declares strings but takes pairs
    return {entry: number for number, entry in enumerate(entries)}, pairs


def _words(sentence: str) -> list[str]:
    stripped = (word.strip(string.punctuation) for word in sentence.lower().split())
    return [word for word in stripped if word]


def _check_length(length: int) -> None:
    if length < 2:
        raise ValueError(f"length must be at least 2, for the start and end tokens, got {length}")


def _padded(ids: Sequence[int], length: int) -> NDArray[np.int64]:
    """Return the ids padded, or truncated before the last one (end of text), to (length,)."""
    tokens = np.full(length, PADDING_ID, dtype=np.int64)
    shown = [*ids[: length - 1], ids[-1]] if len(ids) > length else ids
    tokens[: len(shown)] = shown
    return tokens
