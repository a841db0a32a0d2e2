"""Places the nodes of a directed graph in layers, top to bottom, with few crossings. Pure.

1. Edges that close a loop are turned around, so that every edge leads down.
2. A node's layer is the longest way to it.
3. An edge over several layers bends at a point in each, which takes a place like a node.
4. Each layer is ordered by where its neighbours are, some times down and up.
5. Nodes move to the middle of their neighbours, as far as the order and the gaps allow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

NODE_HEIGHT = 34.0
#: Between two nodes of a layer.
NODE_GAP = 28.0
#: Between two layers: room for edges to cross it at a readable angle.
LAYER_GAP = 46.0
#: Room that a bend takes in its layer.
BEND_WIDTH = 12.0
#: Between the points of a node where edges begin or end, at most.
PORT_GAP = 16.0
#: Down and up again, once each; more rounds hardly change a graph that people look at.
ROUNDS = 8

#: Begins the name of a bend; no node has it in its name.
_BEND = "\0"

Point = tuple[float, float]
_Edge = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything is."""

    width: float
    height: float
    #: The middle of each node.
    nodes: Mapping[str, Point]
    #: The points of each edge, from its source to its target; all lead straight up or down.
    edges: Mapping[_Edge, Sequence[Point]]


def layered(widths: Mapping[str, float], edges: Iterable[_Edge]) -> Layout:
    """Return the places of nodes, given by their widths, and of edges between two different nodes."""
    edges = list(dict.fromkeys(edges))
    backward = _backward_edges(list(widths), edges)
    chains, layers, room = _layers(widths, edges, backward)
    above, below = _neighbours(chains.values())
    for _ in range(ROUNDS):
        _order(layers, above)
        _order(layers[::-1], below)
    middles = _middles(layers, room, above, below)
    return _drawn(chains, layers, room, middles, backward)


def _backward_edges(nodes: Sequence[str], edges: Sequence[_Edge]) -> set[_Edge]:
    """Return the edges that lead back to a node on the way from where the search began."""
    after: defaultdict[str, list[str]] = defaultdict(list)
    for source, target in edges:
        after[source].append(target)
    entered = {target for _, target in edges}
    backward: set[_Edge] = set()
    on_the_way: set[str] = set()
    seen: set[str] = set()
    # Nodes that nothing leads to come first: a loop is then cut where it closes.
    for root in sorted(nodes, key=lambda node: node in entered):
        pending: list[tuple[str, Iterator[str]]] = []
        if root not in seen:
            pending.append((root, iter(after[root])))
            seen.add(root)
            on_the_way.add(root)
        while pending:
            node, targets = pending[-1]
            target = next(targets, None)
            if target is None:
                pending.pop()
                on_the_way.discard(node)
            elif target in on_the_way:
                backward.add((node, target))
            elif target not in seen:
                pending.append((target, iter(after[target])))
                seen.add(target)
                on_the_way.add(target)
    return backward


