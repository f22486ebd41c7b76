"""How well traces find a known circuit: recall, precision and AUROC of its components by size.

A trace of a size holds the components with at least one kept edge. *Candidates* are all components
of the kinds that the reference circuit has (a circuit of heads is looked for among heads). Of one
trace at one size, R the circuit's components, P the candidates in the trace:

    recall      |R in P| / |R|
    precision   |R in P| / |P|; there is none where no candidate is in the trace
    auroc       probability that a component of the circuit is ahead of another candidate of its
                kind, ties counting half; what is not in the trace comes last, all tied

Every value is a mean over inputs, its interval a bootstrap over inputs. Beside it stands what
chance gives: as many components of every kind as the circuit has, drawn at random, against the
same traces. Of one trace their number in it is hypergeometric; over many the range is that of the
mean, and the traces keep what they have in common. Chance recall is so the mean share of the
candidates that are in the trace, chance precision the base rate, chance AUROC 1/2. Circuits drawn
with as many components in every layer, too, tell a circuit from its depth (`Chance`).
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack, get_args

import numpy as np
import pandas as pd

from graphtrace.analysis.centrality import component_columns, per_input
from graphtrace.analysis.component_order import (
    NEVER,
    ORDERS,
    ComponentOrder,
    Order,
    component_orders,
)
from graphtrace.analysis.reading import (
    Selection,
    chosen_traces,
    group_columns,
    group_order,
    read_selection,
    takes_selection,
)
from graphtrace.analysis.recovery import (
    auroc,
    kind_ranks,
    recall,
    recovery,
)
from graphtrace.analysis.reference import Members, Reference, members, read_reference
from graphtrace.component_names import Shape
from graphtrace.conditions import group_text, values_of
from graphtrace.errors import OptionError
from graphtrace.progress import progress as show_progress
from graphtrace.selection import TraceSource, check_curves
from graphtrace.sizes import SIZE_GRID, ShortTraceWarning, Size, parse_size

Chance = Literal["kind", "layer"]
"""What random circuits have in common with the reference: the number of components of every kind,
or of every kind in every layer. Traces hold some layers before others, and so does a circuit."""

MEASURES = ("recall", "precision", "auroc")
_ENDS = ("", "_low", "_high", "_chance", "_chance_low", "_chance_high")
_COLUMNS = (
    *("size", "trace_share", "trace_edges", "n_inputs", "n_traces", "n_reference", "n_candidates"),
    *("n_present", *(f"{name}{end}" for name in MEASURES for end in _ENDS), "role", "component"),
    *("kind", "layer", "head", "in_reference", "presence", "first_size", "best_rank", "place"),
)


class CircuitRecovery(NamedTuple):
    """What `circuit` returns, see there."""

    summary: pd.DataFrame
    roles: pd.DataFrame
    components: pd.DataFrame


@takes_selection
def circuit(
    source: TraceSource,
    reference: Any,
    sizes: Sequence[Size | float | str] | None = None,
    *,
    order: Order = "best-rank",
    chance: Chance = "kind",
    draws: int = 1000,
    seed: int = 0,
    progress: bool = False,
    **selection: Unpack[Selection],
) -> CircuitRecovery:
    """Compare the traces of a source with a reference circuit, at several sizes.

    reference: a JSON file or the lists and dicts in it, see `analysis.reference`. Where it has
    several tasks, the first key of `by` names them: the circuit of a group of traces is that of
    the task with the group's value. sizes: by default those of the paper's grid, and 1, at which
    every trace has an edge and the source keeps them all. order: see `Order`. chance: see
    `Chance`. Three tables; every row begins with model and the keys of `by`:

    summary     one row per size: size (as asked for), trace_share (mean share of all edges),
                trace_edges (their mean number), n_inputs, n_traces, n_reference (components of the
                circuit), n_candidates, n_present (mean number of candidates in the trace); then
                for recall, precision and auroc X: X, X_low, X_high (95 % bootstrap over inputs,
                `draws` draws with `seed`; NaN with one input), X_chance, X_chance_low,
                X_chance_high (expectation and 95 % range by chance, from `draws` random circuits)
    roles       one row per size and role of the reference: size, role, n_reference, and recall as
                in the summary
    components  one row per candidate, the best first: component, kind, layer, head, in_reference,
                role, presence (share of inputs, at the largest size), first_size (the smallest size
                at which at least half of the inputs have it, as asked for, or None), best_rank
                (lower median over traces; <NA> where more than half lack it), place (mean over
                inputs of its place among the candidates of its kind at the largest size, from 1,
                ties shared)

    Several traces of one input are averaged first. precision counts the inputs that have one.
    progress: show on stderr how far it is. Raises OptionError, InputError, SizeError.
    """
    if order not in ORDERS:
        raise OptionError(f"order {order!r} is none of {', '.join(ORDERS)}")
    if chance not in get_args(Chance):
        raise OptionError(f"chance {chance!r} is none of {', '.join(get_args(Chance))}")
    known = read_reference(reference)
    traces = chosen_traces(source, selection, _COLUMNS)
    by, special = (read_selection(selection)[key] for key in ("by", "exclude_special"))
    tasks = _tasks(source, known, traces, by)
    shapes = _shapes(source, traces)
    circuits = {
        (model, task): members(known, task, shapes[model])
        for model, task in dict.fromkeys(zip(traces["model"], tasks, strict=True))
    }
    asked = [parse_size(size) for size in sizes] if sizes else _default_sizes(traces)
    if any(size.rule == "tv" for size in asked):
        check_curves(traces)
    keys = group_columns(traces)
    groups: dict[tuple, _Group] = {}
    rows = traces.to_dict("records")
    group_of = [(row["model"], *(row[name] for name in keys)) for row in rows]
    n_traces = Counter((key, row["input"]) for key, row in zip(group_of, rows, strict=True))
    n_inputs = Counter(key for key, _ in n_traces)
    with show_progress("traces", len(rows), "traces", shown=progress) as advance:
        orders = component_orders(source, rows, shapes, asked, order, special)
        for row, key, task, found in zip(rows, group_of, tasks, orders, strict=True):
            if key not in groups:
                circuit_ = circuits[row["model"], task]
                groups[key] = _Group(circuit_, shapes[row["model"]], asked, chance)
            weight = 1 / (n_inputs[key] * n_traces[key, row["input"]])
            groups[key].add(row, found, weight)
            advance()
    names = ["model", *(key.removeprefix("by:") for key in keys)]
    tables = [
        [_labelled(frame, names, key) for frame in groups[key].tables(draws, seed)]
        for key in sorted(groups, key=group_order)
    ]
    return CircuitRecovery(*(pd.concat(x, ignore_index=True) for x in zip(*tables, strict=True)))


def _tasks(
    source: TraceSource, known: Reference, traces: pd.DataFrame, by: list[str] | None
) -> list[str | None]:
    """The task of the reference that every trace is compared with."""
    if None in known.tasks:
        return [None] * len(traces)
    listed = ", ".join(map(str, known.tasks))
    if not by:
        if len(known.tasks) > 1:
            raise OptionError(
                f"the reference has the circuits of {len(known.tasks)} tasks ({listed}); name the "
                "label of the inputs that says which is which with --by, such as --by task (the "
                'roles of one task\'s components are written {"TASK": {"ROLE": [...]}})'
            )
        return list(known.tasks) * len(traces)
    tasks: list[str | None] = traces[group_columns(traces)[0]].tolist()
    for task in dict.fromkeys(tasks):
        if task not in known.tasks:
            raise OptionError(
                f"the reference has no circuit for the traces with {by[0]} {task!r}; its tasks: "
                f"{listed}; add it, or choose others with --where {by[0]}=TASK"
            )
    # A task that a filter leaves out is left out on purpose; one that no trace has is a slip.
    there = sorted(set(map(group_text, values_of(source.traces(), by[0]))))
    for task in known.tasks:
        if task not in there:
            raise OptionError(
                f"no trace has {by[0]} {task!r}, which the reference has a circuit of; values of "
                f"{by[0]} here: {', '.join(map(repr, there))}"
            )
    return tasks


def _shapes(source: TraceSource, traces: pd.DataFrame) -> dict[str, Shape]:
    """Every model's layers, heads and kind of block. Raises OptionError where they differ, since
    a circuit is written down for one model."""
    found = {}
    for model, trace in traces.groupby("model")["id"].first().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ShortTraceWarning)
            layout = source.subgraph(str(trace), "k:1").layout
        found[model] = Shape(layout.n_layers, layout.n_heads, layout.parallel)
    if len(set(found.values())) > 1:
        listed = "; ".join(
            f"{model}: {shape.n_layers} layers of {shape.n_heads} heads"
            f"{', parallel blocks' if shape.parallel else ''}"
            for model, shape in found.items()
        )
        raise OptionError(
            f"a reference circuit is of one model, and these traces are of several that differ in "
            f"shape ({listed}); choose one with --model"
        )
    return found


def _default_sizes(traces: pd.DataFrame) -> list[Size]:
    grid = [parse_size(size) for size in (*SIZE_GRID, 1.0)]
    pairs = list(zip(traces["n_edges"].tolist(), traces["n_kept"].tolist(), strict=True))
    found = [s for s in grid if all(1 <= s.edges(n_edges) <= n for n_edges, n in pairs)]
    if not found:
        raise OptionError(
            "at no size of the grid has every trace an edge and are all of its edges kept; give "
            "the sizes with --size (k:EDGES is the same number for texts of any length)"
        )
    return found


class _Group:
    """The traces of one model and group, and the circuit that they are compared with.

    Shape suffixes: T traces, S sizes, C candidates.
    """

    def __init__(self, circuit_: Members, shape: Shape, asked: list[Size], chance: Chance) -> None:
        self.circuit, self.asked = circuit_, asked
        columns = component_columns(*shape)
        kinds = columns["kind"].to_numpy()
        self.of_C = np.flatnonzero(np.isin(kinds, kinds[list(circuit_.roles)]))
        """Numbers of the candidates."""
        self.columns = columns.iloc[self.of_C].reset_index(drop=True)
        self.kind_C = self.columns["kind"].to_numpy().astype(str)
        self.stratum_C = self.kind_C
        if chance == "layer":
            layers = self.columns["layer"].astype(str)
            self.stratum_C = (self.columns["kind"] + layers).to_numpy().astype(str)
        self.member_C = np.isin(self.of_C, list(circuit_.roles))
        self.inputs: list[str] = []
        self.n_edges: list[int] = []
        self.orders: list[ComponentOrder] = []
        self.auroc: list[np.ndarray] = []
        self.rank_SC = np.zeros((len(asked), len(self.of_C)))

    def add(self, row: dict[str, Any], order: ComponentOrder, weight: float) -> None:
        rank_SC = kind_ranks(order.goodness_SN[:, self.of_C], self.kind_C)
        self.inputs.append(row["input"])
        self.n_edges.append(row["n_edges"])
        self.orders.append(order._replace(goodness_SN=np.empty(0)))
        self.auroc.append(auroc(rank_SC, self.kind_C, self.member_C))
        self.rank_SC += weight * rank_SC

    def tables(self, draws: int, seed: int) -> list[pd.DataFrame]:
        best_TC = np.stack([order.best_N[self.of_C] for order in self.orders])
        k_TS = np.stack([order.k_S for order in self.orders])
        share_S = (k_TS / np.array(self.n_edges)[:, None]).mean(0)
        begin = {
            "size": list(map(str, self.asked)),
            "trace_share": share_S,
            "trace_edges": k_TS.mean(0),
            "n_inputs": len(set(self.inputs)),
            "n_traces": len(self.inputs),
        }
        found = recovery(
            *(best_TC, k_TS, self.inputs, np.stack(self.auroc), self.rank_SC),
            *(self.kind_C, self.member_C, draws, seed, self.stratum_C),
        )
        summary = pd.DataFrame(
            {
                **begin,
                "n_reference": int(self.member_C.sum()),
                "n_candidates": len(self.of_C),
                "n_present": found.n_present,
                **{
                    f"{name}{end}": values
                    for name in MEASURES
                    for end, values in zip(_ENDS, getattr(found, name), strict=True)
                },
            }
        )
        roles = [
            pd.DataFrame(
                {
                    **begin,
                    "role": role,
                    "n_reference": int(own_C.sum()),
                    **dict(
                        zip(
                            [f"recall{end}" for end in _ENDS],
                            recall(best_TC, k_TS, self.inputs, self.stratum_C, own_C, draws, seed),
                            strict=True,
                        )
                    ),
                }
            )
            for role in self.circuit.names
            for own_C in [np.isin(self.of_C, self.circuit.of_role(role))]
        ]
        return [
            summary,
            pd.concat(roles, ignore_index=True),
            self._components(best_TC, k_TS),
        ]

    def _components(self, best_TC: np.ndarray, k_TS: np.ndarray) -> pd.DataFrame:
        by_size = np.argsort(k_TS.mean(0), kind="stable")
        held_SC = np.stack(
            [per_input(self.inputs, best_TC < k_TS[:, [s]]).mean(0) for s in by_size]
        )
        half_SC = held_SC >= 0.5
        names = [str(self.asked[s]) for s in by_size]
        first = [names[x.argmax()] if x.any() else None for x in half_SC.T]
        median_C = np.sort(best_TC, axis=0)[(len(best_TC) - 1) // 2 :][0]
        best_rank = pd.array(np.where(median_C == NEVER, 0, median_C), dtype="Int64")
        best_rank[median_C == NEVER] = pd.NA
        n_kind_C = np.array([np.sum(self.kind_C == kind) for kind in self.kind_C])
        frame = self.columns.assign(
            in_reference=self.member_C,
            role=[", ".join(self.circuit.roles.get(int(number), ())) for number in self.of_C],
            presence=held_SC[-1],
            first_size=pd.Series(first, dtype=object),
            best_rank=best_rank,
            place=n_kind_C + 1 - self.rank_SC[by_size[-1]],
        )
        return frame.sort_values(by="place", kind="stable", ignore_index=True)


def _labelled(frame: pd.DataFrame, names: list[str], key: tuple) -> pd.DataFrame:
    for place, (name, value) in enumerate(zip(names, key, strict=True)):
        if name not in frame.columns:
            frame.insert(place, name, value)
    return frame
