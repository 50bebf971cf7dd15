"""YAML from outside, read from the parser's events: plain values only, nothing is constructed by tag.

PyYAML's `safe_load` runs no code either, but it recurses as deep as a file is nested, and merge keys of aliases grow as
a power. Here both are bounded while reading. Numbers such as `1e-4`, which YAML 1.1 calls text, stay text: whoever
wants a number reads it as one.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH, MAX_NODES, MAX_ALIASES = 24, 20_000, 64
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def values(text: str) -> Any:
    """The first document's value. Raises: ValueError in words."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _built(yaml.parse(text, Loader=loader))
    except (yaml.YAMLError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" (line {place.line + 1})" if place else ""
        raise ValueError(f"it is not YAML: {getattr(error, 'problem', None) or 'it can not be parsed'}{line}") from None


def _built(events: Any) -> Any:
    # Open lists and tables, the innermost last; a table waits for a value while it has a key.
    root: list[Any] = []
    open_nodes: list[list[Any]] = [[root, None, False]]  # [container, key, has a key]
    anchors: dict[str, Any] = {}
    num_nodes = num_aliases = 0
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            open_nodes.pop()
            continue
        if isinstance(event, yaml.DocumentEndEvent):
            break
        if not isinstance(event, yaml.NodeEvent):
            continue

        # The node: a node that stood before, or a new node.
        num_nodes += 1
        node: Any
        if isinstance(event, yaml.AliasEvent):
            num_aliases += 1
            if event.anchor not in anchors:
                raise ValueError(f"it has an alias *{event.anchor[:40]} of nothing")
            node = anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            node = _scalar(event)
        else:
            node = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        if num_nodes > MAX_NODES or num_aliases > MAX_ALIASES or len(open_nodes) > MAX_DEPTH:
            raise ValueError(
                f"it is too large; allowed: {MAX_NODES} values, {MAX_ALIASES} aliases, lists and tables "
                f"{MAX_DEPTH} deep"
            )
        if getattr(event, "anchor", None) and not isinstance(event, yaml.AliasEvent):
            anchors[event.anchor] = node
        _attach(open_nodes[-1], node)
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([node, None, False])
    return root[0] if root else None


def _attach(place: list[Any], node: Any) -> None:
    container, key, has_key = place
    if isinstance(container, list):
        container.append(node)
    elif not has_key:
        if isinstance(node, list | dict):
            raise ValueError("it has a list or a table as a key")
        place[1], place[2] = str(node), True
    else:
        container[key] = node
        place[1], place[2] = None, False


def _scalar(event: Any) -> Any:
    text = str(event.value)
    if not event.implicit[0] or event.style in ("'", '"', "|", ">"):
        return text
    lower = text.lower()
    if lower in _WORDS:
        return _WORDS[lower]
    if lower in ("", "~", "null"):
        return None
    if len(text) <= 40:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
    return text
