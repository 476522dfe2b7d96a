"""`paper.yaml` and `params.yaml` as frozen dataclasses, and what a profile resolves to.

pydantic builds them from a file (`spec.checks`), strictly: no unknown key, no text for a number.  The text below each
key says what it means; docs/paper_yaml.md is made from it.
"""

import copy
from collections.abc import Set
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from repro.errors import ReproError
from repro.files.paths import PROFILES
from repro.files.schema import FIELDS, Finite, Level, Wanted, by_shape, picked

Profile = Literal["smoke", "cpu", "long", "gpu", "paper"]
Family = Literal["normalization", "activation", "initialization", "residual", "training"]
Fidelity = Literal["analytic", "same", "scaled", "proxy"]
Read = Literal["full text", "abstract", "repository", "second hand"]
Slot = Literal["norm", "act", "placement", "init", "weight", "optimizer"]
FAMILIES = get_args(Family)
Number = Annotated[int | Finite, Wanted("a number")]  # 1 stays 1, so that a digest is that of what was written
Pair = Annotated[list[int | Finite], Field(min_length=2, max_length=2), Wanted("[low, high]")]
RESERVED = ("batched", "ranks", "factors", "seeds", "first_seed", "tuning_seeds", "arms")  # the rest is its Config


class _Strict:
    __pydantic_config__ = FIELDS


@dataclass(frozen=True, kw_only=True)
class Measure(_Strict):
    """A number (or a curve) that an experiment returns."""

    unit: str
    """Unit of the number. Example: `nats per byte`"""
    better: Literal["lower", "higher"] | None = None
    """Which way is better; needed where a rule compares arms in this measure. Example: `lower`"""
    positive: bool = False
    """Always above 0, so that ratios of it make sense."""
    skewed: bool = False
    """A worst case, a maximum or an R2, of which a rule needs `statistic: sign` or at least 10 seeds."""
    diverged: Literal["worst"] = "worst"
    """A diverged run counts as the worst value of the measure."""
    about: str | None = None
    """What the number is, where its name and unit do not say it."""


@dataclass(frozen=True, kw_only=True)
class Experiment(_Strict):
    """A function that is measured, its arms and the levels of its factors."""

    arms: list[str]
    """Variants that are compared: the method, the baseline, the broken controls. Example: `[layernorm, rmsnorm]`"""
    factors: dict[str, list[Level]] = field(default_factory=dict)
    """Settings that take several levels; every arm runs at each combination. Example: `{depth: [4, 12]}`"""
    exclusive: bool = False
    """A timing: all arms are interleaved, and nothing else runs meanwhile."""
    module: str | None = None
    """Module of the function, where it is not the paper's experiment.py. Example: `repro.experiments.decoder`"""
    function: str | None = None
    """Function, or `module:function`; the experiment's name unless given. Example: `repro.experiments.decoder:quality`"""
    about: str | None = None
    """One sentence on what is measured."""

    def resolved(self, name: str) -> tuple[str | None, str]:
        """(module or None for the paper's own experiment.py, function) of an experiment of this name."""
        module, colon, function = (self.function or name).rpartition(":")
        return (module if colon else self.module), function


@dataclass(frozen=True, kw_only=True)
class Contrast(_Strict):
    """The first level minus (or over) the second, within each arm and seed."""

    factor: str
    """Factor whose levels are compared."""
    levels: list[Level]
    """Two levels. Example: `[12, 4]`"""
    as_: Literal["difference", "ratio"]
    """How the two are compared."""


@dataclass(frozen=True, kw_only=True)
class StepsTo(_Strict):
    """The first entry of `axis` at which the curve is as good as `target`."""

    target: by_shape("a number, or best", number=Number, text=Literal["best"])
    """Value to reach; `best` is the best value of `against`."""
    axis: str
    """Measure that holds the steps of the curve."""


