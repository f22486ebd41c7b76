"""Token ids as text that people can read and tables can hold."""

import re
from functools import lru_cache
from typing import Any

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes every byte as one printable character: printable Latin-1 as itself,
    the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + index): byte for index, byte in enumerate(rest)}


def bytes_as_text(raw: bytes) -> str:
    """UTF-8 where it is whole, `<0xE2>` for every byte that is only a fragment of a character."""
    text = raw.decode("utf-8", errors="surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether a tokenizer's pieces are byte-level BPE characters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Its decoder alone: the whole tokenizer as JSON takes as long as a forward pass.
    return backend is not None and "ByteLevel" in repr(backend.decoder)


def token_texts(tokenizer: Any, token_ids: list[int]) -> list[str]:
    """Each token as decoded text with its space (`" the"`); special tokens by their name; byte
    fragments as `<0xE2>`."""
    special, byte_level = special_ids(tokenizer), is_byte_level(tokenizer)
    added = getattr(tokenizer, "added_tokens_decoder", {})
    table, texts = _byte_of_character(), []
    for token_id, piece in zip(token_ids, tokenizer.convert_ids_to_tokens(token_ids), strict=True):
        if piece is None:
            texts.append(f"<id {token_id}>")
        elif token_id in special:
            texts.append(piece)
        # Added tokens are plain text, not of the byte alphabet.
        elif byte_level and token_id not in added and all(c in table for c in piece):
            texts.append(bytes_as_text(bytes(table[c] for c in piece)))
        elif match := _BYTE_PIECE.fullmatch(piece):
            texts.append(bytes_as_text(bytes.fromhex(match[1])))
        else:
            texts.append(piece.replace("▁", " "))
    return texts


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of BOS, EOS, padding and template tokens, which swallow attention; none without a
    tokenizer. The token for unknown characters stands for text, so it is not among them unless it
    serves as one of the others too."""
    if tokenizer is None:
        return set()
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in _ROLES}
    return found - ({getattr(tokenizer, "unk_token_id", None)} - others)


_ROLES = ("bos", "eos", "pad", "sep", "cls", "mask")
