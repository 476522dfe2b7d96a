"""What a `paper.yaml` must hold; each complaint is one line with its place in the file."""

import keyword
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from repro.errors import did_you_mean
from repro.files.paths import SLUG
from repro.files.schema import checked
from repro.files.strict import told
from repro.spec.likes import resolve_likes
from repro.spec.model import (
    Claim,
    Control,
    Experiment,
    Figure,
    Level,
    Paper,
    Params,
    Ranking,
    Statement,
    Tune,
    controlled,
)
from repro.spec.yaml import Where, YamlFile


def made(file: YamlFile, cls: type) -> Any:
    """The content of a file as `cls`; what does not fit, or does not fit together, is refused in one line."""
    if not isinstance(file.data, dict):
        file.fail((), f"{_is(file.data)}; write a mapping of keys")
    if cls is Paper:
        resolve_likes(file)
    one = checked(file, cls, file.data)
    {Paper: paper, Params: params}[cls](file, one)
    return one


def _is(value: Any) -> str:
    return told(value, yaml=True)


_ALMOST = re.compile(r"[+-]?\d+(?=[.,e])([.,]\d*)?(e[+-]?\d*)?[a-z]?", re.IGNORECASE)  # 1e-3x, 0,02, "1e-4"


SEEDS = 2**31  # every generator takes seeds below
RANKS = 1024  # processes of one trial
TRIALS = 100_000  # of one experiment at one profile


def paper(file: YamlFile, paper: Paper) -> None:
    fail, folder = file.fail, file.path.resolve().parent.name
    _check_texts(file, file.data, ())
    if paper.slug != folder:
        fail(("slug",), f"is '{paper.slug}', but the folder is '{folder}'; write slug: {folder}")
    if not SLUG.fullmatch(paper.slug) or keyword.iskeyword(paper.slug):
        fail(("slug",), f"is '{paper.slug}', which cannot be imported; name the folder with a-z, 0-9 and _, at most 60")
    if not 1900 <= paper.year <= 2100:
        fail(("year",), f"is {paper.year}; write a year such as 2019")
    if not (paper.arxiv or paper.doi or paper.url):
        fail((), "'arxiv' is missing (or write doi: or url:)")
    if paper.arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?|[a-z-]+(\.[A-Z]{2})?/\d{7}", paper.arxiv):
        fail(("arxiv",), f"is '{paper.arxiv}'; write an identifier such as '1910.07467'")
    if paper.doi and not re.fullmatch(r"10\.\d{4,9}/[^\s<>\"'{}\\]+", paper.doi):
        fail(("doi",), f"is '{paper.doi}'; write an identifier such as 10.1000/182")
    if paper.url and not re.fullmatch(r"https?://[^\s<>\"'{}\\]+", paper.url):
        fail(("url",), f"is '{paper.url}'; write an address that begins with https://")
    if paper.code and not re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", paper.code):
        fail(("code",), f"is '{paper.code}'; write owner/repository@revision, or null")
    for name in ("authors", "claims", "experiments", "measures", "profiles"):
        if not getattr(paper, name):
            fail((name,), "is empty; write at least one")
    for i, one in enumerate(paper.provides):
        if not one.name.isidentifier():
            fail(("provides", i, "name"), f"is '{one.name}'; write a name of method.py, such as RMSNorm")
    for name in paper.claims:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", name):
            fail(("claims", name), "is no name; write letters, digits, - and _")
    for name, experiment in paper.experiments.items():
        if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
            fail(("experiments", name), "cannot be a function; write a name of letters, digits and _")
        _check_factors(file, ("experiments", name), experiment.arms, experiment.factors)
        _check_module(file, ("experiments", name, "module"), experiment.module)
        _check_function(file, ("experiments", name, "function"), experiment)
    for profile, settings in paper.profiles.items():
        _check_profile(file, paper, profile, settings)
    for claim_id, claim in paper.claims.items():
        _check_claim(file, paper, claim_id, claim)
    for kind in ("figures", "rankings"):
        for i, shown in enumerate(getattr(paper, kind)):
            _check_shown(file, paper, shown, (kind, i))
    for name, statement in paper.identities.items():
        _check_identity(file, paper, name, statement)
    for i, other in enumerate(paper.elsewhere):
        if other.claim not in {**paper.claims, **paper.identities}:
            fail(("elsewhere", i, "claim"), f"no claim '{other.claim}'{did_you_mean(other.claim, paper.claims)}")
    if paper.headline not in paper.claims:
        if paper.headline in paper.identities:
            fail(("headline",), f"'{paper.headline}' is an identity; write the claim that the paper is known for")
        fail(("headline",), f"no claim '{paper.headline}'{did_you_mean(paper.headline, paper.claims)}")
    if paper.claims[paper.headline].untested is None and not paper.judged_profiles(paper.headline):
        fail(("headline",), f"claim '{paper.headline}' is judged at no profile; write one that is")