@dataclass(frozen=True, kw_only=True)
class _Rule(_Strict):
    """The keys that a rule of any kind may have."""

    measure: str
    """Measure that the rule looks at."""
    arm: str
    """Arm that the claim is about."""
    level: Number = 0.95
    """Confidence level of the interval that decides."""
    at: dict[str, Level] = field(default_factory=dict)
    """Fixed levels of factors. Example: `{depth: 12}`"""
    per: str | None = None
    """Factor at each level of which the rule must hold. Example: `depth`"""
    at_least: int | None = None
    """At how many levels of `per` it must hold, where not at all of them."""
    contrast: Contrast | None = None
    """Two levels of a factor that are compared."""
    steps_to: StepsTo | None = None
    """The steps until a curve reaches a target, in place of the measure itself."""
    statistic: Literal["t", "sign"] = "t"
    """What decides: Student's t, or the sign of each difference, for skewed measures."""
    pair: bool = True
    """Whether both arms share their seeds, so that differences are taken seed by seed."""
    name: str | None = None
    """Name of the rule among several."""

    @property
    def cell_factors(self) -> list[str]:
        """The factors over whose cells a count runs; none for other kinds."""
        cells = getattr(self, "cells", [])
        return [cells] if isinstance(cells, str) else cells


@dataclass(frozen=True, kw_only=True)
class _Region(_Strict):
    """The region of a rule: one of min, max, between."""

    min: Number | None = None
    """Lower end of the region."""
    max: Number | None = None
    """Upper end of the region."""
    between: list[Number] | None = None
    """Both ends of the region. Example: `[0.9, 1.1]`"""


@dataclass(frozen=True, kw_only=True)
class Identity(_Region, _Rule):
    """On every row, and for every element of a list: |value| < bound, or the value lies in the region."""

    kind: Literal["identity"]
    """`identity`"""
    bound: Number | None = None
    """Largest error that is allowed. Example: `1.0e-12`"""


@dataclass(frozen=True, kw_only=True)
class Bound(_Region, _Rule):
    """The mean of the measure lies in the region."""

    kind: Literal["bound"]
    """`bound`"""


@dataclass(frozen=True, kw_only=True)
class Ratio(_Region, _Rule):
    """arm / against lies in the region, on the log scale."""

    kind: Literal["ratio"]
    """`ratio`"""
    against: str
    """Arm that `arm` is compared with."""


@dataclass(frozen=True, kw_only=True)
class Ordering(_Rule):
    """Better than `against` by more than `margin`."""

    kind: Literal["ordering"]
    """`ordering`"""
    against: str
    """Arm that `arm` is compared with."""
    margin: Number = 0.0
    """By how much `arm` must be better, in the unit of the measure."""


@dataclass(frozen=True, kw_only=True)
class Noninferiority(_Rule):
    """Not worse than `against` by `margin` or more."""

    kind: Literal["noninferiority"]
    """`noninferiority`"""
    against: str
    """Arm that `arm` is compared with."""
    margin: Number
    """How much worse would still count as equal, in the unit of the measure."""


@dataclass(frozen=True, kw_only=True)
class Equivalence(_Rule):
    """|arm - against| < margin, or arm / against within `ratio` on the log scale."""

    kind: Literal["equivalence"]
    """`equivalence`"""
    against: str
    """Arm that `arm` is compared with."""
    margin: Number | None = None
    """Largest difference that counts as equal."""
    ratio: list[Number] | None = None
    """Ratios that count as equal. Example: `[0.98, 1.02]`"""


@dataclass(frozen=True, kw_only=True)
class Slope(_Region, _Rule):
    """The least-squares slope over the levels of `x`, or its difference from that of `against`."""

    kind: Literal["slope"]
    """`slope`"""
    x: str
    """Factor along which the slope is taken."""
    scale: Literal["linear", "logx", "logy", "loglog"] = "linear"
    """Which of the two axes are logarithmic."""
    against: str | None = None
    """Arm whose slope is subtracted."""