def _layers(
    widths: Mapping[str, float], edges: Sequence[_Edge], backward: set[_Edge]
) -> tuple[dict[_Edge, list[str]], list[list[str]], dict[str, float]]:
    """Return the chain of places that each edge goes through, the layers, and the room of each place."""
    downward = {(s, t): (t, s) if (s, t) in backward else (s, t) for s, t in edges}
    rank = _ranks(list(widths), list(downward.values()))
    layers: list[list[str]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    room = dict(widths)
    for node in widths:
        layers[rank[node]].append(node)
    chains: dict[_Edge, list[str]] = {}
    for number, (edge, (upper, lower)) in enumerate(downward.items()):
        bends: list[str] = []
        for layer in range(rank[upper] + 1, rank[lower]):
            bend = f"{_BEND}{number}:{layer}"
            bends.append(bend)
            layers[layer].append(bend)
            room[bend] = BEND_WIDTH
        chains[edge] = [upper, *bends, lower]
    return chains, layers, room


def _ranks(nodes: Sequence[str], edges: Sequence[_Edge]) -> dict[str, int]:
    """Return the length of the longest way to each node of a graph without loops."""
    waiting_for = dict.fromkeys(nodes, 0)
    after: defaultdict[str, list[str]] = defaultdict(list)
    for upper, lower in edges:
        waiting_for[lower] += 1
        after[upper].append(lower)
    rank = dict.fromkeys(nodes, 0)
    ready = [node for node in nodes if not waiting_for[node]]
    for node in ready:
        for lower in after[node]:
            rank[lower] = max(rank[lower], rank[node] + 1)
            waiting_for[lower] -= 1
            if not waiting_for[lower]:
                ready.append(lower)
    return rank


_Neighbours = Mapping[str, Sequence[str]]


def _neighbours(chains: Iterable[Sequence[str]]) -> tuple[_Neighbours, _Neighbours]:
    above: defaultdict[str, list[str]] = defaultdict(list)
    below: defaultdict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for upper, lower in pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    return above, below


def _order(layers: Sequence[list[str]], fixed: _Neighbours) -> None:
    """Sort each layer by the mean place of the neighbours in the layer before it."""
    for before, layer in pairwise(layers):
        places = {name: place for place, name in enumerate(before)}
        own = {name: float(place) for place, name in enumerate(layer)}
        layer.sort(key=lambda name: _mean(fixed.get(name, ()), places.__getitem__, own[name]))


def _mean(names: Sequence[str], value: Callable[[str], float], otherwise: float) -> float:
    return sum(map(value, names)) / len(names) if names else otherwise


def _middles(
    layers: Sequence[Sequence[str]],
    room: Mapping[str, float],
    above: _Neighbours,
    below: _Neighbours,
) -> dict[str, float]:
    """Return the horizontal middle of every place."""
    middle: dict[str, float] = {}
    for layer in layers:
        middle.update(_apart(layer, room, dict.fromkeys(layer, 0.0)))
    for _ in range(ROUNDS):
        for direction, fixed in ((layers, above), (layers[::-1], below)):
            for layer in direction:
                wanted = {
                    name: _mean(fixed.get(name, ()), middle.__getitem__, middle[name])
                    for name in layer
                }
                middle.update(_apart(layer, room, wanted))
    return middle


def _apart(
    layer: Sequence[str], room: Mapping[str, float], wanted: Mapping[str, float]
) -> dict[str, float]:
    """Return the places that are nearest to the wanted ones, in this order and with the gaps.

    Without its distance from the first one, a place may not be smaller than the one before it;
    those that want to be are pooled at their mean.
    """
    offsets: list[float] = []
    for name in layer:
        previous = layer[len(offsets) - 1]
        step = (room[previous] + room[name]) / 2 + NODE_GAP
        offsets.append(offsets[-1] + step if offsets else 0.0)
    pools: list[tuple[float, int]] = []
    for name, offset in zip(layer, offsets, strict=True):
        mean, count = wanted[name] - offset, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean = (mean * count + other * others) / (count + others)
            count += others
        pools.append((mean, count))
    starts = [mean for mean, count in pools for _ in range(count)]
    return {
        name: start + offset for name, start, offset in zip(layer, starts, offsets, strict=True)
    }


def _drawn(
    chains: Mapping[_Edge, Sequence[str]],
    layers: Sequence[Sequence[str]],
    room: Mapping[str, float],
    middles: Mapping[str, float],
    backward: set[_Edge],
) -> Layout:
    left = min((middles[name] - room[name] / 2 for name in middles), default=0.0)
    right = max((middles[name] + room[name] / 2 for name in middles), default=0.0)
    x = {name: middle - left for name, middle in middles.items()}
    top = {
        name: number * (NODE_HEIGHT + LAYER_GAP)
        for number, layer in enumerate(layers)
        for name in layer
    }
    leaves = _ports(chains, room, x, end=0)
    enters = _ports(chains, room, x, end=-1)
    edges: dict[_Edge, Sequence[Point]] = {}
    for edge, chain in chains.items():
        points = [(leaves[edge], top[chain[0]] + NODE_HEIGHT)]
        for bend in chain[1:-1]:
            points += [(x[bend], top[bend]), (x[bend], top[bend] + NODE_HEIGHT)]
        points.append((enters[edge], top[chain[-1]]))
        edges[edge] = points[::-1] if edge in backward else points
    return Layout(
        width=right - left,
        height=max(0.0, len(layers) * (NODE_HEIGHT + LAYER_GAP) - LAYER_GAP),
        nodes={n: (x[n], top[n] + NODE_HEIGHT / 2) for n in x if not n.startswith(_BEND)},
        edges=edges,
    )


def _ports(
    chains: Mapping[_Edge, Sequence[str]],
    room: Mapping[str, float],
    x: Mapping[str, float],
    *,
    end: int,
) -> dict[_Edge, float]:
    """Return where each edge leaves its upper node (end 0), or enters its lower one (end -1).

    They are in the order of where the edges come from, so that they do not cross at the node.
    """
    at_node: defaultdict[str, list[_Edge]] = defaultdict(list)
    for edge, chain in chains.items():
        at_node[chain[end]].append(edge)
    next_to_it = 1 if end == 0 else -2
    ports: dict[_Edge, float] = {}
    for node, edges in at_node.items():
        edges.sort(key=lambda edge: x[chains[edge][next_to_it]])
        gap = min(PORT_GAP, room[node] / (len(edges) + 1))
        for number, edge in enumerate(edges):
            ports[edge] = x[node] + (number - (len(edges) - 1) / 2) * gap
    return ports
