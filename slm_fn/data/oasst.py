"""OASST: message trees written flat, one row a message; the best path of each tree, or its ranked replies as pairs.

Rows of a tree need not stand together: up to `OPEN` trees are held at a time, and a row that comes later is counted.
Ranks are the people's order among siblings, 0 the best (arXiv 2304.07327). Where siblings are not ranked, the one that
most turns follow is taken, the first of equals.

Invariant: memory holds `OPEN` trees and the ids of the closed ones, however many rows there are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from slm_fn.data.sources import Conversation, Preference
from slm_fn.data.turns import FOREIGN, KEPT, Refused, part, tidy

Count = Callable[[str], None]
OPEN = 1000
STOPPED = frozenset({"aborted_low_grade", "halted_by_moderator"})
REMOVED = f"{KEPT}a message of the tree was deleted or failed its review"
ORPHAN = f"{KEPT}a message of the tree answers none of it"
TWICE = f"{KEPT}a message of the tree came twice"
BESIDE = f"{KEPT}a message of the tree is not on the best path"


class Node(NamedTuple):
    """One message and the message it answers; `rank` is infinite where people did not rank it."""

    row: Mapping[str, Any]
    parent: Node | None
    rank: float


class Tree(NamedTuple):
    """Messages, those before their replies, the root first; and the replies to each by its id. No node knows both."""

    nodes: list[Node]
    replies: dict[str, list[Node]]


def conversations(rows: Iterable[Any], count: Count, languages: Collection[str] = ()) -> Iterator[Conversation]:
    """The best path of each tree: from the root, always the child ranked best, down to its last reply.

    Args:
        languages: keep trees whose root is in one of these; all where there are none.

    Example:
        >>> row = {"message_id": "a", "parent_id": None, "message_tree_id": "a", "role": "prompter", "text": "Hi"}
        >>> reply = {**row, "message_id": "b", "parent_id": "a", "role": "assistant", "text": "Hello.", "rank": 0}
        >>> worse = {**reply, "message_id": "c", "text": "What?", "rank": 1}
        >>> [conversation.messages[-1].content for conversation in conversations([row, worse, reply], print)]
        kept, but a message of the tree is not on the best path
        ['Hello.']
    """
    for tree in _trees(rows, count):
        try:
            grown, notes = plant(tree, languages)
            path = _turns(_best_leaf(grown))
            tidied = tidy(path)
        except Refused as reason:
            count(str(reason))
            continue
        for note in (*notes, *[BESIDE] * (len(grown.nodes) - len(path)), *tidied.repairs):
            count(note)
        yield Conversation(tidied.messages)


def preferences(rows: Iterable[Any], count: Count, languages: Collection[str] = ()) -> Iterator[Preference]:
    """For each user's turn with ranked replies the best against each ranked lower, behind the path that leads there.

    Args:
        languages: as for `conversations`.
    """
    for tree in _trees(rows, count):
        try:
            grown, notes = plant(tree, languages)
        except Refused as reason:
            count(str(reason))
            continue
        found = []
        for chosen, rejected in _ranked(grown):
            try:
                found.append(part(tidy(_turns(chosen)).messages, tidy(_turns(rejected)).messages))
            except Refused as reason:
                notes.append(f"{KEPT}of a pair, {reason}")
        for note in notes if found else ["no two ranked replies to one prompt"]:
            count(note)
        yield from found


def _trees(rows: Iterable[Any], count: Count) -> Iterator[list[Mapping[str, Any]]]:
    """The rows of each tree, in the order in which trees begin."""
    trees: OrderedDict[str, list[Mapping[str, Any]]] = OrderedDict()
    closed: set[str] = set()
    for row in rows:
        if not _is_message(row):
            count(FOREIGN)
            continue
        name = row.get("message_tree_id") or row["message_id"]
        if name in closed:
            count("a message came after its tree was closed; sort the rows by message_tree_id")
            continue
        trees.setdefault(name, []).append(row)
        if len(trees) > OPEN:
            first, tree = trees.popitem(last=False)
            closed.add(first)
            yield tree
    yield from trees.values()


def _is_message(row: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and all(isinstance(row.get(name), str) for name in ("message_id", "role", "text"))
        and all(isinstance(row.get(name), str | None) for name in ("message_tree_id", "parent_id", "tree_state"))
    )


def plant(rows: Sequence[Mapping[str, Any]], languages: Collection[str] = ()) -> tuple[Tree, list[str]]:
    """The rows of a tree grown from its root, and a note for each message that has no place in it.

    Raises:
        Refused: there is no root, it was deleted or failed its review, moderators stopped the tree, or it is in
            another language.
    """
    roots = [row for row in rows if not row.get("parent_id")]
    if not roots:
        raise Refused("a tree without its root")
    if _is_removed(roots[0]):
        raise Refused("a tree whose root was deleted or failed its review")
    if roots[0].get("tree_state") in STOPPED:
        raise Refused("a tree that moderators stopped")
    if languages and roots[0].get("lang") not in languages:
        raise Refused("a tree in another language")
    left = [row for row in rows if not _is_removed(row)]
    once = {row["message_id"]: row for row in reversed([roots[0], *left])}  # of equal ids the root, then the first
    replies: dict[str, list[Mapping[str, Any]]] = {}
    for row in reversed(once.values()):
        if row is not roots[0]:
            replies.setdefault(row.get("parent_id") or "", []).append(row)
    tree = Tree([_node(roots[0], None)], {})
    for node in tree.nodes:  # grows while it is walked: a message is reached once, so a ring of parents never is
        name = node.row["message_id"]
        tree.replies[name] = [_node(row, node) for row in replies.get(name, [])]
        tree.nodes.extend(tree.replies[name])
    lacking = {REMOVED: len(rows) - len(left), TWICE: len(left) - len(once), ORPHAN: len(once) - len(tree.nodes)}
    return tree, [note for note, num in lacking.items() for _ in range(num)]


def _node(row: Mapping[str, Any], parent: Node | None) -> Node:
    rank = row.get("rank")
    ranked = isinstance(rank, int | float) and not math.isnan(rank)
    return Node(row, parent, float(rank or 0) if ranked else math.inf)


def _turns(node: Node | None) -> list[tuple[str, str]]:
    """What was said from the root to a message."""
    said = []
    while node is not None:
        said.append((node.row["role"], node.row["text"]))
        node = node.parent
    return said[::-1]


def _is_removed(row: Mapping[str, Any]) -> bool:
    return bool(row.get("deleted")) or row.get("review_result") is False


def _best_leaf(tree: Tree) -> Node:
    """Always on with the reply ranked best; of equals with the one that most turns follow."""
    turns: dict[str, int] = {}
    for node in reversed(tree.nodes):
        name = node.row["message_id"]
        turns[name] = 1 + max((turns[reply.row["message_id"]] for reply in tree.replies[name]), default=0)
    leaf = tree.nodes[0]
    while replies := tree.replies[leaf.row["message_id"]]:
        leaf = min(replies, key=lambda reply: (reply.rank, -turns[reply.row["message_id"]]))
    return leaf


def _ranked(tree: Tree) -> Iterator[tuple[Node, Node]]:
    for replies in tree.replies.values():
        ordered = sorted((reply for reply in replies if reply.rank < math.inf), key=lambda reply: reply.rank)
        yield from ((ordered[0], other) for other in ordered[1:] if other.rank > ordered[0].rank)
