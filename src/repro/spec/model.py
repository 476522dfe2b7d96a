"""`paper.yaml` and `params.yaml` as frozen dataclasses, and what a profile resolves to.

pydantic checks files against them (`spec.checks`), strictly: no unknown key, no text for a number.
"""

import copy
import functools
import types
from collections.abc import Callable, Set
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from repro.errors import ReproError
from repro.files.paths import PROFILES

Profile = Literal["smoke", "cpu", "long", "gpu", "paper"]
Family = Literal["normalization", "activation", "initialization", "residual", "training"]
Fidelity = Literal["analytic", "same", "scaled", "proxy"]
Slot = Literal["norm", "act", "placement", "init", "weight", "optimizer"]
FAMILIES = get_args(Family)
Level = bool | int | float | str
RESERVED = (
    "batched",
    "ranks",
    "factors",
    "seeds",
    "tuning_seeds",
    "arms",
)  # in a profile's experiment; the rest is its Config


class _Choice:
    """Marks a union whose member a function picks, by name; pydantic is imported only when a file is checked."""

    def __init__(self, pick: Callable[[Any], str | None], members: dict[str, Any]):
        self.pick, self.members = pick, members

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        choices = {name: handler.generate_schema(member) for name, member in self.members.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.pick)


class _Strict:
    __pydantic_config__ = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "alias_generator": lambda name: name.rstrip("_"),
    }


@dataclass(frozen=True, kw_only=True)
class Measure(_Strict):
    """A number (or a curve) that an experiment returns; `better` is needed where a rule compares arms in it.

    `positive`: always above 0, so that ratios of it make sense.  `skewed`: a worst case, a maximum or an R2, of which a
    rule needs `statistic: sign` or at least 10 seeds.
    """

    unit: str
    better: Literal["lower", "higher"] | None = None
    positive: bool = False
    skewed: bool = False
    diverged: Literal["worst"] = "worst"
    about: str | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment(_Strict):
    """A function of `experiment.py` (or of `module`), its arms and the levels of its factors."""

    arms: list[str]
    factors: dict[str, list[Level]] = field(default_factory=dict)
    exclusive: bool = False
    module: str | None = None
    about: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contrast(_Strict):
    """The first level minus (or over) the second, within each arm and seed."""

    factor: str
    levels: list[Level]
    as_: Literal["difference", "ratio"]


@dataclass(frozen=True, kw_only=True)
class StepsTo(_Strict):
    """The first entry of `axis` at which the curve is as good as `target`; `best` is the best of `against`."""

    target: Annotated[
        float | Literal["best"],
        _Choice(
            lambda v: "<text>" if isinstance(v, str) else "<number>", {"<number>": float, "<text>": Literal["best"]}
        ),
    ]
    axis: str


@dataclass(frozen=True, kw_only=True)
class _Rule(_Strict):
    measure: str
    arm: str
    level: float = 0.95
    at: dict[str, Level] = field(default_factory=dict)
    per: str | None = None
    at_least: int | None = None
    contrast: Contrast | None = None
    steps_to: StepsTo | None = None
    statistic: Literal["t", "sign"] = "t"
    pair: bool = True
    name: str | None = None

    @property
    def cell_factors(self) -> list[str]:
        """The factors over whose cells a count runs; none for other kinds."""
        cells = getattr(self, "cells", [])
        return [cells] if isinstance(cells, str) else cells


@dataclass(frozen=True, kw_only=True)
class _Region(_Strict):
    min: float | None = None
    max: float | None = None
    between: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Identity(_Region, _Rule):
    """On every row, and for every element of a list: |value| < bound, or the value lies in the region."""

    kind: Literal["identity"]
    bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bound(_Region, _Rule):
    """The mean of the measure lies in the region."""

    kind: Literal["bound"]


@dataclass(frozen=True, kw_only=True)
class Ratio(_Region, _Rule):
    """arm / against lies in the region, on the log scale."""

    kind: Literal["ratio"]
    against: str


@dataclass(frozen=True, kw_only=True)
class Ordering(_Rule):
    """Better than `against` by more than `margin`."""

    kind: Literal["ordering"]
    against: str
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Noninferiority(_Rule):
    """Not worse than `against` by `margin` or more."""

    kind: Literal["noninferiority"]
    against: str
    margin: float


