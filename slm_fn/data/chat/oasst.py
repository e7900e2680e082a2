"""OASST: trees of messages, one a row; the best path of each tree, or its ranked replies as pairs.

Rows of a tree need not be consecutive: up to `MAX_OPEN_TREES` trees are held at a time, and a row
that comes later is counted. Ranks are the annotators' order among siblings, 0 the best
(arXiv 2304.07327). Where siblings are not ranked, the one with the longest continuation is taken,
the first of equals.

Invariant: memory holds `MAX_OPEN_TREES` trees and the ids of the closed ones, however many rows
there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slm_fn.data.chat.normalize_messages import (
    KEPT_PREFIX,
    UNKNOWN_LAYOUT,
    RejectedRowError,
    normalize,
    split_pair,
)
from slm_fn.data.chat.records import Conversation, PreferencePair

Row = Mapping[str, Any]
CountReason = Callable[[str], None]
"""Receives the reason for each row or tree that was dropped or repaired."""

MAX_OPEN_TREES = 1000
STOPPED_STATES = frozenset({"aborted_low_grade", "halted_by_moderator"})
REMOVED = f"{KEPT_PREFIX}a message of the tree was deleted or failed its review"
ORPHAN = f"{KEPT_PREFIX}a message of the tree answers none of it"
REPEATED = f"{KEPT_PREFIX}a message of the tree came twice"
OFF_PATH = f"{KEPT_PREFIX}a message of the tree is not on the best path"


class Node(NamedTuple):
    """One message and the message it answers; `rank` is infinite where it was not ranked."""

    row: Row
    parent: Node | None
    rank: float


class Tree(NamedTuple):
    """A tree of messages.

    Attributes:
        nodes: the messages, each before its replies, the root first.
        replies: the replies to each message by its id.
    """

    nodes: list[Node]
    replies: dict[str, list[Node]]


def conversations(
    rows: Iterable[Any], count_reason: CountReason, languages: Collection[str] = ()
) -> Iterator[Conversation]:
    """Yield the best path of each tree: from the root to the best ranked reply, down to its end.

    Args:
        count_reason: receives the reason for everything dropped or repaired.
        languages: the languages of the trees to keep; empty keeps all.

    Example:
        >>> row = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi"}
        >>> row["message_tree_id"] = "a"
        >>> reply = {**row, "message_id": "b", "parent_id": "a", "role": "assistant", "rank": 0}
        >>> reply["text"] = "Hello."
        >>> worse = {**reply, "message_id": "c", "text": "What?", "rank": 1}
        >>> for conversation in conversations([row, worse, reply], print):
        ...     print([message.content for message in conversation.messages])
        kept, but a message of the tree is not on the best path
        ['Hi', 'Hello.']
    """
    for tree_rows in _group_trees(rows, count_reason):
        try:
            tree, notes = build_tree(tree_rows, languages)
            path = _list_turns(_find_best_leaf(tree))
            normalized = normalize(path)
        except RejectedRowError as reason:
            count_reason(str(reason))
            continue
        notes += [OFF_PATH] * (len(tree.nodes) - len(path))
        for note in (*notes, *normalized.repairs):
            count_reason(note)
        yield Conversation(normalized.messages)


def preferences(
    rows: Iterable[Any], count_reason: CountReason, languages: Collection[str] = ()
) -> Iterator[PreferencePair]:
    """Yield each prompt's best reply against every reply ranked lower, after their shared path.

    Args:
        count_reason: receives the reason for everything dropped or repaired.
        languages: as for `conversations`.
    """
    for tree_rows in _group_trees(rows, count_reason):
        try:
            tree, notes = build_tree(tree_rows, languages)
        except RejectedRowError as reason:
            count_reason(str(reason))
            continue
        pairs = []
        for chosen, rejected in _rank_replies(tree):
            try:
                pairs.append(_make_pair(chosen, rejected))
            except RejectedRowError as reason:
                notes.append(f"{KEPT_PREFIX}of a pair, {reason}")
        if not pairs:
            notes = ["no two ranked replies to one prompt"]
        for note in notes:
            count_reason(note)
        yield from pairs


def build_tree(rows: Sequence[Row], languages: Collection[str] = ()) -> tuple[Tree, list[str]]:
    """Build the tree of some rows from its root, with a note for each message outside it.

    Args:
        languages: the languages to keep; empty keeps all.

    Raises:
        RejectedRowError: there is no root, it was deleted or failed its review, moderators stopped
            the tree, or it is in another language.
    """
    roots = [row for row in rows if not row.get("parent_id")]
    if not roots:
        raise RejectedRowError("a tree without its root")
    root = roots[0]
    _check_root(root, languages)
    remaining = [row for row in rows if not _is_removed(row)]
    # Of equal ids the root wins, then the first row.
    by_id = {row["message_id"]: row for row in reversed([root, *remaining])}
    rows_by_parent: dict[str, list[Row]] = {}
    for row in reversed(by_id.values()):
        if row is not root:
            rows_by_parent.setdefault(row.get("parent_id") or "", []).append(row)
    tree = _grow_tree(root, rows_by_parent)
    num_notes = {
        REMOVED: len(rows) - len(remaining),
        REPEATED: len(remaining) - len(by_id),
        ORPHAN: len(by_id) - len(tree.nodes),
    }
    notes: list[str] = []
    for note, num in num_notes.items():
        notes += [note] * num
    return tree, notes


def _group_trees(rows: Iterable[Any], count_reason: CountReason) -> Iterator[list[Row]]:
    """Yield the rows of each tree, in the order of the trees' first rows."""
    trees: OrderedDict[str, list[Row]] = OrderedDict()
    closed: set[str] = set()
    for row in rows:
        if not _is_message(row):
            count_reason(UNKNOWN_LAYOUT)
            continue
        tree_id = row.get("message_tree_id") or row["message_id"]
        if tree_id in closed:
            count_reason(
                "a message came after its tree was closed; sort the rows by message_tree_id"
            )
            continue
        trees.setdefault(tree_id, []).append(row)
        if len(trees) > MAX_OPEN_TREES:
            oldest, tree_rows = trees.popitem(last=False)
            closed.add(oldest)
            yield tree_rows
    yield from trees.values()


