"""`paper.yaml` and `params.yaml`: what they resolve to, and every mistake told in one line with its place."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from repro.errors import ReproError
from repro.spec import load as papers
from repro.spec.load import load, load_params, load_yaml
from repro.spec.model import Contrast, Control, as_dict, controlled, json_schema

TEXT = """\
slug: rmsnorm
title: Root Mean Square Layer Normalization
authors: [Biao Zhang, Rico Sennrich]
year: 2019
venue: NeurIPS 2019
arxiv: '1910.07467'
code: bzhangGo/rmsnorm@2e726f1
family: normalization
summary: LayerNorm without the mean.
equation: y = g x / RMS(x)
provides: [{slot: norm, name: RMSNorm}]
headline: parity
measures:
  val: {unit: nats, better: lower}
  curve: {unit: nats, better: lower}
  steps: {unit: steps}
  seconds: {unit: s, positive: true}
  err: {unit: relative}
experiments:
  quality:
    arms: [layernorm, rmsnorm, identity]
    factors: {depth: [4, 12], batch: [32]}
  timing: {arms: [layernorm, rmsnorm], exclusive: true, factors: {model: [rnn, conv]}}
claims:
  parity:
    statement: RMSNorm reaches the quality of LayerNorm.
    paper_value: {text: comparable}
    where: Table 3
    fidelity: scaled
    experiment: quality
    rule: {kind: noninferiority, measure: val, arm: rmsnorm, against: layernorm, margin: 0.02, per: depth}
    controls:
      - {replace: {rmsnorm: identity}, expect: not_reproduced}
    positive: layernorm
  speed:
    statement: RMSNorm is faster.
    paper_value: {low: 0.36, high: 0.93}
    where: Table 2
    fidelity: proxy
    experiment: timing
    rule:
      cpu: {kind: ratio, measure: seconds, arm: rmsnorm, against: layernorm, max: 1, at: {model: rnn}}
      gpu:
        - {kind: ratio, measure: seconds, arm: rmsnorm, against: layernorm, max: 1, per: model}
        - {kind: bound, measure: seconds, arm: rmsnorm, max: 9, per: model, at_least: 1}
  bleu:
    statement: BLEU is kept.
    paper_value: {value: 22.4, unit: BLEU}
    where: Table 2
    fidelity: same
    untested: needs WMT14
    read: abstract
identities:
  zero-mean:
    statement: RMSNorm equals LayerNorm when the mean is zero.
    where: Eq. 4
    experiment: quality
    rule: {kind: identity, measure: err, arm: rmsnorm, bound: 1e-9}
    controls: [{replace: {rmsnorm: layernorm}, expect: violated}]
elsewhere:
  - {claim: parity, who: A. Nother, where: Table 1, setting: 7B on C4, says: no difference, agrees: yes}
profiles:
  smoke: {seeds: 1, quality: {steps: 2, lr: 1e-3, factors: {depth: [2]}}}
  cpu:
    seeds: 5
    quality: {steps: 150, lr: 1e-3, batched: true, tuning_seeds: [1000]}
    timing: {repeats: 3, seeds: 3}
  gpu: {seeds: 10, timing: {repeats: 30}}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str = TEXT, slug: str = "rmsnorm") -> Path:
        path = tmp_path / "papers" / slug / "paper.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def changed(old: str, new: str) -> tuple[str, int]:
    """TEXT with one part replaced, and the first line that differs."""
    assert TEXT.count(old) == 1, old
    text = TEXT.replace(old, new)
    pairs = zip(TEXT.splitlines(), [*text.splitlines(), ""], strict=False)
    return text, next(i for i, (a, b) in enumerate(pairs, 1) if a != b)


def test_settings_resolve_the_profile_over_the_experiment(write):
    paper = load(write())
    quality, timing = paper.settings("cpu", "quality"), paper.settings("cpu", "timing")
    assert quality.config == {"steps": 150, "lr": 0.001}
    assert quality.seeds == [0, 1, 2, 3, 4] and timing.seeds == [0, 1, 2] and quality.tuning_seeds == [1000]
    assert quality.batched and not quality.exclusive and timing.exclusive
    assert quality.factors == {"depth": [4, 12], "batch": [32]}
    assert paper.settings("smoke", "quality").factors == {"depth": [2], "batch": [32]}
    assert paper.experiments_in("gpu") == ["timing"] and paper.experiments_in("paper") == []
    with pytest.raises(ReproError, match="'quality' does not run at profile 'gpu'"):
        paper.settings("gpu", "quality")
    quality.config["steps"] = 1
    assert paper.settings("cpu", "quality").config["steps"] == 150


