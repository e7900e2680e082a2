"""Structured output: a JSON schema, regular expression, choice or grammar as a mask of next tokens.

Compiled by llguidance, which has no dependencies, computes masks in microseconds and reports what
is wrong with a grammar.

Invariant: a matcher allows a stop token only where the text is complete, or where no other token is
possible (a limit of the library, or a character that the tokenizer lacks); `is_complete`
distinguishes the two. Ids beyond the vocabulary and special tokens that do not stop are never
allowed.
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
    """A grammar as requested, not yet compiled.

    Attributes:
        kind: one of `KINDS`.
        source: json_schema: an object, or its JSON; regex: in Rust's syntax, for the full text;
            choice: strings; grammar: in Lark's syntax; json_object: None.
    """

    kind: str
    source: Any = None


class Constraint(NamedTuple):
    """A grammar compiled for one tokenizer.

    Attributes:
        initial_state: llguidance's state before the first token.
        stop_mask: the stop tokens.
        forbidden_mask: special tokens that do not stop.
    """

    initial_state: Any
    stop_mask: Bool[Tensor, " V"]
    forbidden_mask: Bool[Tensor, " V"]

    def start(self) -> Matcher:
        """Returns the matcher of an empty text."""
        return Matcher(self, self.initial_state)


class Matcher(NamedTuple):
    """The state of a text within its grammar; `advance` returns the next one.

    Attributes:
        constraint: the compiled grammar.
        state: llguidance's state, which is never changed.
    """

    constraint: Constraint
    state: Any


def compile(
    tokenizer: Tokenizer,
    stop_ids: Collection[int],
    grammar: Grammar,
) -> Constraint:
    """Compiles a grammar for a tokenizer and checks it.

    JSON is generated without whitespace between its elements: small models would continue it
    endlessly. A character tokenizer supports a grammar only if its alphabet has every character of
    the grammar's own text. A `format` is checked by its pattern only: 29 February is valid in every
    year, second 60 in every minute, an e-mail address of any length.

    Args:
        tokenizer: whose tokens the text is made of.
        stop_ids: the tokens that may end it.
        grammar: what the text must match.

    Raises:
        ValueError: the grammar is invalid, or has a keyword that is not supported, which the
            message names; or llguidance is not installed.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> tokenizer = bpe.train(["yes no"], 264)
        >>> stop = tokenizer.special_id("<|end|>")
        >>> matcher = compile(tokenizer, [stop], Grammar("choice", ["yes", "no"])).start()
        >>> [tokenizer.decode([i]) for i in allowed_tokens(matcher).nonzero().flatten().tolist()]
        ['n', 'y']
        >>> for token in tokenizer.encode("no"):
        ...     matcher = advance(matcher, token)
        >>> is_complete(matcher), allowed_tokens(matcher).nonzero().tolist() == [[stop]]
        (True, True)
    """
    rules = to_llguidance(grammar)
    vocabulary = _compile_vocabulary(tokenizer, frozenset(stop_ids))
    matcher_class = _llguidance().LLMatcher
    _, problems = matcher_class.validate_grammar_with_warnings(rules, vocabulary)
    if problems:
        raise ValueError(f"{grammar.kind}: {_one_line(problems[0])}")
    if tokenizer.kind == "char":
        _check_alphabet(tokenizer, grammar)
    stop_mask, special_mask = torch.zeros(2, tokenizer.vocab_size, dtype=torch.bool)
    stop_mask[list(stop_ids)] = True
    special_mask[list(tokenizer.special_tokens.values())] = True
    initial_state = matcher_class(vocabulary, rules, log_level=0)
    # A grammar that compiles may still exceed the library's limits, as its state then reports.
    error = initial_state.get_error()
    if error:
        raise ValueError(f"{grammar.kind}: {_one_line(error)}")
    return Constraint(initial_state, stop_mask, special_mask & ~stop_mask)


def allowed_tokens(matcher: Matcher) -> Bool[Tensor, " V"]:
    """Returns the mask of tokens that may come next.

    These are the stop tokens if the text is complete, or if no other token is possible.
    """
    constraint = matcher.constraint
    packed = torch.frombuffer(bytearray(matcher.state.compute_bitmask()), dtype=torch.uint8)
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    vocab_size = len(constraint.forbidden_mask)
    allowed = bits.flatten()[:vocab_size].bool() & ~constraint.forbidden_mask
    return allowed if bool(allowed.any()) else constraint.stop_mask


def advance(matcher: Matcher, token: int) -> Matcher:
    """Returns the matcher after one more token, which may be a stop token."""
    state = matcher.state.deep_copy()
    state.consume_token(token)
    return matcher._replace(state=state)


def is_complete(matcher: Matcher) -> bool:
    """Whether the text, up to a stop token, matches the grammar; otherwise it was cut off."""
    return bool(matcher.state.is_accepting()) and not matcher.state.is_error()


def mask_logits(
    matchers: Sequence[Matcher | None], logits: Float[Tensor, "B V"]
) -> Float[Tensor, "B V"]:
    """Excludes the tokens that each row's matcher does not allow; to be called before sampling.

    Args:
        matchers: one per row; None leaves the row unchanged.
        logits: V may exceed the vocabulary; ids beyond it are excluded.
    """
    rows = [row for row, matcher in enumerate(matchers) if matcher is not None]
    if not rows:
        return logits
    allowed = torch.zeros(len(rows), logits.shape[-1], dtype=torch.bool)
    constrained = [matcher for matcher in matchers if matcher is not None]
    for i, matcher in enumerate(constrained):
        row_mask = allowed_tokens(matcher)
        allowed[i, : len(row_mask)] = row_mask
    index = torch.tensor(rows, device=logits.device)
    masked = logits[index].masked_fill(~allowed.to(logits.device), float("-inf"))
    return logits.index_copy(0, index, masked)


def _json_schema_rules(source: Any) -> str:
    try:
        schema = json.loads(source) if isinstance(source, str) else source
        text = json.dumps(schema)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise ValueError(f"must be an object, got {text[:40]}")
    if "x-guidance" in schema:  # would disable the checks
        raise ValueError("Unimplemented keys: ['x-guidance']")
    return str(_llguidance().LLMatcher.grammar_from_json_schema(text, overrides=_COMPACT))


def _json_object_rules(source: Any) -> str:
    if source is not None:
        raise ValueError("takes no source")
    return _json_schema_rules({"type": "object"})


def _regex_rules(source: Any) -> str:
    if not isinstance(source, str) or not source:
        raise ValueError("must be a regular expression")
    return str(_llguidance().LLMatcher.grammar_from_regex(source))


def _choice_rules(source: Any) -> str:
    choices = list(source) if isinstance(source, list | tuple) else []
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError("must be a list of one or more strings, none of them empty")
    for choice in choices:
        choice.encode()  # a UnicodeEncodeError is a ValueError that names the position
    return _regex_rules("|".join(_escape_regex(choice) for choice in choices))


def _escape_regex(text: str) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in text)


def _lark_rules(source: Any) -> str:
    if not isinstance(source, str) or not source.strip():
        raise ValueError("must be a grammar in Lark's syntax")
    return str(_llguidance().LLMatcher.grammar_from_lark(source))


KINDS: dict[str, Callable[[Any], str]] = {
    "json_schema": _json_schema_rules,
    "json_object": _json_object_rules,
    "regex": _regex_rules,
    "choice": _choice_rules,
    "grammar": _lark_rules,
}
"""The kinds of grammars, and how each becomes a grammar of llguidance."""


def to_llguidance(grammar: Grammar) -> str:
    """Returns a grammar in llguidance's format, not yet parsed by it.

    Raises:
        ValueError: there is no such kind, or the source is not of that kind.
    """
    if grammar.kind not in KINDS:
        raise ValueError(f"grammars are {', '.join(KINDS)}; got {grammar.kind}")
    try:
        return KINDS[grammar.kind](grammar.source)
    except ValueError as error:
        raise ValueError(f"{grammar.kind}: {_one_line(str(error))}") from None


def _one_line(text: str) -> str:
    """The first line of an error, and the line after an excerpt that says what is wrong."""
    first, *others = text.strip().splitlines()
    return " ".join([first, *(line for line in others if line.startswith("error:"))])


def _check_alphabet(tokenizer: Tokenizer, grammar: Grammar) -> None:
    """Checks that a character tokenizer has every character of a grammar's text.

    Raises:
        ValueError: names the first character that is missing.
    """
    source = grammar.source
    sources = source if isinstance(source, list | tuple) else [source]
    text = "".join(_source_text(each) for each in sources)
    if grammar.kind in ("json_schema", "json_object"):
        text = '{}":,' + text
    alphabet = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    for character in text:
        if not character.isspace() and character.encode() not in alphabet:
            raise ValueError(
                f"{grammar.kind}: this model's tokenizer has no character {character!r}"
            )


def _source_text(source: Any) -> str:
    return source if isinstance(source, str) else json.dumps(source, ensure_ascii=False)


@lru_cache(maxsize=8)
def _compile_vocabulary(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> Any:
    """llguidance's form of a tokenizer, which is slow to build.

    It is made from the bytes of the tokens, so any kind of tokenizer works.
    """
    library = _llguidance()
    if not stop_ids:
        raise ValueError("a grammar needs a stop token, or the text could not end")
    special_names = {token: name.encode() for name, token in tokenizer.special_tokens.items()}
    token_bytes = []
    for token in range(tokenizer.vocab_size):
        token_bytes.append(special_names.get(token) or _token_bytes(tokenizer, token))
    vocabulary = _Vocabulary(
        eos_token_id=min(stop_ids),
        bos_token_id=None,
        tokens=token_bytes,
        special_token_ids=sorted(special_names),
        encode=tokenizer.encode_bytes,
    )
    wrapper = library.TokenizerWrapper(vocabulary)
    return library.LLTokenizer(wrapper, eos_token=sorted(stop_ids))


class _Vocabulary(NamedTuple):
    """The attributes and the call by which llguidance reads a tokenizer."""

    eos_token_id: int
    bos_token_id: int | None
    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    encode: Callable[[bytes], list[int]]

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text)


def _token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    try:
        return tokenizer.token_bytes(token)
    except ValueError:  # an imported vocabulary may have unused ids
        return b""


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            "constrained decoding needs llguidance: pip install 'slm-fn[json]'"
        ) from None
    return llguidance
