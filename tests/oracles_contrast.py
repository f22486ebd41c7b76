"""A contrast in plain Python: sets and lists of one trace after the other."""

import numpy as np
from scipy.stats import binomtest, false_discovery_control, fisher_exact, mannwhitneyu


def component_shares(subgraph):
    """{component: share of the trace's edges}, only those that it uses."""
    names = subgraph.edge_frame()["component"].tolist()
    return {name: names.count(name) / len(names) for name in set(names)}


def layer_shares(subgraph):
    """{(layer, kind): share of the trace's edges}, with the kind `all`."""
    frame = subgraph.edge_frame()
    found = {}
    for layer, kind in zip(frame["layer"], frame["kind"], strict=True):
        for key in ((layer, kind), (layer, "all")):
            found[key] = found.get(key, 0) + 1 / len(frame)
    return found


def depth_shares(subgraph, n_parts, n_layers):
    """{(part of the depth, kind): share of the trace's edges}."""
    found = {}
    for (layer, kind), share in layer_shares(subgraph).items():
        if kind != "all":
            key = (int((layer + 0.5) / n_layers * n_parts), kind)
            found[key] = found.get(key, 0) + share
    return found


def token_shares(subgraph):
    """{(source token, special): share of the trace's edges}."""
    found = {}
    for position in subgraph.edge_frame()["source_position"].tolist():
        key = (subgraph.tokens[position], bool(subgraph.special[position]))
        found[key] = found.get(key, 0) + 1 / len(subgraph)
    return found


def unit_values(side, key, value_of):
    """{unit: mean over its inputs of the mean over their traces}. side: (unit, input, shares)."""
    inputs = {}
    for unit, input_, shares in side:
        inputs.setdefault((unit, input_), []).append(value_of(shares.get(key, 0)))
    units = {}
    for (unit, _), values in inputs.items():
        units.setdefault(unit, []).append(np.mean(values))
    return {unit: np.mean(values) for unit, values in units.items()}


def plain_rows(a, b, paired):
    """{key: numbers} of two sides, lists of (unit, input, {key: share})."""
    keys = {key for side in (a, b) for *_, shares in side for key in shares}
    rows = {}
    for key in keys:
        row = {}
        for name, value_of in (("share", float), ("presence", lambda x: float(x > 0))):
            own = [unit_values(side, key, value_of) for side in (a, b)]
            if paired:
                units = set(own[0]) & set(own[1])
                own = [{unit: values[unit] for unit in units} for values in own]
            row[f"{name}_a"], row[f"{name}_b"] = (np.mean(list(x.values())) for x in own)
            if paired:
                differences = [own[0][unit] - own[1][unit] for unit in own[0]]
                up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
                row[f"{name}_p"] = binomtest(up, up + down).pvalue if up + down else 1.0
            elif name == "presence":
                table = [[sum(x >= 0.5 for x in o.values()), len(o)] for o in own]
                row[f"{name}_p"] = fisher_exact([[k, n - k] for k, n in table])[1]
            else:
                values = [list(o.values()) for o in own]
                same = len({*values[0], *values[1]}) == 1
                row[f"{name}_p"] = (
                    1.0 if same else mannwhitneyu(*values, method="asymptotic").pvalue
                )
        rows[key] = row
    return rows


def discoveries(p):
    """q by scipy."""
    return false_discovery_control(np.minimum(p, 1))