def test_rules_are_those_of_the_profile(write):
    paper = load(write())
    assert [rule.kind for rule in paper.rules("speed", "gpu")] == ["ratio", "bound"]
    assert [rule.at for rule in paper.rules("speed", "cpu")] == [{"model": "rnn"}]
    assert paper.rules("parity", "gpu") == []  # its experiment does not run there
    assert paper.rules("parity", "smoke") == [] and paper.rules("bleu", "cpu") == []
    assert paper.judged_in("cpu") == ["parity", "speed"] and paper.judged_profiles("speed") == ["cpu", "gpu"]
    assert [paper.headline_for(p) for p in ("cpu", "gpu", "paper")] == ["parity", None, None]
    assert paper.rules("parity", "cpu")[0].level == 0.95


def test_a_claim_without_tuning_needs_an_experiment_that_no_other_claim_tunes(write):
    """Of a tuned experiment the best level alone is judged, so that a claim at another level would never have rows."""
    text = TEXT.replace("batch: [32]", "batch: [16, 32, 64]").replace(
        "    positive: layernorm\n", "    positive: layernorm\n    tune: {factor: batch, seeds: 2}\n", 1
    )
    begin = text.index("  speed:\n")
    second = (
        text[text.index("  parity:\n") : begin]
        .replace("  parity:", "  other:")
        .replace("    tune: {factor: batch, seeds: 2}\n", "")
    )
    with pytest.raises(
        ReproError, match="claims.other.experiment: 'quality' is tuned by parity, so that no judged row"
    ):
        load(write(text[:begin] + second + text[begin:]))
    tuned = second.replace(
        "    positive: layernorm\n", "    positive: layernorm\n    tune: {factor: batch, seeds: 2}\n"
    )
    assert {"parity", "other"} <= set(load(write(text[:begin] + tuned + text[begin:])).claims)


def test_seeds_of_an_offset_control_are_planned_for_its_arms(write):
    control = "controls: [{replace: {rmsnorm: layernorm}, expect: not_met, seed_offset: 1000}]\n"
    text, _ = changed("    fidelity: proxy\n", f"    fidelity: proxy\n    {control}")
    paper = load(write(text))
    assert paper.settings("cpu", "timing").offset_seeds == {"layernorm": [1000, 1001, 1002]}
    assert paper.settings("cpu", "quality").offset_seeds == {}


def test_a_control_swaps_arms_and_fixes_levels(write):
    paper = load(write())
    rule, control = paper.rules("parity", "cpu")[0], paper.claims["parity"].controls[0]
    assert controlled(rule, control).arm == "identity" and controlled(rule, control).per == "depth"
    fixed = controlled(rule, Control(expect="not_reproduced", at={"depth": 4}))
    assert (fixed.arm, fixed.per, fixed.at) == ("rmsnorm", None, {"depth": 4})


@pytest.mark.parametrize(
    "old, new",
    [
        ("margin: 0.02", "margin: 0.03"),
        ("against: layernorm, margin", "against: identity, margin"),
        ("expect: not_reproduced", "expect: not_reproduced, at: {depth: 4}"),
        ("seeds: 5\n", "seeds: 6\n"),
        ("nats, better: lower}\n  curve", "nats, better: higher}\n  curve"),
        ("headline: parity", "headline: speed"),
        ("factors: {depth: [4, 12]", "factors: {depth: [4]"),
        ("tuning_seeds: [1000]", "tuning_seeds: [1001]"),
        ("    positive: layernorm\n", ""),
        ("per: depth}", "per: depth, level: 0.9}"),
    ],
)
def test_registration_follows_what_decides(write, old, new):
    assert load(write(changed(old, new)[0])).registration("cpu") != load(write()).registration("cpu")


@pytest.mark.parametrize(
    "old, new",
    [
        ("margin: 0.02", "margin: 0.02, name: parity"),
        ("unit: nats, better: lower}\n  curve", "unit: bits, better: lower}\n  curve"),
        ("statement: BLEU is kept.", "statement: BLEU stays."),
        ("seeds: 10", "seeds: 9"),
        ("repeats: 3,", "repeats: 4,"),
        ("  gpu: {seeds: 10, timing: {repeats: 30}}\n", "  gpu: {seeds: 10, timing: {repeats: 30}, about: an H100}\n"),
    ],
)
def test_registration_leaves_prose_and_other_profiles_alone(write, old, new):
    assert load(write(changed(old, new)[0])).registration("cpu") == load(write()).registration("cpu")


