"""Slow, plain versions of the graph measures: networkx, path enumeration, definitions."""

import itertools
import math

import networkx as nx
import numpy as np


def weighted_graph(subgraph):
    """networkx.DiGraph over node ids, parallel edges summed; weight = score share per target."""
    into = {}
    for target, score in zip(subgraph.target_node, subgraph.edges.score, strict=True):
        into[int(target)] = into.get(int(target), 0.0) + float(score)
    graph = nx.DiGraph()
    graph.add_nodes_from(int(node) for node in subgraph.node_ids)
    for source, target, score in zip(
        subgraph.source_node, subgraph.target_node, subgraph.edges.score, strict=True
    ):
        s, t = int(source), int(target)
        share = float(score) / into[t] if into[t] else 0.0
        before = graph[s][t]["weight"] if graph.has_edge(s, t) else 0.0
        graph.add_edge(s, t, weight=before + share)
    return graph


def pagerank(subgraph):
    """{node: value} on the reversed graph, restarting at the output."""
    graph = weighted_graph(subgraph)
    graph.remove_edges_from([(s, t) for s, t, w in graph.edges(data="weight") if w == 0])
    return nx.pagerank(
        graph.reverse(),
        personalization={subgraph.layout.output: 1},
        tol=1e-13,
        max_iter=10_000,
    )


def enumerate_paths(subgraph, weight):
    """Every complete path, as (list of edge indices from the output down, product of weights)."""
    incoming = {}
    for e, target in enumerate(subgraph.target_node):
        incoming.setdefault(int(target), []).append(e)

    def walk(node, taken, mass):
        if node < subgraph.layout.n_tokens:
            yield list(taken), mass
            return
        for e in incoming.get(node, []):
            taken.append(e)
            yield from walk(int(subgraph.source_node[e]), taken, mass * float(weight[e]))
            taken.pop()

    yield from walk(subgraph.layout.output, [], 1.0)


def path_flow(subgraph, weight):
    """(flow per edge, flow per node as a dict, mass of all complete paths)."""
    paths = list(enumerate_paths(subgraph, weight))
    total = sum(mass for _, mass in paths)
    edge = np.zeros(len(subgraph))
    node = {int(v): 0.0 for v in subgraph.node_ids}
    for taken, mass in paths:
        if total == 0:
            continue
        node[subgraph.layout.output] += mass / total
        for e in taken:
            edge[e] += mass / total
            node[int(subgraph.source_node[e])] += mass / total
    return edge, node, total


def stability(matrix):
    """Nogueira, Sechidis and Brown's estimate (their definition 4) and its variance (their
    theorem 7, in the form of Gwet's kappa), both written out feature by feature, row by row."""
    m, d = matrix.shape
    k = [int(row.sum()) for row in matrix]
    p = [sum(int(matrix[i, f]) for i in range(m)) / m for f in range(d)]
    pi = sum(k) / m / d
    chance = 1 - 2 * pi * (1 - pi)
    agree = 1 - (2 / d) * (m / (m - 1)) * sum(x * (1 - x) for x in p)
    phi = (agree - chance) / (1 - chance)
    gamma = []
    for i in range(m):
        own = 1 - k[i] / d - pi + (2 / d) * sum(int(matrix[i, f]) * p[f] for f in range(d))
        expected = (1 - phi) * (pi * k[i] / d + (1 - pi) * (1 - k[i] / d))
        gamma.append((own - expected) / (1 - chance))
    mean = sum(gamma) / m
    return phi, 4 / m**2 * sum((g - mean) ** 2 for g in gamma)


def mean_jaccard(matrix, inputs, same_input=False):
    """Mean Jaccard over pairs of rows of different inputs (or of the same), two empty left out."""
    values = []
    for i, j in itertools.combinations(range(len(matrix)), 2):
        if (inputs[i] == inputs[j]) != same_input:
            continue
        a, b = set(np.flatnonzero(matrix[i])), set(np.flatnonzero(matrix[j]))
        if a | b:
            values.append(len(a & b) / len(a | b))
    return sum(values) / len(values) if values else math.nan


def expected_jaccard(d, a, b):
    """Mean Jaccard of a fixed set of `a` of `d` things and every set of `b`, by enumeration."""
    fixed, values = set(range(a)), []
    for other in itertools.combinations(range(d), b):
        union = fixed | set(other)
        values.append(len(fixed & set(other)) / len(union) if union else math.nan)
    return sum(values) / len(values)


def gini(values):
    """Mean absolute difference over twice the mean, by all pairs."""
    n, mean = len(values), sum(values) / len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * n * n * mean)