@dataclass(frozen=True, kw_only=True)
class Count(_Region, _Rule):
    """At least `at_least` cells hold: a bound; with `against` a ratio, or an ordering by more than `margin`."""

    kind: Literal["count"]
    """`count`"""
    cells: by_shape("a factor or a list of factors", text=str, list=list[str])
    """Factor, or factors, whose combinations of levels are the cells."""
    against: str | None = None
    """Arm that `arm` is compared with in each cell."""
    margin: Number | None = None
    """By how much `arm` must be better in a cell."""


@dataclass(frozen=True, kw_only=True)
class Failures(_Region, _Rule):
    """The share of runs that fail lies in the region, or is smaller than that of `against`.

    A run fails where it diverges, or where its measure (of a curve the last point) is below `below` or above `above`.
    """

    kind: Literal["failures"]
    """`failures`"""
    below: Number | None = None
    """Level of the measure below which a run has failed."""
    above: Number | None = None
    """Level of the measure above which a run has failed."""
    against: str | None = None
    """Arm that must fail more often."""


@dataclass(frozen=True, kw_only=True)
class Ranks(_Rule):
    """The arm ranks before each of `others` over the levels of the factor `over`, such as tables.

    The cases are the levels, not the seeds: of each arm and level the mean over the seeds is ranked.  Friedman's test
    must tell the arms apart, and Wilcoxon's signed-rank test the arm from each other one.
    """

    kind: Literal["ranks"]
    """`ranks`"""
    over: str
    """Factor whose levels are the cases. Example: `table`"""
    others: list[str]
    """Arms that `arm` must rank before."""


KINDS: dict[str, type] = {
    get_args(cls.__annotations__["kind"])[0]: cls
    for cls in (Identity, Bound, Ratio, Ordering, Noninferiority, Equivalence, Slope, Count, Failures, Ranks)
}
RULE = "a rule, a list of rules, or one per profile"


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) and kind in KINDS else None


def _shape(value: Any) -> str | None:
    if isinstance(value, list):
        return "<list>"
    if not isinstance(value, dict):
        return None
    return "<profiles>" if "kind" not in value and set(value) & set(PROFILES) else "<one>"


Rule = picked(_kind, None, {f"<{kind}>": cls for kind, cls in KINDS.items()})
Rules = picked(_shape, RULE, {"<one>": Rule, "<list>": list[Rule]})
RulesByProfile = picked(_shape, RULE, {"<one>": Rule, "<list>": list[Rule], "<profiles>": dict[Profile, Rules]})


@dataclass(frozen=True, kw_only=True)
class Control(_Strict):
    """The same rules with arms replaced (elsewhere, where `experiment` or `at` say so), and what must come of it."""

    expect: Literal["not_reproduced", "not_met", "violated"]
    """`not_reproduced` of a broken arm; `not_met` of an A/A control, the same arm under other seeds; `violated` where the rules are those of an identity."""
    replace: dict[str, str] = field(default_factory=dict)
    """Arm of the rule, and the arm that takes its place; a part that then compares an arm with itself fails whatever the rows say, and one control must fail by its rows. Example: `{rmsnorm: identity}`"""
    without: Literal["idea"] | None = None
    """`idea` marks the arm that lacks what distinguishes the method: where it is reproduced too, the effect is not the method's. It must come out not reproduced, whatever `expect` says."""
    seed_offset: int | None = None
    """Added to the seeds of the replaced arm, for the same arm under other seeds. Example: `1000`"""
    experiment: str | None = None
    """Other experiment in which the rule is applied."""
    at: dict[str, Level] = field(default_factory=dict)
    """Other levels of factors at which the rule is applied."""
    why: str | None = None
    """Why this control must fail."""