BAD = {
    "unknown key": (
        "margin: 0.02",
        "margn: 0.02",
        "claims.parity.rule.margn: unknown key; did you mean 'margin'?",
    ),
    "unknown key at the top": (
        "title: Root",
        "titel: Root",
        "titel: unknown key; did you mean 'title'?",
    ),
    "a comma in a text": (
        "expect: not_reproduced}",
        "expect: not_reproduced, why: broken, no norm}",
        "claims.parity.controls[0].no norm: unknown key; write one of expect, replace, without, seed_offset, "
        "experiment, at, why (a text that holds a comma needs quotes inside { })",
    ),
    "missing key": (
        ", arm: rmsnorm, against: layernorm, margin: 0.02",
        ", against: layernorm, margin: 0.02",
        "claims.parity.rule: 'arm' is missing",
    ),
    "family": (
        "family: normalization",
        "family: normalisation",
        "family: is the text 'normalisation'; did you mean 'normalization'? (allowed: normalization, "
        "activation, initialization, residual, training)",
    ),
    "fidelity": (
        "fidelity: scaled",
        "fidelity: exact",
        "claims.parity.fidelity: is the text 'exact'; write one of analytic, same, scaled, proxy",
    ),
    "kind": (
        "kind: noninferiority",
        "kind: non-inferiority",
        "claims.parity.rule.kind: is the text 'non-inferiority'; did you mean 'noninferiority'?",
    ),
    "no kind": (
        "{kind: noninferiority, measure",
        "{measure",
        "claims.parity.rule: 'kind' is missing; write one of identity, bound, ratio, ordering, noninferiority, "
        "equivalence, slope, count, failures, ranks",
    ),
    "text for a number": (
        "margin: 0.02",
        "margin: 0.02x",
        "claims.parity.rule.margin: is the text '0.02x'; write a number",
    ),
    "text for a number in a profile": (
        "steps: 150, lr: 1e-3",
        "steps: 150, lr: 1e-3x",
        "profiles.cpu.quality.lr: is the text '1e-3x'; write a number",
    ),
    "number for a text": (
        "'1910.07467'",
        "1910.07467",
        "arxiv: is the number 1910.07467; write it in quotes",
    ),
    "arxiv": (
        "'1910.07467'",
        "'1910/07467'",
        "arxiv: is '1910/07467'; write an identifier such as '1910.07467'",
    ),
    "no source": (
        "arxiv: '1910.07467'\n",
        "",
        "'arxiv' is missing (or write doi: or url:)",
    ),
    "code": (
        "bzhangGo/rmsnorm@2e726f1",
        "bzhangGo/rmsnorm",
        "code: is 'bzhangGo/rmsnorm'; write owner/repository@revision, or null",
    ),
    "slug": (
        "slug: rmsnorm",
        "slug: rms_norm",
        "slug: is 'rms_norm', but the folder is 'rmsnorm'; write slug: rmsnorm",
    ),
    "infinite": (
        "margin: 0.02",
        "margin: .inf",
        "claims.parity.rule.margin: is .inf; write a finite number",
    ),
    "too large": (
        "margin: 0.02",
        "margin: 1e999",
        "claims.parity.rule.margin: is 1e999; write a finite number",
    ),
    "date": (
        "year: 2019",
        "year: 2019-01-01",
        "year: is the date 2019-01-01; write it in quotes",
    ),
    "truth for a number": (
        "year: 2019",
        "year: true",
        "year: is the truth value True; write a whole number",
    ),
    "list for a mapping": (
        "paper_value: {text: comparable}",
        "paper_value: [comparable]",
        "claims.parity.paper_value: is a list; write a mapping",
    ),
    "empty": (
        "authors: [Biao Zhang, Rico Sennrich]",
        "authors: []",
        "authors: is empty; write at least one",
    ),
    "duplicate key": (
        "year: 2019",
        "year: 2019\nyear: 2020",
        "key 'year' stands twice, first on line 4; leave one out",
    ),
    "anchor": (
        "year: 2019",
        "year: &y 2019",
        "year: anchor &y and its aliases are not allowed; write the value out",
    ),
    "tag": ("year: 2019", "year: !!python/name:os.system", None),
    "rule's arm": (
        "arm: rmsnorm, against: layernorm, margin",
        "arm: rmsnrm, against: layernorm, margin",
        "claims.parity.rule.arm: no arm 'rmsnrm' in experiment 'quality' at profile 'cpu'; did you mean 'rmsnorm'?",
    ),
    "rule's other arm": (
        "against: layernorm, margin",
        "against: groupnorm, margin",
        "claims.parity.rule.against: no arm 'groupnorm' in experiment 'quality' at profile 'cpu'; did you mean "
        "'rmsnorm'?",
    ),
    "itself": (
        "against: layernorm, margin",
        "against: rmsnorm, margin",
        "claims.parity.rule.against: 'rmsnorm' is compared with itself",
    ),
    "an arm that a profile leaves out": (
        "batched: true,",
        "batched: true, arms: [rmsnorm, identity],",
        "claims.parity.rule.against: no arm 'layernorm' in experiment 'quality' at profile 'cpu'; did you "
        "mean 'rmsnorm'?",
    ),
    "measure": (
        "measure: val,",
        "measure: vall,",
        "claims.parity.rule.measure: no measure 'vall'; did you mean 'val'?",
    ),
    "axis": (
        "margin: 0.02",
        "margin: 0.02, steps_to: {target: 1.5, axis: step}",
        "claims.parity.rule.steps_to.axis: no measure 'step'; did you mean 'steps'?",
    ),
    "target": (
        "margin: 0.02",
        "margin: 0.02, steps_to: {target: bst, axis: steps}",
        "claims.parity.rule.steps_to.target: is the text 'bst'; did you mean 'best'? (allowed: best)",
    ),
    "no direction": (
        "measure: val,",
        "measure: err,",
        "measures.err: claims.parity.rule compares by it; write better: lower, or better: higher",
    ),
    "at's factor": (
        "per: depth}",
        "per: depth, at: {width: 4}}",
        "claims.parity.rule.at.width: no factor 'width' in experiment 'quality' at profile 'cpu'; did you "
        "mean 'depth'?",
    ),
    "at's level": (
        "per: depth}",
        "at: {depth: 6}}",
        "claims.parity.rule.at.depth: depth has no level 6 at profile 'cpu'; it has 4, 12",
    ),
    "a level that a profile leaves out": (
        "at: {model: rnn}}",
        "at: {model: rnnn}}",
        "claims.speed.rule.cpu.at.model: model has no level 'rnnn' at profile 'cpu'; it has rnn, conv",
    ),
    "per": (
        "per: depth}",
        "per: dpth}",
        "claims.parity.rule.per: no factor 'dpth' in experiment 'quality' at profile 'cpu'; did you mean 'depth'?",
    ),
    "contrast's factor": (
        "per: depth}",
        "contrast: {factor: dep, levels: [4, 12], as: difference}}",
        "claims.parity.rule.contrast.factor: no factor 'dep' in experiment 'quality' at profile 'cpu'; did you "
        "mean 'depth'?",
    ),
    "contrast's levels": (
        "per: depth}",
        "contrast: {factor: depth, levels: [4, 8], as: difference}}",
        "claims.parity.rule.contrast.factor: depth has no level 8 at profile 'cpu'; it has 4, 12",
    ),
    "contrast of one level": (
        "per: depth}",
        "contrast: {factor: depth, levels: [4, 4], as: difference}}",
        "claims.parity.rule.contrast.levels: is [4, 4]; write two different levels",
    ),
    "x": (
        "kind: bound, measure: seconds, arm: rmsnorm, max: 9, per: model, at_least: 1",
        "kind: slope, measure: seconds, arm: rmsnorm, max: 9, x: model",
        "claims.speed.rule.gpu[1].x: level 'rnn' of model at profile 'gpu' is no number",
    ),
    "cells": (
        "kind: bound, measure: seconds, arm: rmsnorm, max: 9, per: model, at_least: 1",
        "kind: count, measure: seconds, arm: rmsnorm, max: 9, cells: modl, at_least: 1",
        "claims.speed.rule.gpu[1].cells: no factor 'modl' in experiment 'timing' at profile 'gpu'; did you mean "
        "'model'?",
    ),
    "divided": (
        "seconds: {unit: s, positive: true}",
        "seconds: {unit: s}",
        "measures.seconds: claims.speed.rule.cpu divides by it; write positive: true if it is always above 0, else use "
        "a difference",
    ),
    "tune": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    tune: {factor: lr}\n",
        "claims.parity.tune.factor: no factor 'lr' in 'quality'; write one of depth, batch",
    ),
    "tune as a text": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    tune: lr\n",
        "claims.parity.tune: is the text 'lr'; write one of shared",
    ),
    "tune as a list": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    tune: [lr]\n",
        "claims.parity.tune: is a list; write shared, or {factor: lr, seeds: 2}",
    ),
    "trivial": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    trivial: {predictr: bigram}\n",
        "claims.parity.trivial.predictr: unknown key; did you mean 'predictor'?",
    ),
    "trivial's measure": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    trivial: {predictor: bigram, measure: vall}\n",
        "claims.parity.trivial.measure: no measure 'vall'; did you mean 'val'?",
    ),
    "mutants": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    mutants: [identiy]\n",
        "claims.parity.mutants[0]: no arm 'identiy' in experiment 'quality'; did you mean 'identity'?",
    ),
    "fails": (
        "    positive: layernorm\n",
        "    positive: layernorm\n    fails: {measure: val}\n",
        "claims.parity.fails: write one of below, above",
    ),
    "read": (
        "    read: abstract\n",
        "    read: abstrct\n",
        "claims.bleu.read: is the text 'abstrct'; did you mean 'abstract'? (allowed: full text, abstract, repository, "
        "second hand)",
    ),
    "elsewhere's claim": (
        "{claim: parity, who",
        "{claim: paritty, who",
        "elsewhere[0].claim: no claim 'paritty'; did you mean 'parity'?",
    ),
    "elsewhere's answer": (
        "agrees: yes}",
        "agrees: true}",
        "elsewhere[0].agrees: is the truth value True; write one of yes, no, partly",
    ),
    "an identity's control": (
        "expect: violated",
        "expect: not_reproduced",
        "identities.zero-mean.controls[0].expect: is not_reproduced; write expect: violated",
    ),
    "an identity without a region": (
        ", bound: 1e-9}",
        "}",
        "identities.zero-mean.rule: write one of bound, min, max, between (now: none)",
    ),
    "like nothing": (
        "gpu: {seeds: 10, timing",
        "gpu: {like: cqu, timing",
        "profiles.gpu.like: no profile 'cqu'; did you mean 'cpu'?",
    ),
    "like itself": (
        "gpu: {seeds: 10, timing",
        "gpu: {like: gpu, timing",
        "profiles.gpu.like: goes in a circle: gpu is like gpu; write one of them out",
    ),
    "like a number": (
        "gpu: {seeds: 10, timing",
        "gpu: {like: 3, timing",
        "profiles.gpu.like: is the number 3; write the name of another profile",
    ),
    "first seed": (
        "seeds: 10, timing",
        "seeds: 10, first_seed: 995, timing",
        "profiles.gpu.first_seed: is 995; write at most 990, so that the seeds stay below 1000, which are for tuning",
    ),
    "function": (
        "exclusive: true, factors",
        "exclusive: true, function: time it, factors",
        "experiments.timing.function: is 'time it'; write the name of a function, or module:function",
    ),
    "function of two modules": (
        "exclusive: true, factors",
        "exclusive: true, module: repro.experiments.decoder, function: 'repro.experiments.decoder:speed', factors",
        "experiments.timing.function: names its module; leave out module",
    ),
    "ranks without end": (
        "repeats: 3, seeds: 3",
        "repeats: 3, seeds: 3, ranks: 1000000000",
        "profiles.cpu.timing.ranks: is the number 1000000000; write a whole number of at most 1024",
    ),
    "a factor twice": (
        "per: depth}",
        "per: depth, at: {depth: 4}}",
        "claims.parity.rule.at.depth: factor 'depth' is used twice in this rule",
    ),
    "an open factor": (
        ", per: depth}",
        "}",
        "claims.parity.rule: leaves factor 'depth' open at profile 'cpu'; write at: {depth: 4} or per: depth",
    ),
    "at_least": (
        "at_least: 1",
        "at_least: 3",
        "claims.speed.rule.gpu[1].at_least: is 3, of 2 levels at profile 'gpu'",
    ),
    "level": (
        "margin: 0.02",
        "margin: 0.02, level: 95",
        "claims.parity.rule.level: is 95; write a number between 0.5 and 1, such as 0.95",
    ),
    "level 0.5": (
        "margin: 0.02",
        "margin: 0.02, level: 0.5",
        "claims.parity.rule.level: is 0.5; write a number between 0.5 and 1, such as 0.95",
    ),
    "margin 0": (
        "margin: 0.02",
        "margin: 0",
        "claims.parity.rule.margin: is 0; write a number above 0",
    ),
    "no region": (
        ", max: 9",
        "",
        "claims.speed.rule.gpu[1]: write one of min, max, between (now: none)",
    ),
    "two regions": (
        "max: 9",
        "max: 9, min: 1",
        "claims.speed.rule.gpu[1].max: write one of min, max, between (now: min, max)",
    ),
    "between": (
        "max: 9",
        "between: [9, 1]",
        "claims.speed.rule.gpu[1].between: is [9, 1]; write [low, high]",
    ),
    "ratio below 0": (
        "max: 1, at",
        "max: 0, at",
        "claims.speed.rule.cpu.max: is 0; a ratio is above 0",
    ),
    "control's name": (
        "{rmsnorm: identity}",
        "{rmsnrm: identity}",
        "claims.parity.controls[0].replace.rmsnrm: replaces nothing: the rule's arms are rmsnorm, layernorm",
    ),
    "control's arm": (
        "{rmsnorm: identity}",
        "{rmsnorm: identty}",
        "claims.parity.controls[0].replace.rmsnorm: no arm 'identty' in experiment 'quality'; did you mean 'identity'?",
    ),
    "control by itself": (
        "{rmsnorm: identity}",
        "{rmsnorm: rmsnorm}",
        "claims.parity.controls[0].replace.rmsnorm: replaces 'rmsnorm' by itself; name another arm, or add "
        "seed_offset: 1000",
    ),
    "control without replace": (
        "{replace: {rmsnorm: identity}, expect",
        "{expect",
        "claims.parity.controls[0]: replaces nothing; write replace: {arm of the rule: broken arm}",
    ),
    "not_met": (
        "expect: not_reproduced",
        "expect: not_met",
        "claims.parity.controls[0].expect: not_met makes sense for superiority only, not for "
        "noninferiority; write expect: not_reproduced",
    ),
    "seed_offset": (
        "expect: not_reproduced",
        "expect: not_reproduced, seed_offset: 10",
        "claims.parity.controls[0].seed_offset: is 10; write at least 1000",
    ),
    "control elsewhere": (
        "expect: not_reproduced",
        "expect: not_reproduced, at: {depth: 5}",
        "claims.parity.controls[0].at.depth: depth has no level 5 at profile 'cpu'; it has 4, 12",
    ),
    "positive": (
        "positive: layernorm",
        "positive: layernrm",
        "claims.parity.positive: no arm 'layernrm' in experiment 'quality'; did you mean 'layernorm'?",
    ),
    "headline": (
        "headline: parity",
        "headline: paritty",
        "headline: no claim 'paritty'; did you mean 'parity'?",
    ),
    "headline that is an identity": (
        "headline: parity",
        "headline: zero-mean",
        "headline: 'zero-mean' is an identity; write the claim that the paper is known for",
    ),
    "headline per profile": (
        "headline: parity",
        "headline: {cpu: parity, gpu: speed}",
        "headline: is a mapping; write a text",
    ),
    "neither rule nor untested": (
        "    untested: needs WMT14\n",
        "",
        "claims.bleu: has neither a rule nor 'untested: why'",
    ),
    "untested with a control": (
        "untested: needs WMT14",
        "untested: needs WMT14\n    positive: layernorm",
        "claims.bleu.positive: the claim is untested; drop this or drop 'untested'",
    ),
    "experiment": (
        "experiment: timing",
        "experiment: timings",
        "claims.speed.experiment: no experiment 'timings'; did you mean 'timing'?",
    ),
    "no experiment": (
        "    experiment: timing\n",
        "",
        "claims.speed: 'experiment' is missing",
    ),
    "experiment in a profile": (
        "gpu: {seeds: 10, timing:",
        "gpu: {seeds: 10, timng:",
        "profiles.gpu.timng: no experiment 'timng'; did you mean 'timing'?",
    ),
    "profile": (
        "  gpu: {seeds: 10",
        "  gpuu: {seeds: 10",
        "profiles.gpuu: unknown key; did you mean 'gpu'? (allowed: smoke, cpu, long, gpu, paper)",
    ),
    "no seeds": (
        "gpu: {seeds: 10, timing",
        "gpu: {timing",
        "profiles.gpu: 'seeds' is missing",
    ),
    "seeds": (
        "seeds: 10",
        "seeds: ten",
        "profiles.gpu.seeds: is the text 'ten'; write a whole number of at least 1",
    ),
    "tuning seeds": (
        "tuning_seeds: [1000]",
        "tuning_seeds: [5]",
        "profiles.cpu.quality.tuning_seeds[0]: is the number 5; write a whole number of at least 1000",
    ),
    "arms of a profile": (
        "batched: true,",
        "batched: true, arms: [rmsnom],",
        "profiles.cpu.quality.arms[0]: no arm 'rmsnom' in experiment 'quality'; did you mean 'rmsnorm'?",
    ),
    "factors of a profile": (
        "batched: true,",
        "batched: true, factors: {dept: [4]},",
        "profiles.cpu.quality.factors.dept: no factor of experiment 'quality'; did you mean 'depth'?",
    ),
    "a factor as a setting": (
        "batched: true,",
        "batched: true, depth: 4,",
        "profiles.cpu.quality.depth: is a factor; write factors: {depth: [...]}",
    ),
    "a level twice": (
        "depth: [4, 12]",
        "depth: [4, 4]",
        "experiments.quality.factors.depth[1]: 4 stands twice; write each once",
    ),
    "batched": (
        "repeats: 3,",
        "batched: true,",
        "profiles.cpu.timing.batched: an exclusive experiment cannot be batched",
    ),
    "paper's range": (
        "{low: 0.36, high: 0.93}",
        "{low: 1.36, high: 0.93}",
        "claims.speed.paper_value.low: 1.36 is above high 0.93",
    ),
    "paper's nothing": (
        "{low: 0.36, high: 0.93}",
        "{low: 0.36}",
        "claims.speed.paper_value: write value:, or low: and high:, or text:",
    ),
    "rule of the smoke profile": (
        "      cpu: {kind: ratio",
        "      smoke: {kind: ratio",
        "claims.speed.rule.smoke: the smoke profile is never judged; drop this",
    ),
    "rule as a text": (
        "rule: {kind: noninferiority, measure: val, arm: rmsnorm, against: layernorm, margin: 0.02, per: depth}",
        "rule: parity",
        "claims.parity.rule: is the text 'parity'; write a rule, a list of rules, or one per profile",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_with_its_place(write, name):
    old, new, message = BAD[name]
    text, line = changed(old, new)
    path = write(text)
    with pytest.raises(ReproError) as caught:
        load(path)
    told = str(caught.value)
    assert "\n" not in told and told.startswith(f"{path}:")
    if message is None:
        return
    where, _, rest = told.removeprefix(f"{path}:").partition(": ")
    assert rest == message
    # Of what is missing, the line is that of the entry that lacks it.
    elsewhere = {
        "no direction": 18,
        "no source": 1,
        "no experiment": 35,
        "neither rule nor untested": 46,
        "an arm that a profile leaves out": 31,
    }
    assert int(where) == elsewhere.get(name, line)


def test_tags_anchors_and_keys_are_refused(write):
    bomb = "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    for text, message in [
        (bomb, ":1: a: anchor &a and its aliases are not allowed"),
        ("a: !!python/name:os.system\n", ":1: a: "),
        ("a: !x 1\n", ":1: a: '!x' is not allowed"),
        ("a: 1\nb: {4: 1}\n", "a key must be a text; write '4' in quotes"),
        ("a: 1\n a: 2\n", ":2: not YAML 1.2"),
        ("a: [1, 2\n", "not YAML 1.2"),
        ("\n\n- 1\n- {a: 1, a: 2}", ":4: "),
        ("[" * 5000, "not YAML 1.2"),
    ]:
        with pytest.raises(ReproError) as caught:
            load_yaml(write(text))
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_yaml_is_1_2(write):
    values = {
        "1e-3": 0.001,
        "1E5": 1e5,
        "on": "on",
        "yes": "yes",
        "010": 10,
        "0o10": 8,
        "0x1F": 31,
        "12:30": "12:30",
        "true": True,
        "null": None,
        "~": None,
        "-.5": -0.5,
        "'1'": "1",
        "": None,
        "-7": -7,
        "[1, 2.]": [1, 2.0],
    }
    text = "".join(f"k{i}: {written}\n" for i, written in enumerate(values))
    assert load_yaml(write(text)) == {f"k{i}": value for i, value in enumerate(values.values())}


