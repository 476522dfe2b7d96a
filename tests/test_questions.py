"""Questions: files that are refused, answers that follow from verdicts, and pages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repro.arena import protocol
from repro.errors import ReproError
from repro.files import questions as files
from repro.publish import stages
from repro.report import QuestionPage, questions

ROOT = Path(__file__).resolve().parents[1]
GOOD = """\
question: Is RMSNorm as good?
disputed: People disagree.
voices:
  - {says: "yes", who: A, where: "arXiv:1", text: It is.}
  - {says: "no", who: "<script>B</script>", where: "arXiv:2", text: It is not.}
claims:
  - {claim: rmsnorm/quality-parity, holds: "yes", fails: "no", about: Quality.}
  - {claim: rmsnorm/running-time, holds: "yes", about: Time.}
arena:
  - {track: gpt, arm: "norm:rmsnorm.RMSNorm", share: 0.5, holds: "yes", fails: "no", about: Steps.}
answers: {"yes": It is., "no": It is not., both: It depends.}
would_change: A larger model.
"""

GOOD_ARENA = [
    {"track": "gpt", "arm": "norm:rmsnorm.RMSNorm", "share": 0.5, "holds": "yes", "fails": "no", "about": "S."}
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one paper and one question."""
    shutil.copytree(ROOT / "papers" / "rmsnorm", tmp_path / "papers" / "rmsnorm")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "arena.yaml", tmp_path)
    (tmp_path / "questions").mkdir()
    (tmp_path / "questions" / "demo.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize("name", files.names(ROOT))
def test_every_question_is_sound_and_has_a_page(name):
    asked = files.read_question(ROOT, name)
    assert asked["claims"] or asked.get("arena")
    page = str(QuestionPage(name, ROOT, stale={}).page())
    assert asked["question"] in page and all(
        f"papers/{one['claim'].split('/')[0]}.html" in page for one in asked["claims"]
    )
    stage = stages.question_stage(ROOT, name)
    assert all(f"papers/{one['claim'].split('/')[0]}/results\n" in stage for one in asked["claims"])


def test_the_arms_of_all_questions_are_entrants_of_their_tracks() -> None:
    wanted = [one for name in files.names(ROOT) for one in files.read_question(ROOT, name).get("arena", ())]
    known = {track: set(protocol.entrants(track)[0]) for track in {one["track"] for one in wanted}}
    assert wanted and [one["arm"] for one in wanted if one["arm"] not in known[one["track"]]] == []


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (
            "rmsnorm/quality-parity",
            "rmsnorm/quality-paritx",
            "has no claim quality-paritx; did you mean 'quality-parity'",
        ),
        ("rmsnorm/quality-parity", "quality-parity", "write a paper and a claim"),
        ("rmsnorm/quality-parity", "rmsnrm/quality-parity", "rmsnrm: no such paper; did you mean rmsnorm"),
        ('{says: "no"', '{says: "yes"', "all take one side"),
        ('fails: "no", about: Quality', "fails: maybe, about: Quality", "write one of yes, no"),
        ("Is RMSNorm as good?", "RMSNorm is as good.", "ends with a question mark"),
        ("would_change", "would_chance", "would_chance"),
        ("share: 0.5", "share: 2", "from 0 to 1"),
        ("track: gpt", "track: gtp", "no track gtp in arena.yaml; did you mean 'gpt'"),
    ],
)
def test_a_wrong_question_is_refused_in_one_line_with_its_place(tree, before, after, wanted):
    path = tree / "questions" / "demo.yaml"
    assert before in GOOD
    path.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(ReproError) as error:
        files.read_question(tree, "demo")
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_claim_that_is_not_tested_decides_nothing_and_is_refused(tree):
    from repro.spec import load

    slug, claim = next(
        (slug, name) for slug in load.slugs() for name, one in load.load(slug).claims.items() if one.untested
    )
    shutil.copytree(ROOT / "papers" / slug, tree / "papers" / slug, dirs_exist_ok=True)
    (tree / "questions" / "demo.yaml").write_text(GOOD.replace("rmsnorm/quality-parity", f"{slug}/{claim}"))
    with pytest.raises(ReproError, match="is not tested"):
        files.read_question(tree, "demo")