def _check_shown(file: YamlFile, paper: Paper, shown: Figure | Ranking, where: Where) -> None:
    """A figure or a ranking names an experiment, and its measures, arms and factors."""
    if shown.experiment not in paper.experiments:
        hint = did_you_mean(shown.experiment, paper.experiments)
        file.fail((*where, "experiment"), f"no experiment '{shown.experiment}'{hint}")
    declared = paper.experiments[shown.experiment]
    if shown.measure not in paper.measures:
        file.fail((*where, "measure"), f"no measure '{shown.measure}'{did_you_mean(shown.measure, paper.measures)}")
    for i, arm in enumerate(shown.arms or ()):
        if arm not in declared.arms:
            file.fail(
                (*where, "arms", i),
                f"no arm '{arm}' in experiment '{shown.experiment}'{did_you_mean(arm, declared.arms)}",
            )
    if isinstance(shown, Ranking):
        if shown.over not in declared.factors:
            file.fail((*where, "over"), f"no factor '{shown.over}'{did_you_mean(shown.over, declared.factors)}")
        if shown.arm not in (shown.arms or declared.arms):
            file.fail(
                (*where, "arm"),
                f"no arm '{shown.arm}' among those ranked{did_you_mean(shown.arm, shown.arms or declared.arms)}",
            )
        if paper.measures[shown.measure].better is None:
            file.fail(("measures", shown.measure), "a ranking orders by it; write better: lower, or better: higher")
        return
    if shown.x is not None and shown.x not in {*paper.measures, *declared.factors}:
        known = [*declared.factors, *paper.measures]
        file.fail(
            (*where, "x"), f"no factor of '{shown.experiment}' and no measure '{shown.x}'{did_you_mean(shown.x, known)}"
        )
    if any(isinstance(level, bool | str) for level in declared.factors.get(shown.x, ())):
        file.fail((*where, "x"), f"the levels of '{shown.x}' are no numbers; leave x out for a dot per seed")
    for factor in shown.at:
        if factor not in declared.factors:
            file.fail((*where, "at", factor), f"no factor '{factor}'{did_you_mean(factor, declared.factors)}")
        every = [
            *declared.factors[factor],
            *(
                v
                for p in paper.profiles
                if shown.experiment in paper.experiments_in(p)
                for v in paper.shape(p, shown.experiment)[1][factor]
            ),
        ]
        if shown.at[factor] not in every:
            levels = ", ".join(map(str, dict.fromkeys(every)))
            file.fail((*where, "at", factor), f"{factor} has no level {shown.at[factor]!r}; it has {levels}")


def _check_texts(file: YamlFile, value: Any, where: Where) -> None:
    """No text of the file is empty."""
    if isinstance(value, str) and not value.strip():
        file.fail(where, "is empty; write a text")
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_texts(file, item, (*where, key))


def _check_module(file: YamlFile, where: Where, module: str | None) -> None:
    """An experiment that is not in the paper's own file is in this suite."""
    from repro.run.provenance import module_file

    if module is not None and not re.fullmatch(r"repro(\.\w+)+", module):
        file.fail(where, f"is '{module}'; write a module of this suite, such as repro.experiments.decoder")
    if module is not None and module_file(module) is None:
        file.fail(where, f"no module '{module}' in this suite; write one such as repro.experiments.decoder")


def _check_function(file: YamlFile, where: Where, experiment: Experiment) -> None:
    """`function:` names a function of a module, or of the module that stands before the colon."""
    if experiment.function is None:
        return
    module, colon, name = experiment.function.rpartition(":")
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        file.fail(where, f"is '{experiment.function}'; write the name of a function, or module:function")
    if colon and experiment.module is not None:
        file.fail(where, "names its module; leave out module")
    if colon:
        _check_module(file, where, module)