def test_files_that_are_no_paper(write, tmp_path):
    for text, message in [("", "is empty"), ("- 1\n", "is a list"), ("slug", "is the text 'slug'")]:
        with pytest.raises(ReproError, match=message):
            load(write(text))
    path = write()
    path.write_bytes(b"slug: x\ntitle: \xff\n")
    with pytest.raises(ReproError, match=r"paper.yaml:2: not UTF-8"):
        load(path)
    with pytest.raises(ReproError, match=r"^rmsnrm: no such paper; did you mean rmsnorm\?$"):
        load("rmsnrm", tmp_path)
    with pytest.raises(ReproError, match="No such file"):
        load_params(tmp_path)


PARAMS = "profile: cpu\ndevice: auto\nseeds: null\ntime_limit: {smoke: 5, cpu: 180}\n"


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        (
            "cpu\ndev",
            "cpuu\ndev",
            1,
            "profile: is the text 'cpuu'; did you mean 'cpu'? (allowed: smoke, cpu, long, gpu, paper)",
        ),
        ("auto", "gpu", 2, "device: is 'gpu'; write auto, cpu, cuda or cuda:0"),
        ("null", "0", 3, "seeds: is 0; write a positive whole number, or null"),
        ("null", "1.5", 3, "seeds: is the number 1.5; write a whole number"),
        ("smoke: 5", "smoke: 5s", 4, "time_limit.smoke: is the text '5s'; write a number"),
        (
            "smoke: 5",
            "smok: 5",
            4,
            "time_limit.smok: unknown key; did you mean 'smoke'? (allowed: smoke, cpu, long, gpu, paper)",
        ),
        ("time_limit", "time_limits", 4, "time_limits: unknown key; did you mean 'time_limit'?"),
    ],
)
def test_params(tmp_path, old, new, line, message):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS)
    assert load_params(tmp_path).time_limit == {"smoke": 5, "cpu": 180} and load_params(tmp_path).seeds is None
    path.write_text(PARAMS.replace(old, new))
    with pytest.raises(ReproError) as caught:
        load_params(tmp_path)
    assert str(caught.value) == f"{path}:{line}: {message}"