def test_an_unknown_question_names_a_near_one(tree):
    with pytest.raises(ReproError, match="dem: no such question; did you mean 'demo'"):
        files.read_question(tree, "dem")


def line(claim: str, state: str, stale: str | None = None) -> dict:
    return {"paper": "rmsnorm", "claim": claim, "state": state, "stale": stale}


@pytest.mark.parametrize(
    ("quality", "time", "answer"),
    [
        ("reproduced", "not_run", "yes"),
        ("not_reproduced", "inconclusive", "no"),
        ("not_reproduced", "reproduced", "both"),
        ("inconclusive", "not_reproduced", None),  # that claim speaks for nothing where it fails
        ("not_run", "not_run", None),
    ],
)
def test_the_answer_follows_from_the_verdicts(tree, quality, time, answer):
    asked = files.read_question(tree, "demo")
    lines = {
        "rmsnorm/quality-parity": line("quality-parity", quality),
        "rmsnorm/running-time": line("running-time", time),
    }
    found = questions.answered(asked, lines, [])
    assert found["answer"] == answer
    open_ = questions.UNMEASURED if {quality, time} == {"not_run"} else questions.UNDECIDED
    assert found["sentence"] == (asked["answers"][answer] if answer else open_)
    assert len(found["waits"]) == 1  # the arena has not been run


def test_a_stale_verdict_speaks_for_nothing(tree):
    asked = files.read_question(tree, "demo")
    lines = {"rmsnorm/quality-parity": line("quality-parity", "reproduced", stale="source")}
    assert questions.answered(asked, lines, [])["answer"] is None


@pytest.mark.parametrize(
    ("quality", "time", "answer"),
    [
        ("reproduced", "inconclusive", None),
        ("reproduced", "not_run", None),
        ("reproduced", "reproduced", "yes"),
        ("not_reproduced", "inconclusive", "no"),
        ("not_reproduced", "reproduced", "both"),
        ("inconclusive", "inconclusive", None),
    ],
)
def test_a_conjunction_is_not_answered_from_half_of_it(tree, quality, time, answer):
    path = tree / "questions" / "demo.yaml"
    lines_ = [line for line in GOOD.splitlines(keepends=True) if not line.startswith(("arena", "  - {track"))]
    path.write_text("needs: all\n" + "".join(lines_))
    asked = files.read_question(tree, "demo")
    lines = {
        "rmsnorm/quality-parity": line("quality-parity", quality),
        "rmsnorm/running-time": line("running-time", time),
    }
    found = questions.answered(asked, lines, [])
    assert found["answer"] == answer
    assert (found["sentence"] == questions.IN_PART) is (quality == "reproduced" and answer is None)
    with_arena = questions.answered({**asked, "arena": GOOD_ARENA}, lines, [])
    assert with_arena["answer"] == (None if answer == "yes" else answer)  # the arena has not been run


@pytest.mark.parametrize(
    ("standing", "steps", "usable", "answer"),
    [
        ("better", [150] * 5, True, "yes"),
        ("better", [150] * 4 + [200], True, None),  # 4 of 5 is no sign test
        ("better", [200, None, 300, 300, 300], True, None),  # better, but not midway in half of the steps
        ("as good", [100] * 5, True, "no"),
        ("worse", [None] * 5, True, "no"),
        ("not told apart", [100] * 5, True, None),
        ("better", [100] * 5, False, None),
    ],
)
def test_a_line_of_the_arena_speaks_by_its_standing_and_its_steps(tree, standing, steps, usable, answer):
    asked = {**files.read_question(tree, "demo"), "claims": []}
    one = {"arm": "norm:rmsnorm.RMSNorm", "standing": standing, "steps_to_target": steps[-1], "gap": [0.0, -0.1, 0.1]}
    one["reached"] = steps
    slots = {"norm": {"usable": usable, "lines": [one]}}
    cell = {"at": {"depth": 2, "steps": 300}, "slots": slots, "interactions": []}
    table = {"track": "gpt", "profile": "long", "settings": {}, "cells": [cell]}
    found = questions.answered(asked, {}, [table])
    assert found["answer"] == answer and not found["waits"]
    midway = usable and standing == "better" and steps[0] == 200
    assert (found["sentence"] == questions.MIDWAY) is midway and (found["places"][0]["why"] is not None) is midway


