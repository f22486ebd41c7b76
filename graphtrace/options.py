"""What to compute for each input, and the keywords that say it.

`TraceKeywords` is the one list of the keywords that trace, trace_many, extract and forecast share;
`read_keywords` makes options of them, and `takes_keywords` shows them in a function's signature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from graphtrace.errors import OptionError
from graphtrace.evaluation import Evaluation, check_sizes
from graphtrace.keywords import check_keywords, shows_keywords
from graphtrace.masks import NO_EDGE
from graphtrace.models import TracedModel
from graphtrace.positions import LAST_POSITION, Positions, parse_positions
from graphtrace.reference_means import ReferenceMeans, load_means
from graphtrace.scoring import FISHER_PROBES, draws, parse_scorer
from graphtrace.search import SEARCHES
from graphtrace.sizes import SIZE_GRID
from graphtrace.targets import Targets
from graphtrace.tokenizing import TEXT_DEFAULTS, TextOptions
from graphtrace.traces import Input, Settings


@dataclass(frozen=True)
class TraceOptions:
    """What to compute for each input; the defaults of Python and command line alike.

    scorer: see scoring.SCORERS, `fisher:4` for another number of probes; `random` is the paper's
    baseline, a seeded walk in place of a ranking, whose edges carry their l1 scores. search: see
    search.SEARCHES. sizes: fractions of |E|; 1 is always added. evaluation: how the traces are
    measured. positions: which positions of a text are traced. targets: the tokens that they are
    about. more: further evaluations, each of which gives a curve of its own. Raises OptionError.
    """

    scorer: str = "l1"
    search: str = "best-first"
    seed: int = 0
    sizes: tuple[float, ...] = SIZE_GRID
    evaluation: Evaluation = field(default_factory=Evaluation)
    positions: Positions = LAST_POSITION
    targets: Targets = field(default_factory=Targets)
    more: tuple[Evaluation, ...] = ()

    def __post_init__(self) -> None:
        name, probes = parse_scorer(self.scorer)
        if f"{name}:{probes}" == f"fisher:{FISHER_PROBES}":
            object.__setattr__(self, "scorer", "fisher")
        if self.search not in SEARCHES:
            raise OptionError(f"search {self.search!r} is none of {', '.join(SEARCHES)}")
        if name == "random" and self.search != "best-first":
            raise OptionError(
                f"the random baseline is a walk, not a weight: search {self.search!r} does not go "
                "with it; leave the search out"
            )
        n_sizes = len(check_sizes(self.sizes))
        if n_sizes >= NO_EDGE and any(one.mode == "necessity" for one in self.evaluations):
            raise OptionError(
                f"{n_sizes} sizes; at most {NO_EDGE - 1} with 1 can be evaluated together in "
                "necessity, where 1 needs a masked pass too"
            )

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All evaluations, each once, the first one's curve first."""
        return tuple(dict.fromkeys((self.evaluation, *self.more)))

    def settings(self, model: TracedModel, input_: Input) -> Settings:
        """What identifies the ranking of an input."""
        return Settings(
            scorer=self.scorer,
            search=self.search,
            dtype=model.info.dtype,
            seed=self.seed if draws(self.scorer) else None,
            position_rule=self.positions.rule,
            target_rule=self.targets.rule(input_),
        )


DEFAULTS = TraceOptions()


def as_evaluation(
    mode: str,
    ablation: str,
    ablate: Iterable[str] | str,
    means: ReferenceMeans | str | Path | None,
    eval_dtype: str = DEFAULTS.evaluation.dtype,
    pair: Any = None,
) -> Evaluation:
    """The Evaluation of plain arguments. ablate: kinds, or their comma-separated list; means:
    ReferenceMeans or the path of their file; pair: see Evaluation. Raises OptionError, ModelError.
    """
    kinds = ablate.split(",") if isinstance(ablate, str) else ablate
    found = means if means is None or isinstance(means, ReferenceMeans) else load_means(means)
    kinds = tuple(kind.strip() for kind in kinds)
    return Evaluation(mode, ablation, kinds, found, eval_dtype, pair)