@dataclass(frozen=True, kw_only=True)
class PaperValue(_Strict):
    """The paper's own number: a value, a range, or words; it never changes without an erratum."""

    value: Number | None = None
    """The number."""
    low: Number | None = None
    """Lower end of a range."""
    high: Number | None = None
    """Upper end of a range."""
    unit: str | None = None
    """Unit of the number. Example: `BLEU`"""
    text: str | None = None
    """The paper's words, where it gives no number. Example: `comparable`"""


@dataclass(frozen=True, kw_only=True)
class Tune(_Strict):
    """Every arm gets its own level of a factor: the best one on the tuning seeds."""

    factor: str
    """Factor whose level is tuned, with at least three levels in rising order wherever the claim is judged. Example: `lr`"""
    seeds: int = 2
    """How many tuning seeds: 1000, 1001 and so on."""
    by: str | None = None
    """Measure by which the level is chosen; that of the rule unless given."""
    start: list[float] | None = None
    """Neighbouring levels that every arm tries first; while its best one is the outermost, it tries the next one of the factor. All levels unless given. Example: `[0.0015, 0.004, 0.01]`"""


@dataclass(frozen=True, kw_only=True)
class Trivial(_Strict):
    """The predictor that the comparator must beat in `measure`, and so have learnt.

    The rows hold its score as the measure `trivial_<predictor>` (or as `predictor` itself).
    """

    predictor: str
    """Name of the predictor. Example: `bigram`"""
    measure: str | None = None
    """Measure that is compared; that of the rule unless given."""
    arm: str | None = None
    """Arm that must have learnt; the comparator of each rule, or its arm where it has none, unless given."""


@dataclass(frozen=True, kw_only=True)
class NothingTrained(_Strict):
    """Why a claim needs no trivial predictor."""

    none: str
    """Why nothing is trained here."""


@dataclass(frozen=True, kw_only=True)
class Fails(_Strict):
    """When a run of the claim has failed, though it did not diverge: its measure is below or above a level."""

    measure: str
    """Measure that tells a failed run."""
    below: Number | None = None
    """Level below which a run has failed."""
    above: Number | None = None
    """Level above which a run has failed."""


def _trivial(value: Any) -> str | None:
    if isinstance(value, dict):
        return "<none>" if "none" in value else "<predictor>"
    return "<name>" if isinstance(value, str) else None