@dataclass(frozen=True, kw_only=True)
class Equivalence(_Rule):
    """|arm - against| < margin, or arm / against within `ratio` on the log scale."""

    kind: Literal["equivalence"]
    against: str
    margin: float | None = None
    ratio: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Slope(_Region, _Rule):
    """The least-squares slope over the levels of `x`, or its difference from that of `against`."""

    kind: Literal["slope"]
    x: str
    scale: Literal["linear", "logx", "logy", "loglog"] = "linear"
    against: str | None = None


@dataclass(frozen=True, kw_only=True)
class Count(_Region, _Rule):
    """At least `at_least` cells hold: a bound; with `against` a ratio, or an ordering by more than `margin`."""

    kind: Literal["count"]
    cells: Annotated[
        str | list[str],
        _Choice(lambda v: "<list>" if isinstance(v, list) else "<one>", {"<one>": str, "<list>": list[str]}),
    ]
    against: str | None = None
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Failures(_Region, _Rule):
    """The share of runs that fail lies in the region, or is smaller than that of `against`.

    A run fails where it diverges, or where its measure (of a curve the last point) is below `below` or above `above`.
    """

    kind: Literal["failures"]
    below: float | None = None
    above: float | None = None
    against: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranks(_Rule):
    """The arm ranks before each of `others` over the levels of the factor `over`, such as tables.

    The cases are the levels, not the seeds: of each arm and level the mean over the seeds is ranked.  Friedman's test
    must tell the arms apart, and Wilcoxon's signed-rank test the arm from each other one.
    """

    kind: Literal["ranks"]
    over: str
    others: list[str]


KINDS: dict[str, type] = {
    get_args(cls.__annotations__["kind"])[0]: cls
    for cls in (Identity, Bound, Ratio, Ordering, Noninferiority, Equivalence, Slope, Count, Failures, Ranks)
}


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>" if isinstance(kind, str) and kind in KINDS else None


def _shape(value: Any) -> str:
    if isinstance(value, list):
        return "<list>"
    return "<profiles>" if isinstance(value, dict) and "kind" not in value and set(value) & set(PROFILES) else "<one>"


Rule = Annotated[
    Identity | Bound | Ratio | Ordering | Noninferiority | Equivalence | Slope | Count | Failures | Ranks,
    _Choice(_kind, {f"<{kind}>": cls for kind, cls in KINDS.items()}),
]
Rules = Annotated[Rule | list[Rule], _Choice(_shape, {"<one>": Rule, "<list>": list[Rule]})]
RulesByProfile = Annotated[
    Rule | list[Rule] | dict[Profile, Rules],
    _Choice(_shape, {"<one>": Rule, "<list>": list[Rule], "<profiles>": dict[Profile, Rules]}),
]


