"""Text of a given form: JSON schema, regular expression, choice or grammar as a mask over the next token.

By llguidance: no dependencies, masks in microseconds, and errors that say what is wrong with a grammar.

Invariant: a matcher allows a stop token only where what has been written is complete, save where it is stuck (a limit
of the library, or an alphabet without the character that must come), which `complete` tells. What lies outside the
tokenizer's vocabulary and control tokens that end nothing are never allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from slm_fn.text.tokenizer import Tokenizer

_COMPACT = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}


class Grammar(NamedTuple):
    """A form as it is asked for.

    Attributes:
        kind: one of `KINDS`.
        source: json_schema: an object, or its JSON; regex: Rust's syntax, all of the text; choice: strings; grammar:
            Lark's syntax; json_object: nothing.
    """

    kind: str
    source: Any = None


class Constraint(NamedTuple):
    """A form that has been checked, for one tokenizer."""

    first: Any  # llguidance's state before the first token
    stops: Bool[Tensor, " V"]
    never: Bool[Tensor, " V"]

    def start(self) -> Matcher:
        """Nothing written yet."""
        return Matcher(self, self.first)


class Matcher(NamedTuple):
    """How far a text has come in its form; `advance` returns the next one."""

    constraint: Constraint
    state: Any  # llguidance's, never changed once it is here


def compile(tokenizer: Tokenizer, stop_ids: Collection[int], grammar: Grammar) -> Constraint:
    """Check a form before the first token.

    JSON is written without spaces between its parts: small models would go on with spaces for ever. A tokenizer of
    characters takes a form only if its alphabet has every character of the form's own text. A `format` is kept by its
    shape: 29 February passes in every year, second 60 in every minute, an e-mail address of any length.

    Raises:
        ValueError: the form is wrong, or has a keyword that is not supported, which it names; or llguidance is missing.

    Example:
        >>> from slm_fn.text import bpe
        >>> tokenizer = bpe.train(["yes no"], 264)
        >>> stop = tokenizer.special("<|end|>")
        >>> matcher = compile(tokenizer, [stop], Grammar("choice", ["yes", "no"])).start()
        >>> [tokenizer.decode([i]) for i in allow(matcher).nonzero().squeeze(-1).tolist()]
        ['n', 'y']
        >>> for token in tokenizer.encode("no"):
        ...     matcher = advance(matcher, token)
        >>> complete(matcher), allow(matcher).nonzero().tolist() == [[stop]]
        (True, True)
    """
    told, known = rules(grammar), _vocabulary(tokenizer, frozenset(stop_ids))
    library = _llguidance().LLMatcher
    _, problems = library.validate_grammar_with_warnings(told, known)
    if problems:
        raise ValueError(f"{grammar.kind}: {_line(problems[0])}")
    if tokenizer.kind == "char":
        _check_alphabet(tokenizer, grammar)
    stops, never = torch.zeros(2, tokenizer.vocab_size, dtype=torch.bool)
    stops[list(stop_ids)] = True
    never[list(tokenizer.specials.values())] = True
    first = library(known, told, log_level=0)
    # What compiles may still be too large for the library's limits; it says so at the first token.
    wrong = first.get_error()
    if wrong:
        raise ValueError(f"{grammar.kind}: {_line(wrong)}")
    return Constraint(first, stops, never & ~stops)


def allow(matcher: Matcher) -> Bool[Tensor, " V"]:
    """Which tokens of the tokenizer may come next; the stop tokens if the text is complete, or stuck."""
    packed = torch.frombuffer(bytearray(matcher.state.compute_bitmask()), dtype=torch.uint8)
    _, stops, never = matcher.constraint
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    allowed = bits.flatten()[: len(never)].bool() & ~never
    return allowed if bool(allowed.any()) else stops


def advance(matcher: Matcher, token: int) -> Matcher:
    """The matcher behind one more token, a stop token included."""
    state = matcher.state.deep_copy()
    state.consume_token(token)
    return matcher._replace(state=state)


def complete(matcher: Matcher) -> bool:
    """Whether what has been written, up to a stop token, has the form: a reply that ends elsewhere was cut."""
    return bool(matcher.state.is_accepting()) and not matcher.state.is_error()


def link(matchers: Sequence[Matcher | None]) -> Callable[[Tensor], Tensor]:
    """Forbid in each row what its matcher does not allow; None lets a row be. Comes before `sample.chain`."""
    rows = [row for row, matcher in enumerate(matchers) if matcher is not None]

    def mask(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        if not rows:
            return logits
        allowed = torch.zeros(len(rows), logits.shape[-1], dtype=torch.bool)
        for at, matcher in enumerate(matcher for matcher in matchers if matcher is not None):
            mine = allow(matcher)
            allowed[at, : len(mine)] = mine
        where = torch.tensor(rows, device=logits.device)
        masked = logits[where].masked_fill(~allowed.to(logits.device), float("-inf"))
        return logits.index_copy(0, where, masked)

    return mask


def _schema(source: Any) -> str:
    try:
        schema = json.loads(source) if isinstance(source, str) else source
        text = json.dumps(schema)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"must be an object, got {text[:40]}")
    if "x-guidance" in schema:  # would switch the checks off
        raise ValueError("Unimplemented keys: ['x-guidance']")
    return str(_llguidance().LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT))


def _object(source: Any) -> str:
    if source is not None:
        raise ValueError("takes no source")
    return _schema({"type": "object"})


def _regex(source: Any) -> str:
    if not isinstance(source, str) or not source:
        raise ValueError("must be a regular expression")
    return str(_llguidance().LLMatcher.grammar_from_regex(source))


def _choice(source: Any) -> str:
    choices = list(source) if isinstance(source, list | tuple) else []
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("must be a list of one string or more, none of them empty")
    for choice in choices:
        choice.encode()  # UnicodeEncodeError is a ValueError that names the place
    return _regex("|".join("".join(f"\\x{{{ord(c):X}}}" for c in choice) for choice in choices))


def _lark(source: Any) -> str:
    if not isinstance(source, str) or not source.strip():
        raise ValueError("must be a grammar in Lark's syntax")
    return str(_llguidance().LLMatcher.grammar_from_lark(source))


KINDS: dict[str, Callable[[Any], str]] = {
    "json_schema": _schema,
    "json_object": _object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}
"""The kinds of grammars, and how each becomes rules of the library."""


def rules(grammar: Grammar) -> str:
    """A grammar as the library's rules, not yet read by it.

    Raises:
        ValueError: no such kind, or the source is not of it.
    """
    if grammar.kind not in KINDS:
        raise ValueError(f"grammars are {', '.join(KINDS)}; got {grammar.kind}")
    try:
        return KINDS[grammar.kind](grammar.source)
    except ValueError as error:
        raise ValueError(f"{grammar.kind}: {_line(str(error))}") from None


def _line(text: str) -> str:
    """The first line of an error, and the one behind a picture that says what is wrong."""
    lines = text.strip().splitlines()
    return " ".join([lines[0], *(line for line in lines[1:] if line.startswith("error:"))])


def _check_alphabet(tokenizer: Tokenizer, grammar: Grammar) -> None:
    """A tokenizer without bytes cannot write what it has no characters for.

    Raises:
        ValueError: names the first that is missing.
    """
    sources = grammar.source if isinstance(grammar.source, list | tuple) else [grammar.source]
    own = "".join(each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in sources)
    wanted = own if grammar.kind not in ("json_schema", "json_object") else '{}":,' + own
    have = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    missing = next((c for c in wanted if c.encode() not in have and not c.isspace()), None)
    if missing is not None:
        raise ValueError(f"{grammar.kind}: this model's tokenizer has no character {missing!r}")


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> Any:
    """The library's form of a tokenizer, which takes a while to make: told by the bytes of tokens, so of any kind."""
    library = _llguidance()
    if not stop_ids:
        raise ValueError("a grammar needs a stop token, or its text could not end")
    names = {token: name.encode() for name, token in tokenizer.specials.items()}
    tokens = [names.get(i) or _bytes(tokenizer, i) for i in range(tokenizer.vocab_size)]
    told = _Vocabulary(min(stop_ids), None, tokens, sorted(names), tokenizer.encode_bytes)
    return library.LLTokenizer(library.TokenizerWrapper(told), eos_token=sorted(stop_ids))


class _Vocabulary(NamedTuple):
    """The attributes by which the library knows a tokenizer; a call encodes."""

    eos_token_id: int
    bos_token_id: int | None
    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    encode: Callable[[bytes], list[int]]

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text)


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.token_bytes(token)
    except ValueError:  # a vocabulary from elsewhere may have holes
        return b""


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError("constrained decoding needs llguidance: pip install 'slm-fn[json]'") from None
    return llguidance