@pytest.mark.parametrize(
    ("standing", "high", "ranks", "answer"),
    [
        ("loses more", 0.2, True, "yes"),
        ("loses more", 0.2, False, None),  # the size ranks nothing
        ("loses less", -0.01, True, "no"),
        ("not told apart", 0.009, True, "no"),  # at most the margin
        ("not told apart", 0.02, True, None),
    ],
)
def test_a_pair_of_the_arena_speaks_by_its_interaction(tree, standing, high, ranks, answer):
    arm = "pair:dyt.DyT_Muon"
    asked = {**files.read_question(tree, "demo"), "claims": []}
    asked["arena"] = [{"track": "gpt", "arm": arm, "holds": "yes", "fails": "no", "about": "a pair"}]
    pair = {"arm": arm, "standing": standing, "interaction": [high - 0.1, high - 0.2, high]}
    cell = {"at": {"depth": 2, "steps": 300}, "slots": {}, "interactions": [pair], "ranks": ranks}
    table = {"track": "gpt", "profile": "long", "settings": {}, "cells": [cell], "margin": 0.01}
    found = questions.answered(asked, {}, [table])
    assert found["answer"] == answer and not found["waits"]
    numbers = found["places"][0]["numbers"]
    assert "more lost under the other optimizer" in numbers and numbers.count("[") == 1
    assert answer is not None or found["sentence"] == questions.UNDECIDED  # it was measured, and tells nothing


def test_a_page_escapes_what_the_file_says_and_names_the_command_for_what_has_not_run(tree):
    shutil.rmtree(tree / "papers" / "rmsnorm" / "results")
    page = str(QuestionPage("demo", tree, stale={}).page())
    assert "<script>" not in page and "&lt;script&gt;B" in page
    assert "repro run rmsnorm --profile long" in page and "repro arena --track gpt" in page
    assert questions.UNMEASURED in page


def test_a_page_names_the_profile_that_can_decide_a_claim(tree):
    if not (tree / "papers" / "scalenorm").exists():
        shutil.copytree(ROOT / "papers" / "scalenorm", tree / "papers" / "scalenorm")
    shutil.rmtree(tree / "papers" / "scalenorm" / "results", ignore_errors=True)
    text = GOOD.replace("rmsnorm/quality-parity", "scalenorm/warmup-free")
    (tree / "questions" / "demo.yaml").write_text(text)
    page = str(QuestionPage("demo", tree, stale={}).page())
    assert "repro run scalenorm --profile gpu" in page  # it has no long profile


def test_a_paper_that_cannot_be_read_stops_no_question(tree):
    (tree / "papers" / "rmsnorm" / "results" / "cpu.rows.json").unlink()
    (found,) = questions.answers(tree, only="demo")
    assert list(found["faults"]) == ["rmsnorm"] and "has no rows beside it" in found["faults"]["rmsnorm"]
    assert all(one["state"] == "not_run" for one in found["claims"] if one["claim"].startswith("rmsnorm/"))
    page = str(QuestionPage("demo", tree, stale={}).page())
    assert "cannot be shown" in page and "has no rows beside it" in page


def test_a_paper_yaml_that_cannot_be_read_stops_no_question(tree):
    path = tree / "papers" / "rmsnorm" / "paper.yaml"
    path.write_text(path.read_text().replace("headline:", "headlines:", 1))
    assert files.read_question(tree, "demo")["claims"]
    (found,) = questions.answers(tree, only="demo")
    assert "headlines: unknown key" in found["faults"]["rmsnorm"]


def test_the_command_answers_one_question_or_all_and_refuses_an_unknown_one() -> None:
    def ask(*words: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "repro", "ask", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    one = ask("muon_or_adamw")
    assert one.returncode == 0 and "muon_or_adamw: Is Muon" in one.stdout and "change" in one.stdout
    every = json.loads(ask("--json").stdout)
    assert [found["name"] for found in every] == files.names(ROOT)
    assert all(found["answer"] in ("yes", "no", "both", None) for found in every)
    unknown = ask("muon_or_adamx")
    assert unknown.returncode == 2 and "did you mean 'muon_or_adamw'" in unknown.stderr