def _check_factors(file: YamlFile, where: Where, arms: list[str] | None, factors: dict[str, list[Level]]) -> None:
    for key, values in (("arms", arms), *((f"factors.{name}", levels) for name, levels in factors.items())):
        place = (*where, *key.split(".", 1))
        if values is not None and not values:
            file.fail(place, "is empty; write at least one")
        seen: set[Level] = set()
        for i, value in enumerate(values or ()):
            if value in seen:
                file.fail((*place, i), f"{value!r} stands twice; write each once")
            seen.add(value)


def _check_profile(file: YamlFile, paper: Paper, profile: str, settings: dict[str, Any]) -> None:
    base: Where = ("profiles", profile)

    def whole(where: Where, value: Any, least: int, most: int = SEEDS - 1) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            file.fail(where, f"{_is(value)}; write a whole number of at least {least}")
        if value > most:
            file.fail(where, f"{_is(value)}; write a whole number of at most {most}")

    if "seeds" not in settings:
        file.fail(base, "'seeds' is missing")
    whole((*base, "seeds"), settings["seeds"], 1)
    _check_first_seed(file, base, settings, settings["seeds"])
    if not isinstance(settings.get("about", ""), str):
        file.fail((*base, "about"), f"{_is(settings['about'])}; write a text")
    for name, here in settings.items():
        where = (*base, name)
        if name in ("seeds", "first_seed", "about"):
            continue
        if name not in paper.experiments:
            file.fail(where, f"no experiment '{name}'{did_you_mean(name, paper.experiments)}")
        if not isinstance(here, dict):
            file.fail(where, f"{_is(here)}; write a mapping of settings, {{}} for none")
        declared = paper.experiments[name]
        if "seeds" in here:
            whole((*where, "seeds"), here["seeds"], 1)
        seeds = here.get("seeds", settings["seeds"])
        if seeds > 1000:
            place = (*where, "seeds") if "seeds" in here else (*base, "seeds")
            file.fail(place, "write at most 1000: seeds from 1000 on are for tuning")
        _check_first_seed(file, where, {**settings, **here} if "seeds" in here else here, seeds)
        if not isinstance(here.get("batched", False), bool):
            file.fail((*where, "batched"), f"{_is(here['batched'])}; write true or false")
        if here.get("batched") and declared.exclusive:
            file.fail((*where, "batched"), "an exclusive experiment cannot be batched")
        if "ranks" in here:
            whole((*where, "ranks"), here["ranks"], 1, RANKS)
        if "ranks" in here and (here.get("batched") or declared.exclusive):
            file.fail((*where, "ranks"), "a batched or exclusive experiment runs in one process; leave out ranks")
        for key in ("tuning_seeds", "arms"):
            if not isinstance(here.get(key, []), list):
                file.fail((*where, key), f"{_is(here[key])}; write a list")
        for i, seed in enumerate(here.get("tuning_seeds", ())):
            whole((*where, "tuning_seeds", i), seed, 1000)
        for i, arm in enumerate(here.get("arms", ())):
            if arm not in declared.arms:
                file.fail(
                    (*where, "arms", i), f"no arm '{arm}' in experiment '{name}'{did_you_mean(arm, declared.arms)}"
                )
        factors = here.get("factors", {})
        if not isinstance(factors, dict):
            file.fail((*where, "factors"), f"{_is(factors)}; write a mapping of factor: [levels]")
        for factor, levels in factors.items():
            if factor not in declared.factors:
                hint = did_you_mean(factor, declared.factors)
                file.fail((*where, "factors", factor), f"no factor of experiment '{name}'{hint}")
            if not isinstance(levels, list) or any(isinstance(v, list | dict | None) for v in levels):
                file.fail((*where, "factors", factor), "write a list of levels")
        _check_factors(file, where, here.get("arms"), factors)
        arms, levels = paper.shape(profile, name)
        count = (seeds + len(here.get("tuning_seeds", ()))) * len(arms) * math.prod(map(len, levels.values()))
        if count > TRIALS:
            file.fail(where, f"asks for {count} trials; write fewer levels, arms or seeds: at most {TRIALS} trials")
        for key, value in here.items():
            if key in declared.factors:
                file.fail((*where, key), f"is a factor; write factors: {{{key}: [...]}}")
            if isinstance(value, str) and _ALMOST.fullmatch(value):
                file.fail((*where, key), f"is the text '{value}'; write a number")