@dataclass(frozen=True, kw_only=True)
class Control(_Strict):
    """The same rules with arms replaced (elsewhere, where `experiment` or `at` say so), and what must come of it.

    `expect`: not_reproduced of a broken arm; not_met (anything but reproduced) of an A/A control, the same arm under
    other seeds; violated where the rules are those of an identity.  `without: idea` marks the arm that lacks what
    distinguishes the method: where it is reproduced too, the effect is not the method's.
    """

    expect: Literal["not_reproduced", "not_met", "violated"]
    replace: dict[str, str] = field(default_factory=dict)
    without: Literal["idea"] | None = None
    seed_offset: int | None = None
    experiment: str | None = None
    at: dict[str, Level] = field(default_factory=dict)
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class PaperValue(_Strict):
    """The paper's own number: a value, a range, or words; it never changes without an erratum."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str | None = None
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tune(_Strict):
    """Every arm of the claim has its own level of `factor`: the best on `seeds` tuning seeds, from 1000 on.

    `by` is the measure that is tuned, that of the claim's first rule unless given.
    """

    factor: str
    seeds: int = 2
    by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trivial(_Strict):
    """The predictor that the comparator must beat in `measure`, and so have learnt; or why nothing is trained.

    The rows hold its score as the measure `trivial_<predictor>` (or as `predictor` itself).
    """

    predictor: str | None = None
    measure: str | None = None
    none: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fails(_Strict):
    """When a run of the claim has failed, though it did not diverge: its measure is below or above a level."""

    measure: str
    below: float | None = None
    above: float | None = None


TuneOrShared = Annotated[
    Tune | Literal["shared"],
    _Choice(
        lambda v: "<text>" if isinstance(v, str) else "<mapping>", {"<text>": Literal["shared"], "<mapping>": Tune}
    ),
]
NameOrTrivial = Annotated[
    str | Trivial,
    _Choice(
        lambda v: "<mapping>" if isinstance(v, dict | Trivial) else "<name>", {"<name>": str, "<mapping>": Trivial}
    ),
]
ArmOrSwaps = Annotated[
    str | dict[str, str],
    _Choice(lambda v: "<swaps>" if isinstance(v, dict) else "<arm>", {"<arm>": str, "<swaps>": dict[str, str]}),
]
Read = Literal["full text", "abstract", "repository", "second hand"]


@dataclass(frozen=True, kw_only=True)
class Claim(_Strict):
    """One sentence of the paper, with its number, its place, and a rule (or why it is untested)."""

    statement: str
    paper_value: PaperValue
    where: str
    fidelity: Fidelity
    read: Read | None = None
    experiment: str | None = None
    rule: RulesByProfile | None = None
    tune: TuneOrShared | None = None
    trivial: NameOrTrivial | None = None
    controls: list[Control] = field(default_factory=list)
    positive: ArmOrSwaps | None = None
    mutants: list[str] = field(default_factory=list)
    fails: Fails | None = None
    untested: str | None = None
    note: str | None = None
    erratum: str | None = None

    @property
    def predictor(self) -> Trivial | None:
        """The predictor that the comparator must beat; None where nothing is trained or none is named."""
        trivial = Trivial(predictor=self.trivial) if isinstance(self.trivial, str) else self.trivial
        return trivial if trivial and trivial.predictor else None

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
    """An exact statement of the paper (an equation, an equivalence, a limit), which holds on every row or does not."""

    statement: str
    where: str
    experiment: str
    rule: RulesByProfile
    controls: list[Control] = field(default_factory=list)
    read: Read | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figure(_Strict):
    """A drawing of rows on the paper's page: shown, never judged.

    A `measure` that is a list is drawn over `x`, another list measure; a number over the levels of the factor `x`;
    without `x` a number is a dot per arm and seed, a list is drawn over its index.
    """

    title: str
    experiment: str
    measure: str
    x: str | None = None
    arms: list[str] | None = None
    at: dict[str, Level] = field(default_factory=dict)
    where: str | None = None
    about: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ranking(_Strict):
    """A table of the arms' average ranks in `measure` over the levels of a factor: shown, never judged.

    With the tests of Friedman (all arms alike) and Wilcoxon (`arm` against each other one), the levels being the cases.
    """

    title: str
    experiment: str
    measure: str
    over: str
    arm: str
    arms: list[str] | None = None
    where: str | None = None
    about: str | None = None


@dataclass(frozen=True, kw_only=True)
class Provided(_Strict):
    """A drop-in method: the public name of `method.py` and the slot of a model that it fits."""

    slot: Slot
    name: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is tuned in an experiment at a profile: the factor, the tuning seeds, and the measure that chooses."""

    factor: str
    seeds: list[int]
    measure: str
    better: Literal["lower", "higher"]


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
    module: str | None
    config: dict[str, Any]
    tune: Tuning | None = None


