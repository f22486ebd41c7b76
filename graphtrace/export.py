"""Sub-graphs as files for graph programs: GEXF 1.3 for Gephi, GraphML for the rest.

Why an own GEXF writer: Gephi tells parallel edges apart by their `kind` attribute alone and merges
those that share (source, target, kind); it drops weight 0; and it needs the edges' times as
attributes of the edge. So every edge here has a kind of its own between its two states
(`ATTENTION.h07`, `RESIDUAL`, `MLP`), a positive weight, and starts at time = rank: Gephi's
timeline then scrubs the size of the trace. States start when their first edge does.

Specification: GEXF 1.3 (gexf.net, schema in RELAX NG). The file says MUST things only: version,
ids, typed attributes, times as doubles, colour, position and size in the viz namespace.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from graphtrace.files import replacing
from graphtrace.schema import ATTENTION, KINDS
from graphtrace.subgraph import SubGraph

LEAST_WEIGHT = 1e-6
"""Weight of an edge whose score is 0, since Gephi drops weight 0; `score` keeps the true value."""

NODE_SIZE = 0.3
"""Of a token's width; Gephi scales sizes and positions together when it reads a file."""
# Okabe and Ito's colours, told apart with any common colour vision
KIND_COLOURS = {"attention": (0, 114, 178), "mlp": (213, 94, 0), "residual": (127, 127, 127)}
MERGED_COLOUR = (0, 0, 0)
SITE_COLOURS = {
    "embedding": (0, 158, 115),
    "attention": (86, 180, 233),
    "mlp": (230, 159, 0),
    "block": (204, 121, 167),
}
_NODE_FIELDS = {
    "token": "string",
    "level": "integer",
    "layer": "integer",
    "site": "string",
    "position": "integer",
    "special": "boolean",
    "rank": "integer",
}
_EDGE_FIELDS = {"component": "string", "layer": "integer", "score": "double", "rank": "integer"}
_MERGED_FIELDS = {**_EDGE_FIELDS, "n_edges": "integer"}


def printable(text: str) -> str:
    """The text with every character that XML 1.0 forbids made visible: `␀` for a null, `␛` for an
    escape, `<U+FFFE>` for the rest. Tabs and line ends are allowed and stay."""
    return "".join(
        character
        if _legal(ord(character))
        else chr(0x2400 + ord(character))
        if ord(character) < 0x20
        else f"<U+{ord(character):04X}>"
        for character in text
    )


def _legal(code: int) -> bool:
    """The Char production of XML 1.0."""
    return (
        code in (0x9, 0xA, 0xD)
        or 0x20 <= code <= 0xD7FF
        or 0xE000 <= code <= 0xFFFD
        or code >= 0x10000
    )


def edge_kinds(subgraph: SubGraph) -> list[str]:
    """The name that tells parallel edges apart: `RESIDUAL`, `MLP`, `ATTENTION.h07`."""
    width = max(2, len(str(subgraph.layout.n_heads - 1)))
    names = [name.upper() for name in KINDS]
    return [
        f"{names[kind]}.h{head:0{width}d}" if kind == ATTENTION else names[kind]
        for kind, head in zip(
            subgraph.edges.kind.tolist(), subgraph.edges.head.tolist(), strict=True
        )
    ]


def export_gephi(subgraph: SubGraph, path: str | Path, collapse: bool = False) -> Path:
    """Write a sub-graph as GEXF 1.3 for Gephi.

    x = token position, y = level; node colour by site, edge colour by kind; weight =
    score; start = rank. collapse: merge the parallel edges between two states into one of kind
    `MERGED` with the summed score, the best rank, the number of edges and the components, best
    first. The file appears whole or not at all. Raises OptionError, StorageFullError.
    """
    path = Path(path)
    with replacing(path) as file:
        for line in _gexf(subgraph, collapse):
            file.write(line.encode("utf-8"))
            file.write(b"\n")
    return path


def _gexf(subgraph: SubGraph, collapse: bool) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield ('<gexf xmlns="http://gexf.net/1.3" xmlns:viz="http://gexf.net/1.3/viz" version="1.3">')
    about = f"trace {subgraph.trace} of {subgraph.model}: {len(subgraph)} edges"
    yield "<meta>"
    yield "<creator>graphtrace</creator>"
    yield f"<description>{escape(printable(about))}</description>"
    yield "</meta>"
    yield '<graph mode="dynamic" timeformat="double" defaultedgetype="directed">'
    edge_fields = _MERGED_FIELDS if collapse else _EDGE_FIELDS
    for name, fields in (("node", _NODE_FIELDS), ("edge", edge_fields)):
        yield f'<attributes class="{name}">'
        for field, kind in fields.items():
            yield f'<attribute id="{field}" title="{field}" type="{kind}"/>'
        yield "</attributes>"
    yield from _nodes(subgraph)
    yield from (_merged_edges if collapse else _edges)(subgraph)
    yield "</graph>"
    yield "</gexf>"


def _nodes(subgraph: SubGraph) -> Iterator[str]:
    rows = node_rows(subgraph)
    yield f'<nodes count="{len(rows)}">'
    for row in rows:
        start = row.get("rank", 0)  # an output without edges is there from the start
        yield f'<node id="{row["id"]}" label={_attribute(row["name"])} start="{start}.0">'
        yield _values(row, _NODE_FIELDS)
        yield _colour(SITE_COLOURS[row["site"]])
        yield f'<viz:position x="{row["position"]}.0" y="{row["level"]}.0" z="0.0"/>'
        yield f'<viz:size value="{NODE_SIZE}"/>'
        yield "</node>"
    yield "</nodes>"