def _check_first_seed(file: YamlFile, where: Where, settings: dict[str, Any], seeds: int) -> None:
    """The seeds from `first_seed` on stay below those for tuning."""
    first = settings.get("first_seed", 0)
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        file.fail((*where, "first_seed"), f"{_is(first)}; write a whole number of at least 0")
    if first and first + seeds > 1000:
        hint = f"write at most {max(0, 1000 - seeds)}, so that the seeds stay below 1000, which are for tuning"
        file.fail((*where, "first_seed"), f"is {first}; {hint}")


def _check_claim(file: YamlFile, paper: Paper, claim_id: str, claim: Claim) -> None:
    where: Where = ("claims", claim_id)
    value = claim.paper_value
    if value.value is None and value.text is None and (value.low is None or value.high is None):
        file.fail((*where, "paper_value"), "write value:, or low: and high:, or text:")
    if value.low is not None and value.high is not None and value.low > value.high:
        file.fail((*where, "paper_value", "low"), f"{value.low} is above high {value.high}")
    if claim.untested is not None:
        for key in ("rule", "controls", "positive", "tune", "trivial", "mutants", "fails"):
            if getattr(claim, key):
                file.fail((*where, key), "the claim is untested; drop this or drop 'untested'")
        return
    if claim.rule is None:
        file.fail(where, "has neither a rule nor 'untested: why'")
    if claim.experiment is None:
        file.fail(where, "'experiment' is missing")
    if claim.experiment not in paper.experiments:
        hint = did_you_mean(claim.experiment, paper.experiments)
        file.fail((*where, "experiment"), f"no experiment '{claim.experiment}'{hint}")
    factors = paper.experiments[claim.experiment].factors
    if isinstance(claim.tune, Tune) and claim.tune.factor not in factors:
        hint = did_you_mean(claim.tune.factor, factors)
        file.fail((*where, "tune", "factor"), f"no factor '{claim.tune.factor}' in '{claim.experiment}'{hint}")
    for other_id, other in paper.claims.items():  # of a tuned experiment the tuned level alone is judged
        factor = _tuned(other)
        if factor in factors and other.experiment == claim.experiment and _tuned(claim) is None:
            file.fail(
                (*where, "experiment"),
                f"'{claim.experiment}' is tuned by {other_id}, so that no judged row has another {factor} than the "
                f"best; write an experiment of its own, with function: {claim.experiment}",
            )
    shapes = claim.rule if isinstance(claim.rule, dict) else {None: claim.rule}
    for profile, shape in shapes.items():
        if shape in ([], {}):
            file.fail((*where, "rule", profile) if profile else (*where, "rule"), "is empty; write at least one rule")
    for profile, place, rule in _placed_rules(claim, (*where, "rule")):
        judged = [p for p in paper.profiles if rule in paper.rules(claim_id, p)] if profile is None else [profile]
        if profile == "smoke":
            file.fail(place, "the smoke profile is never judged; drop this")
        if rule.kind == "identity":
            file.fail((*place, "kind"), "is an identity, which is no claim; write it under identities:")
        _Check(file, paper, rule, place, claim.experiment, _tuned(claim)).everything(judged)
    for profile in ("", *paper.judged_profiles(claim_id)):
        arms = paper.shape(profile, claim.experiment)[0] if profile else paper.experiments[claim.experiment].arms
        at = f" at profile '{profile}'" if profile else ""
        spare = [
            (("positive",) if isinstance(claim.positive, str) else ("positive", old), new)
            for old, new in claim.swaps.items()
        ]
        spare += [(("mutants", i), arm) for i, arm in enumerate(claim.mutants)]
        for key, arm in spare:
            if arm not in arms:
                hint = did_you_mean(arm, arms)
                file.fail((*where, *key), f"no arm '{arm}' in experiment '{claim.experiment}'{at}{hint}")
    _check_learnt(file, paper, claim_id, claim, where)
    for i, control in enumerate(claim.controls):
        _check_control(file, paper, claim_id, control, (*where, "controls", i))


def _tuned(judged: Claim | Statement) -> str | None:
    """The factor of which every arm of a claim has its own level."""
    tune = getattr(judged, "tune", None)
    return tune.factor if isinstance(tune, Tune) else None


def _neighbours(start: list, levels: list) -> bool:
    """Whether at least three levels stand side by side in the grid."""
    return len(start) >= 3 and any(levels[i : i + len(start)] == start for i in range(len(levels)))