@dataclass(frozen=True, kw_only=True)
class Paper(_Strict):
    """One paper as `paper.yaml` states it."""

    slug: str
    title: str
    authors: list[str]
    year: int
    venue: str
    family: Family
    summary: str
    equation: str
    headline: str
    measures: dict[str, Measure]
    experiments: dict[str, Experiment]
    claims: dict[str, Claim]
    profiles: dict[Profile, dict[str, Any]]
    identities: dict[str, Statement] = field(default_factory=dict)
    arxiv: str | None = None
    doi: str | None = None
    url: str | None = None
    code: str | None = None
    withdrawn: str | None = None  # who withdrew it, when and why; the page stays and says so
    provides: list[Provided] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)

    def experiments_in(self, profile: str) -> list[str]:
        """The experiments that run at a profile, in the order in which the file declares them."""
        return [name for name in self.experiments if name in self.profiles.get(profile, {})]

    def settings(self, profile: str, experiment: str) -> Settings:
        """Arms, factors, seeds and config of an experiment at a profile; ReproError where it does not run there."""
        if experiment not in self.experiments_in(profile):
            raise ReproError(
                f"{self.slug}: experiment '{experiment}' does not run at profile '{profile}'; "
                f"there run: {', '.join(self.experiments_in(profile)) or 'none'}"
            )
        declared, here = self.experiments[experiment], copy.deepcopy(self.profiles[profile][experiment])
        seeds = list(range(here.get("seeds") or self.profiles[profile]["seeds"]))
        tune = self.tuning(profile, experiment)
        offset: dict[str, set[int]] = {}
        for claim_id, claim in self.claims.items():
            for control in claim.controls if self.rules(claim_id, profile) else ():
                if control.seed_offset and experiment == (control.experiment or claim.experiment):
                    for arm in control.replace.values():
                        offset.setdefault(arm, set()).update(seed + control.seed_offset for seed in seeds)
        return Settings(
            arms=here.get("arms") or list(declared.arms),
            factors={**declared.factors, **here.get("factors", {})},
            seeds=seeds,
            tuning_seeds=list(tune.seeds) if tune else here.get("tuning_seeds", []),
            tune=tune,
            batched=here.get("batched", False),
            ranks=here.get("ranks"),
            offset_seeds={arm: sorted(moved) for arm, moved in offset.items()},
            exclusive=declared.exclusive,
            module=declared.module,
            config={k: v for k, v in here.items() if k not in RESERVED},
        )

    def rules(self, claim_id: str, profile: str) -> list[Rule]:
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
                )
        return None

    def model_dump(self, mode: str = "json", exclude_none: bool = True) -> dict[str, Any]:
        """The paper as plain data, defaults filled in, spelled as in pydantic; only these modes are offered."""
        if (mode, exclude_none) != ("json", True):
            raise ValueError("model_dump offers mode='json', exclude_none=True alone")
        return as_dict(self)

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
        claims = [self.claims[claim_id] for claim_id in judged]
        places = {place for c in claims for place in (c.experiment, *(x.experiment for x in c.controls)) if place}
        planned = {name: self.settings(profile, name) for name in places}
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
    device: str
    seeds: int | None
    time_limit: dict[Profile, float]


def controlled(rule: Rule, control: Control) -> Rule:
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


# ---- from plain data to the classes -------------------------------------------------------------------------------


def as_member(kind: Any, value: Any) -> Any:
    """The type that `value` is of, where `kind` leaves a choice."""
    for mark in getattr(kind, "__metadata__", ()):
        return as_member(mark.members.get(mark.pick(value)), value)
    if get_origin(kind) in (Union, types.UnionType):
        rest = [arg for arg in get_args(kind) if arg is not types.NoneType]
        return as_member(rest[0], value) if len(rest) == 1 else None
    return kind


@functools.cache
def fields_of(cls: type) -> dict[str, tuple[str, Any]]:
    return {f.name.rstrip("_"): (f.name, f.type) for f in fields(cls)}


def build(kind: Any, value: Any) -> Any:
    """Checked plain data as `kind`."""
    if not isinstance(value, dict | list):
        return value
    kind = as_member(kind, value)
    if isinstance(value, list):
        item = get_args(kind)[0] if get_args(kind) else None
        return [build(item, v) for v in value]
    if is_dataclass(kind):
        known = fields_of(kind)
        return kind(**{known[k][0]: build(known[k][1], v) for k, v in value.items()})
    item = get_args(kind)[1] if get_args(kind) else None
    return value if item in (None, Any) else {k: build(item, v) for k, v in value.items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `paper.yaml`, for editors."""
    from pydantic import TypeAdapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TypeAdapter(Paper).json_schema()}