def test_an_edited_file_is_checked_again_and_nothing_is_kept_on_disk(write, tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    path = write()
    first = load(path)
    assert load(path) is first and not (tmp_path / ".repro").exists()
    write(changed("margin: 0.02", "margn: 0.02")[0])
    with pytest.raises(ReproError, match="margn: unknown key"):
        load(path)
    write(slug="other")
    with pytest.raises(ReproError, match="the folder is 'other'"):  # the same bytes elsewhere are another paper
        load("other", tmp_path)


def test_loading_imports_no_heavy_package(write, tmp_path):
    write()
    code = f"""
import sys
from repro.spec.load import load
load("rmsnorm", {str(tmp_path)!r})
print([name for name in ("torch", "numpy", "scipy", "ruamel.yaml") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plain_data_and_the_json_schema_agree_with_the_file(write):
    path = write()
    paper, schema = load(path), json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(load_yaml(path))
    bad = load_yaml(path)
    bad["claims"]["parity"]["rule"]["margn"] = 1
    assert not validator.is_valid(bad)
    dumped = as_dict(paper)
    rule = dumped["claims"]["parity"]["rule"]
    assert validator.is_valid(json.loads(json.dumps(dumped)))
    assert rule["level"] == 0.95 and dumped["headline"] == "parity"
    contrast = Contrast(factor="d", levels=[1, 2], as_="ratio")
    assert as_dict(contrast) == {"factor": "d", "levels": [1, 2], "as": "ratio"}


LIKE = """\
  long:
    like: cpu
    first_seed: 5
    quality: {steps: 2000, factors: {depth: [12, 24]}}
    timing: null
  paper: {like: long, quality: {arms: [rmsnorm, layernorm, identity], factors: {batch: [64]}}}
"""


def test_a_profile_is_another_one_plus_what_differs(write):
    paper = load(write(TEXT + LIKE))
    cpu, long, original = (paper.settings(profile, "quality") for profile in ("cpu", "long", "paper"))
    assert (long.config, long.batched) == ({"steps": 2000, "lr": 0.001}, True) and cpu.config["steps"] == 150
    assert long.factors == {"depth": [12, 24], "batch": [32]} and cpu.factors["depth"] == [4, 12]
    assert original.factors == {"depth": [12, 24], "batch": [64]}
    assert cpu.seeds == [0, 1, 2, 3, 4] and long.seeds == original.seeds == [5, 6, 7, 8, 9]
    assert paper.experiments_in("long") == paper.experiments_in("paper") == ["quality"]
    assert "like" not in paper.profiles["long"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("like: cpu", "like: paper", "like: goes in a circle: long is like paper is like long; write one of them out"),
        ("lr: 1e-3, batched", "lr: 1e-3x, batched", "profiles.cpu.quality.lr: is the text '1e-3x'; write a number"),
        ("factors: {depth: [12, 24]}", "factors: {dept: [12]}", "profiles.long.quality.factors.dept: no factor"),
        ("timing: null", "timng: null", "profiles.long.timng: no experiment 'timng'; did you mean 'timing'?"),
    ],
)
def test_what_is_wrong_in_a_profile_that_is_like_another(write, old, new, message):
    assert (TEXT + LIKE).count(old) == 1
    with pytest.raises(ReproError, match="paper.yaml:[0-9]+: ") as caught:
        load(write((TEXT + LIKE).replace(old, new)))
    assert message in str(caught.value)


def test_what_is_inherited_keeps_its_line(write):
    text = TEXT.replace("cpu:\n    seeds: 5\n", "cpu:\n    seeds: 5000\n") + LIKE
    with pytest.raises(ReproError, match="write at most 1000") as caught:
        load(write(text))
    assert f":{text[: text.index('seeds: 5000')].count(chr(10)) + 1}: " in str(caught.value)


def test_an_experiment_may_be_a_function_of_another_name(write):
    assert load(write()).settings("cpu", "timing").function == "timing"
    for function, module, name in [
        ("clock", None, "clock"),
        ("'repro.experiments.decoder:speed'", "repro.experiments.decoder", "speed"),
    ]:
        text, _ = changed("exclusive: true, factors", f"exclusive: true, function: {function}, factors")
        settings = load(write(text)).settings("cpu", "timing")
        assert (settings.module, settings.function) == (module, name)


def test_papers_are_frozen(write):
    paper = load(write())
    with pytest.raises(AttributeError):
        paper.slug = "x"
    with pytest.raises(AttributeError):
        paper.rules("parity", "cpu")[0].margin = 1.0


def test_the_suite_is_found():
    folder = papers.paper_dirs()
    assert folder.name == "papers" and (folder.parent / "params.yaml").is_file()
    assert papers.slugs() == sorted(papers.slugs())
    load_params(folder.parent)


def test_the_page_of_keys_says_every_key_and_is_up_to_date():
    from repro.spec import describe

    page = describe.markdown()
    assert describe.unmentioned() == []
    assert page == (papers.paper_dirs().parent / "docs" / "paper_yaml.md").read_text(encoding="utf-8")
    for key in (
        "identities",
        "elsewhere",
        "headline",
        "tune",
        "trivial",
        "mutants",
        "fails",
        "read",
        "like",
        "first_seed",
    ):
        assert f"| `{key}`" in page, key
    assert "|  | `kind`" not in page and page.count("| `at_least` |") == 1, "the keys of every rule stand once"