def _check_learnt(file: YamlFile, paper: Paper, claim_id: str, claim: Claim, where: Where) -> None:
    """What a claim about trained arms says of tuning, of the trivial predictor and of runs that fail."""
    trivial, arms = claim.predictor, paper.experiments[claim.experiment].arms
    if trivial and trivial.arm is not None and trivial.arm not in arms:
        hint = did_you_mean(trivial.arm, arms)
        file.fail((*where, "trivial", "arm"), f"no arm '{trivial.arm}' in experiment '{claim.experiment}'{hint}")
    for profile in paper.judged_profiles(claim_id) if trivial else ():
        for rule in paper.rules(claim_id, profile):
            name = trivial.measure or rule.measure
            if name not in paper.measures:
                place = (*where, "trivial", "measure")
                file.fail(place, f"no measure '{name}'{did_you_mean(name, paper.measures)}")
            if paper.measures[name].better is None:
                by = ".".join(map(str, (*where, "trivial")))
                file.fail(("measures", name), f"{by} compares by it; write better: lower, or better: higher")
    if isinstance(claim.tune, Tune):
        tune = claim.tune
        if tune.seeds < 2:
            file.fail((*where, "tune", "seeds"), f"is {tune.seeds}; write at least 2")
        if tune.by is not None and tune.by not in paper.measures:
            file.fail((*where, "tune", "by"), f"no measure '{tune.by}'{did_you_mean(tune.by, paper.measures)}")
        for profile in paper.judged_profiles(claim_id):
            levels = paper.shape(profile, claim.experiment)[1][tune.factor]
            numbers = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
            if not numbers or len(levels) < 3 or levels != sorted(levels):
                hint = "write at least three numbers in rising order, so that the best can lie inside the grid"
                file.fail((*where, "tune", "factor"), f"{tune.factor} has the levels {levels} at '{profile}'; {hint}")
            if tune.start is not None and not _neighbours(tune.start, levels):
                hint = f"write at least three neighbours of the levels at '{profile}', {levels}"
                file.fail((*where, "tune", "start"), f"is {tune.start}; {hint}")
            own, by = paper.tuning(profile, claim.experiment), tune.by or paper.rules(claim_id, profile)[0].measure
            if paper.measures[by].better is None:
                file.fail(("measures", by), f"claim '{claim_id}' tunes by it; write better: lower, or better: higher")
            if (own.factor, len(own.seeds), own.measure, own.start) != (tune.factor, tune.seeds, by, tune.start):
                hint = f"another claim of '{claim.experiment}' tunes {own.factor} by {own.measure} on {len(own.seeds)}"
                start = "" if own.start is None else f" and start: {own.start}"
                file.fail((*where, "tune"), f"{hint} seeds; write the same here, with by: {own.measure}{start}")
    if claim.fails is not None:
        if claim.fails.measure not in paper.measures:
            hint = did_you_mean(claim.fails.measure, paper.measures)
            file.fail((*where, "fails", "measure"), f"no measure '{claim.fails.measure}'{hint}")
        if (claim.fails.below is None) == (claim.fails.above is None):
            file.fail((*where, "fails"), "write one of below, above")


def _check_identity(file: YamlFile, paper: Paper, name: str, statement: Statement) -> None:
    where: Where = ("identities", name)
    if name in paper.claims:
        file.fail(where, "is the name of a claim as well; name it otherwise")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", name):
        file.fail(where, "is no name; write letters, digits, - and _")
    if statement.experiment not in paper.experiments:
        hint = did_you_mean(statement.experiment, paper.experiments)
        file.fail((*where, "experiment"), f"no experiment '{statement.experiment}'{hint}")
    for profile, place, rule in _placed_rules(statement, (*where, "rule")):
        if profile == "smoke":
            file.fail(place, "the smoke profile is never judged; drop this")
        if rule.kind in ("count", "failures", "ranks"):
            file.fail((*place, "kind"), f"is {rule.kind}, which counts; an identity holds on every row")
        judged = [p for p in paper.profiles if rule in paper.rules(name, p)] if profile is None else [profile]
        _Check(file, paper, rule, place, statement.experiment).everything(judged)
    for i, control in enumerate(statement.controls):
        _check_control(file, paper, name, control, (*where, "controls", i))


def _placed_rules(claim: Claim | Statement, where: Where) -> Iterator[tuple[str | None, Where, Any]]:
    """(profile or None, place, rule) for every rule that a claim writes."""
    shapes = claim.rule.items() if isinstance(claim.rule, dict) else [(None, claim.rule)]
    for profile, shape in shapes:
        place = (*where, profile) if profile else where
        if isinstance(shape, list):
            yield from ((profile, (*place, i), rule) for i, rule in enumerate(shape))
        else:
            yield profile, place, shape


