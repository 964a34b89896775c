"""Tokenizers: one thin wrapper over `tokenizers`, and a trainer for corpora of our own.

A run directory carries its `tokenizer.json`, so a tokenizer is always loaded from a file: an HF folder's
(Llama 3, SmolLM2, Vicuna's fast one) or one trained here for models that start from random weights.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from spatialllm_jax.errors import UserError

FILE = "tokenizer.json"
# Llama 3's special tokens, in the order of its vocabulary; trained tokenizers carry the same ones.
LLAMA3_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                   "<|eot_id|>")
_CACHED_TEXTS = 1 << 16
_CACHED_LENGTH = 1024       # characters
# Line breaks, words with the space before them, single digits, single punctuation marks.
_PIECES = r" ?\n+| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+"


class Tokenizer:
    """Text <-> ids, with the specials looked up by name.

    Encoding never adds special tokens by itself: chat templates place them (`data.chat`).
    Picklable, so that Grain workers can carry it.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self._encode = functools.lru_cache(_CACHED_TEXTS)(self._encode_uncached)

    def __reduce__(self):
        return Tokenizer, (self.backend,)

    def _encode_uncached(self, text: str) -> tuple[int, ...]:
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text`; special tokens written in it are recognised. Short repeated texts are remembered."""
        return self._encode(text) if len(text) <= _CACHED_LENGTH else self._encode_uncached(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out, without surrounding white space."""
        return self.backend.decode(list(ids), skip_special_tokens=True).strip()

    @property
    def vocab_size(self) -> int:
        """Number of ids in use, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def has(self, token: str) -> bool:
        """Whether `token` is one id of the vocabulary."""
        return self.backend.token_to_id(token) is not None

    def id(self, token: str) -> int:
        """Id of a single token. Raises UserError when the vocabulary has none."""
        result = self.backend.token_to_id(token)
        if result is None:
            raise UserError(
                f"the tokenizer has no token {token!r}; choose the chat template that belongs to it")
        return result

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.backend.save(str(Path(folder) / FILE))


def load(path: str | Path) -> Tokenizer:
    """Loads `tokenizer.json` from a folder or a file. Raises UserError when it is missing or malformed."""
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    if not file.exists():
        raise UserError(f"no {FILE} at {path}; give a folder that holds one (an HF model folder or a run)")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises plain Exception for anything malformed
        raise UserError(f"{file} is not a tokenizers file: {error}") from None


def train(texts: Iterable[str], vocab_size: int = 4096) -> Tokenizer:
    """A byte-level BPE over `texts` with Llama 3's specials; every frequent word becomes one token.

    Every text starts with a space mark, so that a word is the same token at the start of an answer and
    inside a question: with a vocabulary this small that halves what must be learnt. Digits stay
    single. Any text can be encoded (bytes are the fallback).
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(LLAMA3_SPECIALS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    # Template words and line breaks must be whole tokens whatever the corpus holds.
    frame = ("system", "user", "assistant", "\n\n", "\n") * 2
    backend.train_from_iterator((text for part in (frame, texts) for text in part), trainer)
    return Tokenizer(backend)