TuneOrShared = by_shape("shared, or {factor: lr, seeds: 2}", text=Literal["shared"], mapping=Tune)
NameOrTrivial = picked(
    _trivial,
    "a predictor such as bigram, {predictor: bigram, measure: nats}, or {none: why nothing is trained}",
    {"<name>": str, "<predictor>": Trivial, "<none>": NothingTrained},
)
ArmOrSwaps = by_shape("an arm, or {arm of the rule: arm in its place}", text=str, mapping=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Claim(_Strict):
    """One sentence of the paper, with its number, its place, and a rule (or why it is untested)."""

    statement: str
    """The claim as one sentence. Example: `RMSNorm reaches the quality of LayerNorm.`"""
    paper_value: PaperValue
    """The paper's own number; it never changes without an erratum. Example: `{value: 26.8, unit: BLEU}`"""
    where: str
    """Where in the paper it stands. Example: `abstract; Table 3`"""
    fidelity: Fidelity
    """How near the setting is: the paper's own (`same`), smaller (`scaled`), another task (`proxy`)."""
    read: Read | None = None
    """How surely the paper's number is known: where it was read."""
    experiment: str | None = None
    """Experiment whose rows are judged."""
    rule: RulesByProfile | None = None
    """Rule, list of rules that must all hold, or one of these per profile."""
    controls: list[Control] = field(default_factory=list)
    """Broken arms that the same rule must reject."""
    positive: ArmOrSwaps | None = None
    """Arm that is known to show the effect, or what takes the place of which arm; nothing is not reproduced where it
    fails, or where all parts that the method fails would compare it with itself."""
    tune: TuneOrShared | None = None
    """How every arm gets its own level of a factor; `shared` where one recipe for all is the paper's point."""
    trivial: NameOrTrivial | None = None
    """Trivial predictor that the baseline must beat before anything is judged. Example: `bigram`"""
    mutants: list[str] = field(default_factory=list)
    """Arms that are nearly the method; the page says which of them the verdict cannot tell from it."""
    fails: Fails | None = None
    """Level of a measure beyond which a run has failed; a method of which single runs diverge is then not barred, and the verdict holds how many runs of each arm failed. The failure rate itself is judged by a rule of kind `failures`."""
    untested: str | None = None
    """Why there is no rule."""
    note: str | None = None
    """Remark for readers."""
    erratum: str | None = None
    """What was misread in an earlier version of the paper's number."""

    @property
    def predictor(self) -> Trivial | None:
        """The predictor that the comparator must beat; None where nothing is trained or none is named."""
        if isinstance(self.trivial, str):
            return Trivial(predictor=self.trivial)
        return self.trivial if isinstance(self.trivial, Trivial) else None

    @property
    def trained(self) -> bool:
        """Is the claim about trained arms?"""
        return self.predictor is not None or self.tune is not None

    @property
    def swaps(self) -> dict[str, str]:
        """What `positive` puts in the place of which arm; an arm alone takes that of every rule."""
        if isinstance(self.positive, dict):
            return self.positive
        shapes = self.rule.values() if isinstance(self.rule, dict) else [self.rule]
        rules = [rule for shape in shapes for rule in (shape if isinstance(shape, list) else [shape]) if rule]
        return {rule.arm: self.positive for rule in rules} if self.positive else {}


@dataclass(frozen=True, kw_only=True)
class Statement(_Strict):
    """An exact statement (an equation, an equivalence, a limit), verified on every row; never a headline."""

    statement: str
    """The statement as one sentence."""
    where: str
    """Where in the paper it stands. Example: `Eq. 4`"""
    experiment: str
    """Experiment whose rows are looked at."""
    rule: RulesByProfile
    """Rule of kind `identity`, or a list of them. Example: `{kind: identity, measure: error, arm: rmsnorm, bound: 1.0e-12}`"""
    controls: list[Control] = field(default_factory=list)
    """Broken arms that violate the statement."""
    read: Read | None = None
    """How surely the statement is known: where it was read."""
    note: str | None = None
    """Remark for readers."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere(_Strict):
    """What others measured: shown beside our verdict, judged by no rule."""

    claim: str
    """Claim that it bears on."""
    who: str
    """Who measured it. Example: `Loshchilov et al., 2025`"""
    where: str
    """Where it is written. Example: `arXiv:2410.01131, Table 2`"""
    setting: str
    """Model and data. Example: `130M parameters on C4`"""
    says: str
    """Their result in one line."""
    agrees: Literal["yes", "no", "partly"]
    """Whether it agrees with the claim."""


@dataclass(frozen=True, kw_only=True)
class Figure(_Strict):
    """A drawing of rows on the paper's page: shown, never judged.

    A `measure` that is a list is drawn over `x`, another list measure; a number over the levels of the factor `x`;
    without `x` a number is a dot per arm and seed, a list is drawn over its index.
    """

    title: str
    """Title of what is shown."""
    experiment: str
    """Experiment whose rows are shown."""
    measure: str
    """Measure that is shown."""
    x: str | None = None
    """Factor or list measure along the horizontal axis."""
    arms: list[str] | None = None
    """Arms that are shown; all unless given."""
    at: dict[str, Level] = field(default_factory=dict)
    """Fixed levels of factors."""
    where: str | None = None
    """Figure or table of the paper that it corresponds to."""
    about: str | None = None
    """One sentence for the caption."""


@dataclass(frozen=True, kw_only=True)
class Ranking(_Strict):
    """A table of the arms' average ranks in `measure` over the levels of a factor: shown, never judged.

    With the tests of Friedman (all arms alike) and Wilcoxon (`arm` against each other one), the levels being the cases.
    """

    title: str
    """Title of what is shown."""
    experiment: str
    """Experiment whose rows are shown."""
    measure: str
    """Measure that is shown."""
    over: str
    """Factor whose levels are the cases that are ranked."""
    arm: str
    """Arm that is compared with each other one."""
    arms: list[str] | None = None
    """Arms that are shown; all unless given."""
    where: str | None = None
    """Figure or table of the paper that it corresponds to."""
    about: str | None = None
    """One sentence for the caption."""


@dataclass(frozen=True, kw_only=True)
class Provided(_Strict):
    """A drop-in method: the public name of `method.py` and the slot of a model that it fits."""

    slot: Slot
    """Slot of a model that it fits."""
    name: str
    """Public name in method.py. Example: `RMSNorm`"""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned in an experiment at a profile: the factor, the tuning seeds, and the measure that chooses."""

    factor: str
    seeds: list[int]
    measure: str
    better: Literal["lower", "higher"]
    start: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one experiment is at one profile: `config` holds the fields of its Config dataclass but the factors."""

    arms: list[str]
    factors: dict[str, list[Level]]
    seeds: list[int]
    tuning_seeds: list[int]
    offset_seeds: dict[str, list[int]]  # seeds that only the controls of an arm need
    batched: bool
    ranks: int | None = None  # processes that share one trial
    exclusive: bool
    module: str | None  # None for the paper's own experiment.py
    function: str
    config: dict[str, Any]
    tune: Tuning | None = None


@dataclass(frozen=True, kw_only=True)
class Paper(_Strict):
    """One paper as `paper.yaml` states it."""

    slug: str
    """Name of the folder, which is also that of the Python package. Example: `rmsnorm`"""
    title: str
    """Title of the paper."""
    authors: list[str]
    """Authors as the paper names them. Example: `[Biao Zhang, Rico Sennrich]`"""
    year: int
    """Year of the publication that is cited."""
    venue: str
    """Venue with its year. Example: `NeurIPS 2019`"""
    family: Family
    """What the method changes in a network."""
    summary: str
    """What the paper proposes, in one or two sentences."""
    equation: str
    """The method in LaTeX."""
    headline: str
    """The one claim that the paper is known for; never an identity. Example: `quality-parity`"""
    measures: dict[str, Measure]
    """Every number that an experiment returns, by its name."""
    experiments: dict[str, Experiment]
    """Every function that is measured, by its name."""
    claims: dict[str, Claim]
    """What the paper says and we judge, by a short name of each claim."""
    profiles: dict[Profile, dict[str, Any]]
    """How large each experiment is at each profile: `seeds`, and for every experiment that runs there its settings."""
    identities: dict[str, Statement] = field(default_factory=dict)
    """Exact statements, verified or violated, by a short name of each."""
    elsewhere: list[Elsewhere] = field(default_factory=list)
    """What others measured."""
    arxiv: str | None = None
    """Identifier at arXiv. Example: `'1910.07467'`"""
    doi: str | None = None
    """DOI. Example: `10.1000/182`"""
    url: str | None = None
    """Address of the paper, where it has neither."""
    code: str | None = None
    """The authors' code, at a revision. Example: `bzhangGo/rmsnorm@2e726f1`"""
    withdrawn: str | None = None
    """Who withdrew the paper, when and why; its page stays and says so."""
    provides: list[Provided] = field(default_factory=list)
    """Drop-in methods of method.py."""
    figures: list[Figure] = field(default_factory=list)
    """Drawings of rows on the paper's page: shown, never judged."""
    rankings: list[Ranking] = field(default_factory=list)
    """Tables of average ranks on the paper's page: shown, never judged."""

    def experiments_in(self, profile: str) -> list[str]:
        """The experiments that run at a profile, in the order in which the file declares them."""
        return [name for name in self.experiments if name in self.profiles.get(profile, {})]

    def shape(self, profile: str, experiment: str) -> tuple[list[str], dict[str, list[Level]]]:
        """Arms and factors of an experiment at a profile where it runs."""
        declared, here = self.experiments[experiment], self.profiles[profile][experiment]
        return here.get("arms") or declared.arms, {**declared.factors, **here.get("factors", {})}

    def settings(self, profile: str, experiment: str) -> Settings:
        """Arms, factors, seeds and config of an experiment at a profile; ReproError where it does not run there."""
        if experiment not in self.experiments_in(profile):
            raise ReproError(
                f"{self.slug}: experiment '{experiment}' does not run at profile '{profile}'; "
                f"there run: {', '.join(self.experiments_in(profile)) or 'none'}"
            )
        declared, here = self.experiments[experiment], copy.deepcopy(self.profiles[profile][experiment])
        there = self.profiles[profile]
        first = here.get("first_seed", there.get("first_seed", 0))
        seeds = list(range(first, first + (here.get("seeds") or there["seeds"])))
        tune = self.tuning(profile, experiment)
        module, function = declared.resolved(experiment)
        arms, factors = self.shape(profile, experiment)
        offset: dict[str, set[int]] = {}
        for claim_id, claim in self.claims.items():
            for control in claim.controls if self.rules(claim_id, profile) else ():
                if control.seed_offset and experiment == (control.experiment or claim.experiment):
                    for arm in control.replace.values():
                        offset.setdefault(arm, set()).update(seed + control.seed_offset for seed in seeds)
        return Settings(
            arms=list(arms),
            factors=copy.deepcopy(factors),
            seeds=seeds,
            tuning_seeds=list(tune.seeds) if tune else here.get("tuning_seeds", []),
            tune=tune,
            batched=here.get("batched", False),
            ranks=here.get("ranks"),
            offset_seeds={arm: sorted(moved) for arm, moved in offset.items()},
            exclusive=declared.exclusive,
            module=module,
            function=function,
            config={k: v for k, v in here.items() if k not in RESERVED},
        )

    def rules(self, claim_id: str, profile: str) -> list[Any]:
        """The rules of a claim or an identity at a profile, which must all hold; none where it is not judged there."""
        judged = self.claims.get(claim_id) or self.identities[claim_id]
        if profile == "smoke" or judged.rule is None or judged.experiment not in self.experiments_in(profile):
            return []
        rules = judged.rule.get(profile, []) if isinstance(judged.rule, dict) else judged.rule
        return rules if isinstance(rules, list) else [rules]

    def judged_in(self, profile: str) -> list[str]:
        """The claims that have a verdict at a profile."""
        return [claim_id for claim_id in self.claims if self.rules(claim_id, profile)]

    def identities_in(self, profile: str) -> list[str]:
        """The identities that are verified at a profile."""
        return [name for name in self.identities if self.rules(name, profile)]

    def judged_profiles(self, claim_id: str) -> list[str]:
        """The profiles at which a claim (or an identity) has a verdict."""
        return [profile for profile in self.profiles if self.rules(claim_id, profile)]

    def headline_for(self, profile: str) -> str | None:
        """The headline where a profile judges it, else None."""
        return self.headline if self.headline in self.judged_in(profile) else None

    def tuning(self, profile: str, experiment: str) -> Tuning | None:
        """What is tuned in an experiment at a profile: what the first of its claims there says that tunes."""
        for claim_id in self.judged_in(profile):
            claim = self.claims[claim_id]
            if claim.experiment == experiment and isinstance(claim.tune, Tune):
                measure = claim.tune.by or self.rules(claim_id, profile)[0].measure
                return Tuning(
                    factor=claim.tune.factor,
                    seeds=list(range(1000, 1000 + claim.tune.seeds)),
                    measure=measure,
                    better=self.measures[measure].better,
                    start=claim.tune.start,
                )
        return None

    def registered_experiments(self, profile: str) -> list[str]:
        """The experiments whose rows the claims of a profile and their controls read; those of identities
        alone are none.
        """
        claims = [self.claims[claim_id] for claim_id in self.judged_in(profile)]
        names = {name for c in claims for name in (c.experiment, *(x.experiment for x in c.controls)) if name}
        return sorted(names)

    def registration(self, profile: str) -> str:
        """Digest of everything that decides a verdict at this profile; prose, units and labels are left out."""
        from repro.store import digest

        judged = self.judged_in(profile)
        rules = {claim_id: self.rules(claim_id, profile) for claim_id in judged}
        names = {
            name
            for each in rules.values()
            for rule in each
            for name in (rule.measure, rule.steps_to and rule.steps_to.axis)
            if name
        } | {
            name
            for claim_id in judged
            for name in (
                getattr(self.claims[claim_id].fails, "measure", None),
                getattr(self.claims[claim_id].predictor, "measure", None),
                getattr(self.claims[claim_id].tune, "by", None),
            )
            if name
        }
        planned = {name: self.settings(profile, name) for name in self.registered_experiments(profile)}
        return digest(
            {
                "claims": {
                    c: {
                        "experiment": self.claims[c].experiment,
                        **{
                            key: as_dict(value)
                            for key in ("positive", "tune", "trivial", "fails", "mutants")
                            if (value := getattr(self.claims[c], key))
                        },
                        "rules": [as_dict(rule, drop={"name"}) for rule in rules[c]],
                        "controls": [as_dict(x, drop={"why"}) for x in self.claims[c].controls],
                    }
                    for c in judged
                },
                "measures": {
                    name: as_dict(self.measures[name], drop={"unit", "about", "positive", "skewed"}) for name in names
                },
                "headline": self.headline_for(profile),
                "planned": {
                    name: {"factors": plan.factors, "seeds": plan.seeds, "tuning": plan.tuning_seeds}
                    for name, plan in planned.items()
                },
            }
        )


@dataclass(frozen=True, kw_only=True)
class Params(_Strict):
    """`params.yaml`: what holds for the whole suite."""

    profile: Profile
    """Profile that runs unless another is named. Example: `cpu`"""
    device: str
    """Device of a run: auto, cpu, cuda or cuda:0."""
    seeds: int | None
    """Number of seeds in place of the planned one; null for the planned one."""
    time_limit: dict[Profile, Number]
    """Seconds that a profile of one paper may take."""


def controlled(rule: Any, control: Control) -> Any:
    """The rule that a control must fail: its arms replaced, its `at` added (a level fixed there ends `per`)."""
    changed: dict[str, Any] = {"arm": control.replace.get(rule.arm, rule.arm), "at": {**rule.at, **control.at}}
    if getattr(rule, "against", None):
        changed["against"] = control.replace.get(rule.against, rule.against)
    if getattr(rule, "others", None):
        changed["others"] = [control.replace.get(name, name) for name in rule.others]
    if rule.per in control.at:
        changed |= {"per": None, "at_least": None}
    return replace(rule, **changed)


def as_dict(value: Any, drop: Set[str] = frozenset()) -> Any:
    """An object of this module as the plain data of `paper.yaml`, without what is not set and the fields of `drop`."""
    if is_dataclass(value):
        pairs = ((f.name.rstrip("_"), getattr(value, f.name)) for f in fields(value) if f.name not in drop)
        return {name: as_dict(v) for name, v in pairs if v is not None}
    if isinstance(value, dict):
        return {k: as_dict(v) for k, v in value.items()}
    return [as_dict(v) for v in value] if isinstance(value, list) else value


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `paper.yaml`, for editors."""
    from repro.files.schema import adapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **adapter(Paper).json_schema()}