def _superiority(rule: Any) -> bool:
    """Does the rule fail where both arms are alike?"""
    if rule.kind == "ratio":
        low, high = rule.between or (rule.min, rule.max)
        return low is not None and low >= 1 or high is not None and high <= 1
    alike = ("count", "failures")
    return rule.kind in ("ordering", "ranks") or rule.kind in alike and rule.against is not None


def _check_control(file: YamlFile, paper: Paper, claim_id: str, control: Control, where: Where) -> None:
    claim = paper.claims.get(claim_id) or paper.identities[claim_id]
    rules = [rule for _, _, rule in _placed_rules(claim, ())]
    every = (n for rule in rules for n in (rule.arm, getattr(rule, "against", None), *getattr(rule, "others", ())))
    named = list(dict.fromkeys(n for n in every if n))
    if (control.expect == "violated") != isinstance(claim, Statement):
        right = "violated" if isinstance(claim, Statement) else "not_reproduced"
        file.fail((*where, "expect"), f"is {control.expect}; write expect: {right}")
    place, elsewhere = control.experiment or claim.experiment, bool(control.experiment or control.at)
    if place not in paper.experiments:
        file.fail((*where, "experiment"), f"no experiment '{place}'{did_you_mean(place, paper.experiments)}")
    if not control.replace and not elsewhere:
        file.fail(where, "replaces nothing; write replace: {arm of the rule: broken arm}")
    arms = paper.experiments[place].arms
    for old, new in control.replace.items():
        if old not in named:
            file.fail((*where, "replace", old), f"replaces nothing: the rule's arms are {', '.join(named)}")
        if new not in arms:
            file.fail((*where, "replace", old), f"no arm '{new}' in experiment '{place}'{did_you_mean(new, arms)}")
        if old == new and not control.seed_offset and not elsewhere:
            hint = "name another arm, or add seed_offset: 1000"
            file.fail((*where, "replace", old), f"replaces '{old}' by itself; {hint}")
    if control.seed_offset is not None and control.seed_offset < 1000:
        file.fail((*where, "seed_offset"), f"is {control.seed_offset}; write at least 1000")
    if control.seed_offset is not None and control.seed_offset >= SEEDS - 1000:
        file.fail((*where, "seed_offset"), f"is {control.seed_offset}; write at most {SEEDS - 1001}")
    if control.expect == "not_met" and not any(map(_superiority, rules)):
        why = f"not_met makes sense for superiority only, not for {' and '.join(rule.kind for rule in rules)}"
        file.fail((*where, "expect"), f"{why}; write expect: not_reproduced")
    for profile in paper.profiles:
        judged = paper.rules(claim_id, profile)
        if judged and place not in paper.experiments_in(profile):
            why = f"'{place}' does not run at profile '{profile}', where the claim is judged"
            file.fail((*where, "experiment"), f"{why}; add it to profiles.{profile}")
        for rule in judged:
            check = _Check(file, paper, controlled(rule, control), where, place, _tuned(claim))
            check.arms([profile]).factors([profile], control.at)