def more_evaluations(
    evaluate: str | Evaluation | Iterable[str | Evaluation],
    means: ReferenceMeans | None,
    eval_dtype: str = DEFAULTS.evaluation.dtype,
    pair: Any = None,
) -> tuple[Evaluation, ...]:
    """The Evaluations that `mode:ablation` or `mode:ablation:ablate` stand for, such as
    `necessity:mean` or `sufficiency:zero:mlp,attention`. means, pair: for those that take them.

    Raises OptionError.
    """
    specs = [evaluate] if isinstance(evaluate, str | Evaluation) else evaluate
    found = []
    for spec in specs:
        if isinstance(spec, Evaluation):
            found.append(spec)
            continue
        parts = spec.split(":")
        if len(parts) not in (2, 3):
            raise OptionError(
                f"evaluate {spec!r} is not of the form mode:ablation or mode:ablation:ablate, such "
                "as necessity:mean"
            )
        mode, ablation = (part.strip() for part in parts[:2])
        ablate = parts[2] if len(parts) == 3 else DEFAULTS.evaluation.ablate
        own_pair = pair if ablation == "counterfactual" else None
        own_means = means if ablation == "mean" else None
        found.append(as_evaluation(mode, ablation, ablate, own_means, eval_dtype, own_pair))
    return tuple(found)


class TraceKeywords(TypedDict, total=False):
    """How inputs are read, ranked and measured.

    position: which positions are traced: one (-1 is the last, 7), a range ("-20:", "5:9", ":") or
    "all"; the trace at p is that of tokens 0 ... p. target, foil: the text of one token (" Mary")
    or its id: every curve has the target's probability and its logit less the foil's, and the
    scorer gradient looks back from them; by default what an input's columns `target` and `foil`
    say. scorer, search, seed, sizes: see TraceOptions. mode, ablation, ablate, eval_dtype: see
    Evaluation; means: ReferenceMeans or the path of their file, for the `mean` ablation; pair: the
    paired input of every input, for the `counterfactual` ablation, by default what an input's
    column `pair` says. evaluate: further curves beside the one of mode, ablation and ablate, such
    as `necessity:mean` or a list of these. bos, chat, system: see TextOptions.
    """

    position: int | str
    target: str | int | None
    foil: str | int | None
    scorer: str
    search: str
    seed: int
    sizes: Iterable[float]
    mode: str
    ablation: str
    ablate: Iterable[str] | str
    means: ReferenceMeans | str | Path | None
    pair: Any
    eval_dtype: str
    evaluate: str | Iterable[str]
    bos: str
    chat: bool
    system: str | None


KEYWORDS: TraceKeywords = {
    "position": -1,
    "target": None,
    "foil": None,
    "scorer": DEFAULTS.scorer,
    "search": DEFAULTS.search,
    "seed": DEFAULTS.seed,
    "sizes": DEFAULTS.sizes,
    "mode": DEFAULTS.evaluation.mode,
    "ablation": DEFAULTS.evaluation.ablation,
    "ablate": DEFAULTS.evaluation.ablate,
    "means": None,
    "pair": None,
    "eval_dtype": DEFAULTS.evaluation.dtype,
    "evaluate": (),
    "bos": TEXT_DEFAULTS.bos,
    "chat": TEXT_DEFAULTS.chat,
    "system": TEXT_DEFAULTS.system,
}
"""Every keyword with its default, in the order in which help shows them."""


class Asked(NamedTuple):
    """What TraceKeywords say: how inputs are traced, and how they are read."""

    options: TraceOptions
    text: TextOptions


def read_keywords(given: Mapping[str, Any]) -> Asked:
    """The options of TraceKeywords, defaults where a keyword is absent.

    Raises OptionError, for a keyword that there is not naming the closest; ModelError.
    """
    check_keywords(given, KEYWORDS)
    want: Any = {**KEYWORDS, **given}
    evaluation, more = _evaluations(want)
    return Asked(
        TraceOptions(
            want["scorer"],
            want["search"],
            want["seed"],
            tuple(want["sizes"]),
            evaluation,
            parse_positions(want["position"]),
            Targets(want["target"], want["foil"]),
            more,
        ),
        TextOptions(want["bos"], want["chat"], want["system"]),
    )


def _evaluations(want: Mapping[str, Any]) -> tuple[Evaluation, tuple[Evaluation, ...]]:
    """The first evaluation and the further ones; what one of them takes need not suit another."""
    means, dtype, pair = (want[name] for name in ("means", "eval_dtype", "pair"))
    if means is not None and not isinstance(means, ReferenceMeans):
        means = load_means(means)
    more = more_evaluations(want["evaluate"] or (), means, dtype, pair)
    ablations = {evaluation.ablation for evaluation in more}
    first = as_evaluation(
        want["mode"],
        want["ablation"],
        want["ablate"],
        None if "mean" in ablations and want["ablation"] != "mean" else means,
        dtype,
        None if "counterfactual" in ablations and want["ablation"] != "counterfactual" else pair,
    )
    return first, more


takes_keywords = shows_keywords(TraceKeywords, KEYWORDS)
"""Show TraceKeywords in the signature and docstring of a function that takes them."""
