"""From the tokens of one tokenizer to those of another."""

from __future__ import annotations

from typing import Any, Final

from hookbrew.errors import SurgeryError

SPECIAL: Final = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def mapped(old: Any, new: Any) -> dict[int, list[int]]:
    """For each id of a new tokenizer the ids of an old one that it is made of, ready for `respelt`.

    A special token by what it is for, a token that both have by its name, any other as the old tokenizer splits its
    text; what has no text there is the unknown token. The tokenizers are those of transformers, or have `get_vocab`,
    `convert_tokens_to_string` and `encode` as they do. SurgeryError for a token that is nothing in the old one.
    """
    before = old.get_vocab()
    roles: dict[str, int] = {}
    for name in SPECIAL:
        ours, theirs = getattr(new, f"{name}_token", None), getattr(old, f"{name}_token", None)
        if ours is not None and theirs in before:
            roles.setdefault(ours, before[theirs])
    unknown = before.get(getattr(old, "unk_token", None))
    found = {}
    for token, place in new.get_vocab().items():
        if token in roles:
            pieces = [roles[token]]
        elif token in before:
            pieces = [before[token]]
        else:
            text = new.convert_tokens_to_string([token])
            pieces = list(old.encode(text, add_special_tokens=False)) or ([] if unknown is None else [unknown])
        if not pieces:
            raise SurgeryError(f"token {token!r} has no piece in the old tokenizer, which has no unknown token")
        found[place] = pieces
    return dict(sorted(found.items()))
