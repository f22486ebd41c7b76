"""What to compute for each input."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from graphtrace.errors import OptionError
from graphtrace.evaluation import Evaluation, check_sizes
from graphtrace.models import TracedModel
from graphtrace.reference_means import ReferenceMeans, load_means
from graphtrace.scoring import FISHER_PROBES, draws, parse_scorer
from graphtrace.search import SEARCHES
from graphtrace.sizes import SIZE_GRID
from graphtrace.traces import Settings


@dataclass(frozen=True)
class TraceOptions:
    """What to compute for each input; the defaults of Python and command line alike.

    scorer: see scoring.SCORERS, `fisher:4` for another number of probes; `random` is the paper's
    baseline, a seeded walk in place of a ranking, whose edges carry their l1 scores. search: see
    search.SEARCHES. sizes: fractions of |E|; 1 is always added. evaluation: how the traces are
    measured. Raises OptionError.
    """

    scorer: str = "l1"
    search: str = "best-first"
    seed: int = 0
    sizes: tuple[float, ...] = SIZE_GRID
    evaluation: Evaluation = field(default_factory=Evaluation)

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
        check_sizes(self.sizes)

    def settings(self, model: TracedModel) -> Settings:
        """What identifies the ranking."""
        return Settings(
            scorer=self.scorer,
            search=self.search,
            dtype=model.info.dtype,
            seed=self.seed if draws(self.scorer) else None,
        )


DEFAULTS = TraceOptions()


def as_evaluation(
    mode: str,
    ablation: str,
    ablate: Iterable[str] | str,
    means: ReferenceMeans | str | Path | None,
    eval_dtype: str = DEFAULTS.evaluation.dtype,
) -> Evaluation:
    """The Evaluation of plain arguments. ablate: kinds, or their comma-separated list; means:
    ReferenceMeans or the path of their file. Raises OptionError, ModelError."""
    kinds = ablate.split(",") if isinstance(ablate, str) else ablate
    found = means if means is None or isinstance(means, ReferenceMeans) else load_means(means)
    return Evaluation(mode, ablation, tuple(kind.strip() for kind in kinds), found, eval_dtype)