class _Check:
    """The checks of one rule at its place in the file."""

    def __init__(
        self, file: YamlFile, paper: Paper, rule: Any, where: Where, experiment: str, tuned: str | None = None
    ):
        self.file, self.paper, self.rule, self.where, self.experiment = file, paper, rule, where, experiment
        self.tuned = tuned

    def fail(self, key: str | Where, message: str) -> NoReturn:
        self.file.fail((*self.where, *((key,) if isinstance(key, str) else key)), message)

    def resolved(self, judged: list[str]) -> list[tuple[str, list[str], dict[str, list[Level]]]]:
        """(where it holds, arms, factors): the experiment as declared, or at each profile that judges the rule."""
        paper, name = self.paper, self.experiment
        declared = paper.experiments[name]
        at = [(f" at profile '{p}'", *paper.shape(p, name)) for p in judged if name in paper.profiles.get(p, ())]
        return at or [("", declared.arms, declared.factors)]

    def everything(self, judged: list[str]) -> None:
        rule = self.rule
        if not 0.5 < rule.level < 1:
            self.fail("level", f"is {rule.level}; write a number between 0.5 and 1, such as 0.95")
        self.arms(judged).measures().region().factors(judged, {})
        if rule.at_least is not None and rule.per is None and rule.kind != "count":
            self.fail("at_least", "needs per: a factor")
        measure = self.paper.measures[rule.measure]
        for profile in judged if measure.skewed and rule.kind not in ("identity", "failures", "ranks") else ():
            n = len(self.paper.settings(profile, self.experiment).seeds)
            if rule.statistic != "sign" and n < 10:
                hint = "write statistic: sign, or at least 10 seeds"
                self.fail("measure", f"'{rule.measure}' is skewed, and '{profile}' has {n} seeds; {hint}")

    def arms(self, judged: list[str]) -> "_Check":
        for key in ("arm", "against"):
            name = getattr(self.rule, key, None)
            for at, arms, _ in self.resolved(judged):
                if name is not None and name not in arms:
                    self.fail(key, f"no arm '{name}' in experiment '{self.experiment}'{at}{did_you_mean(name, arms)}")
            for i, name in enumerate(getattr(self.rule, "others", ()) if key == "arm" else ()):
                for at, arms, _ in self.resolved(judged):
                    if name not in arms:
                        hint = did_you_mean(name, arms)
                        self.fail(("others", i), f"no arm '{name}' in experiment '{self.experiment}'{at}{hint}")
        if self.rule.arm == getattr(self.rule, "against", None) and self.where[-2] != "controls":
            self.fail("against", f"'{self.rule.arm}' is compared with itself")
        return self

    def measures(self) -> "_Check":
        rule, known = self.rule, self.paper.measures
        for key, name in (("measure", rule.measure), (("steps_to", "axis"), rule.steps_to and rule.steps_to.axis)):
            if name is not None and name not in known:
                self.fail(key, f"no measure '{name}'{did_you_mean(name, known)}")
        ordered = rule.kind == "count" and rule.against and rule.min is rule.max is rule.between is None
        directed = ordered or rule.kind in ("ordering", "noninferiority", "ranks") or rule.steps_to
        if directed and known[rule.measure].better is None:
            by = ".".join(map(str, self.where))
            self.file.fail(("measures", rule.measure), f"{by} compares by it; write better: lower, or better: higher")
        cells = rule.kind == "count" and rule.against and not ordered
        ratio = rule.kind == "ratio" or getattr(rule, "ratio", None) or cells
        ratio = ratio or rule.kind == "slope" and rule.scale in ("logy", "loglog")
        ratio = ratio or rule.contrast and rule.contrast.as_ == "ratio"
        if ratio and rule.kind != "identity" and not rule.steps_to and not known[rule.measure].positive:
            by = ".".join(map(str, self.where))
            hint = "write positive: true if it is always above 0, else use a difference"
            self.file.fail(("measures", rule.measure), f"{by} divides by it; {hint}")
        if rule.steps_to and rule.steps_to.target == "best" and not getattr(rule, "against", None):
            self.fail(("steps_to", "target"), "'best' is the best of 'against', which is not given; write a number")
        return self

    def region(self) -> "_Check":
        rule, given = self.rule, [k for k in ("min", "max", "between") if getattr(self.rule, k, None) is not None]
        if rule.kind == "identity":
            given = [*(["bound"] if rule.bound is not None else []), *given]
            if len(given) != 1:
                now = ", ".join(given) or "none"
                self.fail(given[1] if given else (), f"write one of bound, min, max, between (now: {now})")
            given = [key for key in given if key != "bound"]
        if rule.kind == "failures":
            if (rule.below is None) == (rule.above is None):
                self.fail((), "write one of below, above: the level of the measure past which a run has failed")
            if bool(given) == bool(rule.against):
                self.fail((), "write one of min, max, between for the failure rate, or against: another arm")
            if rule.contrast or rule.steps_to:
                self.fail((), "the failure rate is of single rows; drop contrast and steps_to")
        if rule.kind in ("bound", "ratio", "slope") or rule.kind == "count" and not (rule.against and not given):
            if len(given) != 1:
                now = ", ".join(given) or "none"
                self.fail(given[1] if given else (), f"write one of min, max, between (now: {now})")
        if rule.kind == "equivalence" and (rule.margin is None) == (rule.ratio is None):
            self.fail((), "write one of margin, ratio")
        if rule.kind == "count":
            if rule.at_least is None:
                self.fail((), "'at_least' is missing")
            if rule.margin is not None and (given or not rule.against):
                self.fail("margin", "goes with 'against' and without min, max, between")
            if rule.per is not None:
                self.fail("per", "a count has cells: instead")
        for key in ("contrast", "steps_to") if rule.kind == "identity" else ():
            if getattr(rule, key):
                self.fail(key, "an identity looks at every row by itself; drop this")
        for key in ("between", "ratio"):
            pair = getattr(rule, key, None)
            if pair is not None and (len(pair) != 2 or not pair[0] < pair[1]):
                self.fail(key, f"is {pair}; write [low, high]")
        for key, strict in (("margin", rule.kind in ("noninferiority", "equivalence")), ("bound", True)):
            number = getattr(rule, key, None)
            if number is not None and (number < 0 or strict and number == 0):
                self.fail(key, f"is {number}; write a number {'above' if strict else 'not below'} 0")
        on_logs = rule.kind == "ratio" or rule.kind == "bound" and rule.contrast and rule.contrast.as_ == "ratio"
        on_logs = on_logs or rule.kind == "count" and (rule.against or rule.contrast and rule.contrast.as_ == "ratio")
        for key in [*given, "ratio"]:
            ends = getattr(rule, key, None)
            lowest = min(ends if isinstance(ends, list) else [1.0 if ends is None else ends])
            if (on_logs or key == "ratio") and lowest <= 0:
                self.fail(key, f"is {ends}; a ratio is above 0")
        return self

    def factors(self, judged: list[str], moved: dict[str, Level]) -> "_Check":
        """Every factor that has several levels is spoken for once, by a name and levels that exist."""
        rule = self.rule
        uses: list[tuple[str | Where, str | None, list[Level]]] = [
            *((("at", name), name, [level]) for name, level in rule.at.items()),
            ("per", rule.per, []),
            ("x", getattr(rule, "x", None), []),
            ("over", getattr(rule, "over", None), []),
            *(("cells", name, []) for name in rule.cell_factors),
        ]
        if rule.contrast:
            uses.append((("contrast", "factor"), rule.contrast.factor, rule.contrast.levels))
        if self.tuned:
            uses.append(((), self.tuned, []))
        uses = [use for use in uses if use[1] is not None]
        if rule.contrast and (len(rule.contrast.levels) != 2 or rule.contrast.levels[0] == rule.contrast.levels[1]):
            self.fail(("contrast", "levels"), f"is {rule.contrast.levels}; write two different levels")
        for at, _, known in self.resolved(judged):
            for key, name, levels in uses:
                if name not in known:
                    self.fail(
                        key, f"no factor '{name}' in experiment '{self.experiment}'{at}{did_you_mean(name, known)}"
                    )
                for level in levels:
                    if level not in known[name]:
                        self.fail(key, f"{name} has no level {level!r}{at}; it has {', '.join(map(str, known[name]))}")
            names = [name for _, name, _ in uses]
            for key, name, _ in uses:
                if names.count(name) > 1:
                    self.fail(key, f"factor '{name}' is used twice in this rule")
            for name, levels in known.items():
                if name not in names and len(levels) > 1 and rule.kind != "identity":
                    self.fail((), f"leaves factor '{name}' open{at}; write at: {{{name}: {levels[0]}}} or per: {name}")
            if rule.kind == "slope" and len(known[rule.x]) < 2:
                self.fail("x", f"{rule.x} has one level{at}; a slope needs two")
            for level in known[rule.x] if rule.kind == "slope" else ():
                if isinstance(level, bool | str):
                    self.fail("x", f"level {level!r} of {rule.x}{at} is no number")
                if rule.scale in ("logx", "loglog") and level <= 0:
                    self.fail("x", f"level {level} of {rule.x}{at} has no logarithm; write scale: linear or logy")
            total = math.prod(len(known[name]) for key, name, _ in uses if key in ("per", "cells"))
            if rule.at_least is not None and not 1 <= rule.at_least <= total:
                self.fail("at_least", f"is {rule.at_least}, of {total} levels{at}")
        return self


def params(file: YamlFile, params: Params) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", params.device):
        file.fail(("device",), f"is '{params.device}'; write auto, cpu, cuda or cuda:0")
    if params.seeds is not None and params.seeds < 1:
        file.fail(("seeds",), f"is {params.seeds}; write a positive whole number, or null")
    if params.seeds is not None and params.seeds > 1000:
        file.fail(("seeds",), f"is {params.seeds}; write at most 1000: seeds from 1000 on are for tuning")
    for profile, seconds in params.time_limit.items():
        if seconds <= 0:
            file.fail(("time_limit", profile), f"is {seconds}; write a positive number of seconds")
