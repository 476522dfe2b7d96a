"""Questions that people dispute (`questions/<name>.yaml`) as files."""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from repro.errors import ReproError, did_you_mean
from repro.files.arena import Arm, Name
from repro.files.schema import CLOSED, Share, Wanted, Words, checked, matching, one_of

Side = one_of("yes", "no")
Place = matching(r"[a-z][a-z0-9_]*/[a-z0-9-]+", "a paper and a claim, such as rmsnorm/quality-parity")


class Voice(TypedDict):
    """Somebody who takes a side, with what they say and where it stands."""

    __pydantic_config__ = CLOSED
    says: Side
    who: Words
    where: Words
    text: Words


class Judged(TypedDict):
    """A claim of a paper that bears on the question: which side it speaks for if it holds, and if it does not."""

    __pydantic_config__ = CLOSED
    claim: Place
    holds: Side
    fails: NotRequired[Side]
    about: Words


class Ranked(TypedDict):
    """A line of the arena that bears on the question; it holds where the method is better or as good as the base."""

    __pydantic_config__ = CLOSED
    track: Name
    arm: Arm
    share: NotRequired[
        Share
    ]  # it holds where it is better, with the base's final loss in at most this share of the steps
    holds: Side
    fails: NotRequired[Side]
    about: Words


class Answers(TypedDict):
    """The sentence that answers, by the side for which the evidence speaks."""

    __pydantic_config__ = CLOSED
    yes: Words
    no: Words
    both: Words


class Question(TypedDict):
    """A question with its voices, the evidence that may answer it, and the answers."""

    __pydantic_config__ = CLOSED
    question: matching(r"\S[^\n]*\?", "one line that ends with a question mark")
    needs: NotRequired[one_of("all")]  # one side alone is "yes" only where every claim and line speaks for it
    disputed: Words
    voices: Annotated[list[Voice], Field(min_length=2), Wanted("a list of at least two voices")]
    claims: list[Judged]
    arena: NotRequired[list[Ranked]]
    answers: Answers
    would_change: Words


def names(root: Path) -> list[str]:
    """The names of the questions of a checkout."""
    return sorted(path.stem for path in (root / "questions").glob("*.yaml"))


def read_question(root: Path, name: str) -> dict[str, Any]:
    """One question as plain data; a ReproError with the line of what is wrong."""
    from repro.arena import protocol
    from repro.spec import load

    known = names(root)
    if name not in known:
        raise ReproError(f"{name[:100]}: no such question{did_you_mean(name[:100], known)}; `repro ask` lists all")
    path = root / "questions" / f"{name}.yaml"
    file = load.yaml_file(path, load.shown(path))
    checked(file, Question, file.data)
    if len({voice["says"] for voice in file.data["voices"]}) < 2:
        file.fail(("voices",), "all take one side; write what the other side says, or it is no dispute")
    for i, one in enumerate(file.data["claims"]):
        slug, _, claim = one["claim"].partition("/")
        try:
            paper = load.load(slug, root)
        except ReproError:
            if (root / "papers" / slug / "paper.yaml").is_file():
                continue  # it is there and cannot be read: whoever reads the paper says so, and other questions go on
            raise
        if claim not in paper.claims:
            file.fail(("claims", i, "claim"), f"{slug} has no claim {claim}{did_you_mean(claim, paper.claims)}")
        if paper.claims[claim].untested:
            file.fail(("claims", i, "claim"), f"{claim} of {slug} is not tested; name a claim that has a rule")
    for i, one in enumerate(file.data.get("arena", ())):
        if one["track"] not in (tracks := protocol.tracks(root)):
            what = f"no track {one['track']} in arena.yaml{did_you_mean(one['track'], tracks)}"
            file.fail(("arena", i, "track"), what)
    return file.data