def _edges(subgraph: SubGraph) -> Iterator[str]:
    ids = node_keys(subgraph)
    source, target = _ends(subgraph)
    layer = subgraph.layout.layers_of(subgraph.edges.level).tolist()
    score = np.asarray(subgraph.edges.score)
    rows = zip(
        source.tolist(),
        target.tolist(),
        edge_kinds(subgraph),
        subgraph.edges.kind.tolist(),
        subgraph.component_names.tolist(),
        layer,
        score.tolist(),
        subgraph.rank.tolist(),
        strict=True,
    )
    yield f'<edges count="{len(subgraph)}">'
    for s, t, name, kind, component, of_layer, value, rank in rows:
        values = {"component": component, "layer": of_layer, "score": value, "rank": rank}
        yield _edge_head(f"e{rank}", ids[s], ids[t], name, value, rank)
        yield _values(values, _EDGE_FIELDS)
        yield _colour(KIND_COLOURS[KINDS[kind]])
        yield "</edge>"
    yield "</edges>"


def _merged_edges(subgraph: SubGraph) -> Iterator[str]:
    from graphtrace.analysis.weights import merge_parallel

    ids = node_keys(subgraph)
    links = merge_parallel(subgraph, np.asarray(subgraph.edges.score, np.float64))
    members: list[list[int]] = [[] for _ in links.weight]
    for edge, link in enumerate(links.link.tolist()):
        members[link].append(edge)
    layer = subgraph.layout.layers_of(subgraph.edges.level)
    names, ranks = subgraph.component_names, subgraph.rank
    yield f'<edges count="{len(members)}">'
    for link, edges in enumerate(members):
        score, rank = float(links.weight[link]), int(ranks[edges[0]])
        values = {
            "component": " ".join(names[edges]),
            "layer": int(layer[edges[0]]),
            "score": score,
            "rank": rank,
            "n_edges": len(edges),
        }
        source, target = ids[links.source[link]], ids[links.target[link]]
        yield _edge_head(f"e{rank}", source, target, "MERGED", score, rank)
        yield _values(values, _MERGED_FIELDS)
        yield _colour(MERGED_COLOUR)
        yield "</edge>"
    yield "</edges>"


def node_keys(subgraph: SubGraph) -> list[str]:
    """Id of every state in the file, by (level, position): `level:position`."""
    level, position = np.divmod(subgraph.node_ids, subgraph.layout.n_tokens)
    return [f"{g}:{p}" for g, p in zip(level.tolist(), position.tolist(), strict=True)]


def node_rows(subgraph: SubGraph) -> list[dict]:
    """The states by (level, position) as plain Python values: id, name and the columns of
    `SubGraph.node_frame`; layer and rank are left out where there is none."""
    frame = subgraph.node_frame().astype(object)
    rows = []
    for key, row in zip(node_keys(subgraph), frame.to_dict("records"), strict=True):
        for name in ("level", "position", "token_id"):
            row[name] = int(row[name])
        for name in ("layer", "rank"):
            value = row.pop(name)
            if value == value and value is not None and str(value) != "<NA>":
                row[name] = int(value)
        rows.append({"id": key, **row, "special": bool(row["special"])})
    return rows


def _ends(subgraph: SubGraph) -> tuple[np.ndarray, np.ndarray]:
    nodes = subgraph.node_ids
    return (
        np.searchsorted(nodes, subgraph.source_node),
        np.searchsorted(nodes, subgraph.target_node),
    )


def _edge_head(key: str, source: str, target: str, kind: str, score: float, rank: int) -> str:
    return (
        f'<edge id="{key}" source="{source}" target="{target}" kind="{kind}" '
        f'weight="{max(score, LEAST_WEIGHT)!r}" start="{rank}.0">'
    )


def _values(row: dict, fields: dict[str, str]) -> str:
    found = []
    for field in fields:
        if field in row:
            value = row[field]
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found.append(f'<attvalue for="{field}" value={_attribute(text)}/>')
    return f"<attvalues>{''.join(found)}</attvalues>"


def _colour(rgb: tuple[int, int, int]) -> str:
    return '<viz:color r="{}" g="{}" b="{}"/>'.format(*rgb)


def _attribute(text: str) -> str:
    return quoteattr(printable(text))


def export_graphml(subgraph: SubGraph, path: str | Path) -> Path:
    """Write a sub-graph as GraphML (yEd, Cytoscape, igraph, networkx): a directed multigraph with
    the states' and edges' attributes of `SubGraph.to_networkx`, ids `level:position` and `eRANK`,
    and a positive `weight` (the score). Characters that XML forbids become visible ones.

    The file appears whole or not at all. Raises OptionError, StorageFullError.
    """
    import networkx

    path = Path(path)
    graph = networkx.MultiDiGraph(trace=subgraph.trace, model=printable(subgraph.model))
    for row in node_rows(subgraph):
        key = row.pop("id")
        row |= {"name": printable(row["name"]), "token": printable(row["token"])}
        row["label"] = row["name"]  # what graph programs show beside a state
        graph.add_node(key, **row)
    ids, (source, target) = node_keys(subgraph), _ends(subgraph)
    layer, scores = (
        subgraph.layout.layers_of(subgraph.edges.level),
        np.asarray(subgraph.edges.score),
    )
    for e in range(len(subgraph)):
        score, rank = float(scores[e]), int(subgraph.rank[e])
        graph.add_edge(
            ids[source[e]],
            ids[target[e]],
            key=f"e{rank}",
            kind=KINDS[subgraph.edges.kind[e]],
            layer=int(layer[e]),
            head=int(subgraph.edges.head[e]),
            component=str(subgraph.component_names[e]),
            score=score,
            rank=rank,
            weight=max(score, LEAST_WEIGHT),
        )
    with replacing(path) as file:
        networkx.write_graphml_xml(graph, file, named_key_ids=True)
    return path