def _is_message(row: Any) -> bool:
    if not isinstance(row, Mapping):
        return False
    required = ("message_id", "role", "text")
    optional = ("message_tree_id", "parent_id", "tree_state")
    return all(isinstance(row.get(name), str) for name in required) and all(
        isinstance(row.get(name), str | None) for name in optional
    )


def _check_root(root: Row, languages: Collection[str]) -> None:
    if _is_removed(root):
        raise RejectedRowError("a tree whose root was deleted or failed its review")
    if root.get("tree_state") in STOPPED_STATES:
        raise RejectedRowError("a tree that moderators stopped")
    if languages and root.get("lang") not in languages:
        raise RejectedRowError("a tree in another language")


def _grow_tree(root: Row, rows_by_parent: Mapping[str, list[Row]]) -> Tree:
    tree = Tree([_make_node(root, None)], {})
    # The list grows while it is walked. A message is reached once, so a cycle of parents never is.
    for node in tree.nodes:
        message_id = node.row["message_id"]
        replies = [_make_node(row, node) for row in rows_by_parent.get(message_id, [])]
        tree.replies[message_id] = replies
        tree.nodes.extend(replies)
    return tree


def _make_node(row: Row, parent: Node | None) -> Node:
    rank = row.get("rank")
    is_ranked = isinstance(rank, int | float) and not math.isnan(rank)
    return Node(row, parent, float(rank or 0) if is_ranked else math.inf)


def _is_removed(row: Row) -> bool:
    return bool(row.get("deleted")) or row.get("review_result") is False


def _list_turns(node: Node | None) -> list[tuple[str, str]]:
    """Return the (role, text) of the messages from the root to a message."""
    turns = []
    while node is not None:
        turns.append((node.row["role"], node.row["text"]))
        node = node.parent
    return turns[::-1]


def _find_best_leaf(tree: Tree) -> Node:
    """Follow the best ranked reply from the root; of equals the longest continuation."""
    depths: dict[str, int] = {}
    for node in reversed(tree.nodes):
        message_id = node.row["message_id"]
        reply_depths = [depths[reply.row["message_id"]] for reply in tree.replies[message_id]]
        depths[message_id] = 1 + max(reply_depths, default=0)

    def preference(reply: Node) -> tuple[float, int]:
        return reply.rank, -depths[reply.row["message_id"]]

    leaf = tree.nodes[0]
    while replies := tree.replies[leaf.row["message_id"]]:
        leaf = min(replies, key=preference)
    return leaf


def _rank_replies(tree: Tree) -> Iterator[tuple[Node, Node]]:
    """Yield the best reply to each message with every one that is ranked strictly lower."""

    def rank(reply: Node) -> float:
        return reply.rank

    for replies in tree.replies.values():
        ranked = sorted((reply for reply in replies if reply.rank < math.inf), key=rank)
        for other in ranked[1:]:
            if other.rank > ranked[0].rank:
                yield ranked[0], other


def _make_pair(chosen: Node, rejected: Node) -> PreferencePair:
    chosen_messages = normalize(_list_turns(chosen)).messages
    rejected_messages = normalize(_list_turns(rejected)).messages
    return split_pair(chosen_messages, rejected_messages)
