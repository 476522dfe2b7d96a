"""Rows, verdicts, tables and plans as files: they come from strangers too, so they are read strictly.

A file that is not what it should be is refused in one line with its place: no NaN, no key twice, no text for a number,
no missing field, nothing that belongs to another paper.  Keys that are not known here are left alone.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from repro.errors import ReproError
from repro.store import sealed

SCHEMA = 1
PROFILES = ("smoke", "cpu", "gpu", "paper")
STATES = ("reproduced", "not_reproduced", "inconclusive")
SLUG = re.compile(r"[a-z][a-z0-9_]{0,59}")
NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # halves of characters too
DEPTH = 20  # no document nests deeper
LARGEST = 2**53  # whole numbers beyond it are not those that were written

Where = tuple[str | int, ...]


def plain(path: Path, shown: str | None = None) -> str:
    """A text file."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ReproError(f"{shown or path}:{line}: not UTF-8; save the file as UTF-8") from None


class _NoJson(Exception):
    """A token or a key that valid JSON has not."""


class JsonFile:
    """`data` of a JSON file; `fail` refuses it in one line, with the line of a place and what to do (`again`)."""

    def __init__(self, path: Path, again: str, shown: str | None = None):
        self.path, self.again, self.shown, self.text = path, again, shown or str(path), ""
        try:
            raw = path.read_bytes()
            self.text = raw.decode("utf-8")
            self.data = json.loads(self.text, parse_constant=_constant, object_pairs_hook=_pairs)
            self._depth()
            self._characters()
        except OSError as error:
            raise ReproError(f"{self.shown}: {error.strerror or error}; {again}") from None
        except UnicodeDecodeError as error:
            self._refuse(raw.count(b"\n", 0, error.start) + 1, "not UTF-8")
        except json.JSONDecodeError as error:
            self._refuse(error.lineno, f"not JSON: {error.msg}")
        except _NoJson:
            self._refuse(*self._culprit())
        except (RecursionError, ValueError) as error:  # a ValueError: a number of more than 4,300 digits
            deep = isinstance(error, RecursionError)
            self._refuse(1, "nested too deep" if deep else "holds a number with thousands of digits")

    def _refuse(self, line: int, message: str) -> NoReturn:
        raise ReproError(
            " ".join(f"{self.shown}:{line}: {message}; {self.again}".split())
        )  # a key may hold a line's end

    def fail(self, where: Where, message: str) -> NoReturn:
        """Refuse what stands at a place, such as ("rows", 3, "seed")."""
        lines = {place: line for place, line, _ in reversed(list(_places(self.text)))}
        line = next(lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines)
        self._refuse(line, f"{dotted(where)}{': ' if where else ''}{message}")

    def _culprit(self) -> tuple[int, str]:
        """Line and name of the first NaN or of the first key that stands twice."""
        seen: dict[Where, int] = {}
        for place, line, token in _places(self.text):
            if token is None and place in seen:
                return line, f"{dotted(place)}: stands twice, first on line {seen[place]}"
            if token is None:
                seen[place] = line
            elif token in ("NaN", "Infinity", "-Infinity"):
                return line, f"{dotted(place)}: {token} is no JSON; a run writes such a row as diverged"
        return 1, "not JSON"

    def _depth(self) -> None:
        level = [self.data]
        for _ in range(DEPTH):
            level = [
                v
                for one in level
                if isinstance(one, dict | list)
                for v in (one.values() if isinstance(one, dict) else one)
                if isinstance(v, dict | list)
            ]
            if not level:
                return
        raise RecursionError

    def _characters(self) -> None:
        """Refuse what a terminal or a file cannot take: control characters and halves of characters."""
        if "\\u" not in self.text and not NOT_TEXT.search(self.text):
            return
        for place, line, token in _places(self.text):
            found = place[-1] if token is None else json.loads(token) if token[0] == '"' else ""
            if isinstance(found, str) and (match := NOT_TEXT.search(found)):
                self._refuse(
                    line,
                    f"{dotted(place) if token else 'a key'}: holds the control character {match[0]!r}; leave it out",
                )


def _constant(token: str) -> NoReturn:
    raise _NoJson


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _NoJson
    return made


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def _places(text: str) -> Iterator[tuple[Where, int, str | None]]:
    """(place, line, token) of every value of a JSON text, and (place, line, None) of every key before its value."""
    path: list[str | int] = []
    line, at, key_next = 1, 0, False
    for match in _TOKEN.finditer(text):
        token = match[0]
        line, at = line + text.count("\n", at, match.start()), match.start()
        if token in "]}":
            del path[-1:]
            key_next = False
        elif token == ",":
            key_next = bool(path) and isinstance(path[-1], str)
            if path and isinstance(path[-1], int):
                path[-1] += 1
        elif token == ":":
            key_next = False
        elif key_next:
            path[-1] = json.loads(token)
            yield tuple(path), line, None
        else:
            yield tuple(path), line, token
            if token in "[{":
                path.append("" if token == "{" else 0)
                key_next = token == "{"


def dotted(where: Where) -> str:
    """`rows[3].seed`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


# --- what values may be -----------------------------------------------------------------------------------------------
# A kind is a function (value -> "" or what to write instead), [kind] for a list, (kind,) for null or the kind, or
# {key: kind} for an object: "key?" may be missing, ... stands for every other key.


def text(value: Any) -> str:
    return "" if type(value) is str else "a text"


def words(value: Any) -> str:
    return "" if type(value) is str and value.strip() else "a text that is not empty"


def truth(value: Any) -> str:
    return "" if type(value) is bool else "true or false"


def whole(value: Any) -> str:
    return "" if type(value) is int and 0 <= value <= LARGEST else "a whole number from 0 on"


def number(value: Any) -> str:
    fine = -math.inf < value < math.inf if type(value) is float else type(value) is int and abs(value) <= LARGEST
    return "" if fine else "a finite number"


def above_zero(value: Any) -> str:
    return "" if not number(value) and value > 0 else "a number above 0"


def cost(value: Any) -> str:
    return "" if not number(value) and value >= 0 else "a number of at least 0"


def measure(value: Any) -> str:
    """A number, or a list of them."""
    many = value if type(value) is list else [value]
    return "" if many and not any(map(number, many)) else "a number or a list of finite numbers"


def level(value: Any) -> str:
    return "" if type(value) in (str, bool) or not number(value) else "a text, a number, true or false"


def digest_text(value: Any) -> str:
    return "" if type(value) is str and value.startswith("sha256:") else "a digest, sha256:..."


def one_of(*known: str) -> Callable[[Any], str]:
    return lambda value: "" if type(value) is str and value in known else "one of " + ", ".join(known)


def matching(pattern: re.Pattern, wanted: str) -> Callable[[Any], str]:
    return lambda value: "" if type(value) is str and pattern.fullmatch(value) else wanted


def unlike(kind: Any, value: Any) -> str:
    """What to write in place of a setting that is not of the type which its Config annotates; types not known here fit."""
    if kind is Any or isinstance(kind, str):
        return ""
    if get_origin(kind) in (Union, UnionType):
        found = [unlike(one, value) for one in get_args(kind)]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (tuple, list) or get_origin(kind) in (tuple, list, Sequence):
        inner = get_args(kind)[:1]
        fine = type(value) in (list, tuple) and not any(unlike(one, v) for v in value for one in inner)
        return "" if fine else f"a list of {KINDS.get(inner[0], 'values') + 's' if inner else 'values'}"
    fine = {
        int: type(value) is int,
        float: type(value) in (int, float),
        str: type(value) is str,
        bool: type(value) is bool,
        type(None): value is None,
    }.get(kind, True)
    return "" if fine else KINDS[kind]


KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def told(value: Any) -> str:
    """`is the text 'x'`, cut short."""
    if value is None:
        return "is null"
    if isinstance(value, dict | list):
        return "is an object" if isinstance(value, dict) else "is a list"
    name = {str: "text", bool: "truth value"}.get(type(value), "number")
    shown = repr(value) if abs(value if isinstance(value, int) else 0) < 10**40 else "of many digits"
    return f"is the {name} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def check(file: Any, kind: Any, value: Any, where: Where = (), strict: bool = False) -> None:
    """Refuse a value of a file (a JsonFile or a YamlFile) that is not of a kind; `strict`: and keys that are not known."""
    if callable(kind):
        if wanted := kind(value):
            file.fail(where, f"{told(value)}; write {wanted}")
    elif isinstance(kind, tuple):
        if value is not None:
            check(file, kind[0], value, where, strict)
    elif isinstance(kind, list):
        if type(value) is not list:
            file.fail(where, f"{told(value)}; write a list")
        for i, item in enumerate(value):
            check(file, kind[0], item, (*where, i), strict)
    elif type(value) is not dict:
        file.fail(where, f"{told(value)}; write keys with values")
    else:
        own = {key.removesuffix("?"): one for key, one in kind.items() if key is not ...}
        for name, item in value.items():
            if (one := own.get(name, kind.get(...))) is not None:
                check(file, one, item, (*where, name), strict)
            elif strict:
                near = difflib.get_close_matches(name, own, 1, 0.65)
                hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(own)}"
                file.fail((*where, name), f"unknown key; {hint}")
        for key in kind:
            if key is not ... and not key.endswith("?") and key not in value:
                file.fail(where, f"'{key}' is missing")


# --- rows -------------------------------------------------------------------------------------------------------------

ROW = {
    "experiment": words,
    "arm": words,
    "seed": whole,
    "factors": {...: level},
    "status": one_of("ok", "diverged", "invalid"),
    "seconds": cost,
    "measures": {...: measure},
    "step?": (whole,),
    "why?": text,
}
PROVENANCE = {
    "digest": digest_text,
    "commit?": (text,),
    "dirty?": truth,
    "device?": text,
    "device_model?": text,
    "device_class?": text,
    "threads?": whole,
    "versions?": {...: text},
    "platform?": text,
    "started?": text,
    "seconds?": cost,
    "sources?": {...: text},
    "config?": {...: text},
    "trials?": [text],
    "notes?": [text],
    "checksum?": digest_text,
}
ROWS = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "provenance": PROVENANCE,
    "registered": text,
    "rows": [ROW],
    "out?": {...: text},
}


def head(file: JsonFile) -> dict[str, Any]:
    """The document, of the schema that this version reads."""
    found = file.data.get("schema") if isinstance(file.data, dict) else None
    if type(found) is not int or found != SCHEMA:
        file.fail((), f"schema {json.dumps(found)[:40]}, this version reads {SCHEMA}")
    return file.data


def placed(file: JsonFile, document: dict[str, Any], paper: str, profile: str) -> None:
    """Refuse a document that is not of the paper and profile whose place it has."""
    for key, own in (("paper", paper), ("profile", profile)):
        if document[key] != own:
            file.fail((key,), f"{told(document[key])} in the place of {own}; bring the file of {paper} at {profile}")


def _place(path: Path) -> tuple[str, str] | None:
    """(paper, profile) that a path `papers/<slug>/results/<profile>.<kind>.json` stands for."""
    full = path.absolute()
    named = full.parent.name == "results" and full.parents[2].name == "papers"
    return (full.parents[1].name, full.name.partition(".")[0]) if named else None


def rows(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A rows document (`papers/<slug>/results/<profile>.rows.json`); its digest is not checked."""
    return _rows(JsonFile(path, again, shown), _place(path))


def _rows(file: JsonFile, place: tuple[str, str] | None) -> dict[str, Any]:
    document = head(file)
    check(file, ROWS, document)
    if place:
        placed(file, document, *place)
    seen: dict[tuple, int] = {}
    kinds: dict[tuple[str, str], str] = {}
    for i, row in enumerate(document["rows"]):
        for name, value in row["factors"].items():
            kind = {str: "a text", bool: "true or false"}.get(type(value), "a number")
            if kinds.setdefault((row["experiment"], name), kind) != kind:
                file.fail(
                    ("rows", i, "factors", name),
                    f"{told(value)}; write {kinds[row['experiment'], name]} as in the other rows",
                )
        key = (row["experiment"], row["arm"], row["seed"], frozenset(row["factors"].items()))
        if key in seen:
            file.fail(("rows", i), f"stands twice, first as rows[{seen[key]}] ({row['arm']}, seed {row['seed']})")
        seen[key] = i
    trials = document["provenance"].get("trials")
    if trials is not None and len(trials) != len(document["rows"]):
        file.fail(("provenance", "trials"), f"{len(trials)} keys for {len(document['rows'])} rows")
    if document["provenance"].keys() & {"trials", "checksum"} and document != sealed(document):  # every run seals it
        file.fail(("provenance", "checksum"), "the file is not as it was written (edited by hand, or damaged)")
    return document


# --- verdicts ---------------------------------------------------------------------------------------------------------

JUDGED = {
    "state": one_of(*STATES),
    "why": text,
    "estimate": (number,),
    "interval": [(number,)],
    "level?": (number,),
    "n?": (whole,),
    "unit?": text,
    "needed_seeds?": (whole,),
}
CONTROL = {
    **JUDGED,
    "expect": one_of("not_reproduced", "not_met"),
    "ok": truth,
    "replace?": {...: text},
    "at?": {...: level},
    "experiment?": (text,),
    "seed_offset?": (whole,),
}
PART = {**JUDGED, "at?": {...: level}, "name?": text}
CLAIM = {
    **JUDGED,
    "unit": text,
    "n": (whole,),
    "paper_value": {...: level},
    "controls": [CONTROL],
    "parts": [PART],
    "magnitude?": ({"ours": number, "paper": measure, "ratio": (number,)},),
    "positive?": ({"arm": text, "state": one_of(*STATES), "why": text},),
}
VERDICT = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "rows_digest": digest_text,
    "post_hoc": truth,
    "headline": (text,),
    "claims": {...: CLAIM},
}


def verdict(path: Path, again: str, shown: str | None = None, claims: Any = None) -> dict[str, Any]:
    """A verdict document (`results/<profile>.verdict.json`); `claims`: those that its paper has."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, VERDICT, document)
    if place := _place(path):
        placed(file, document, *place)
    for name, claim in document["claims"].items():
        for where, judged in _judged(("claims", name), claim):
            if len(judged["interval"]) != 2:
                file.fail((*where, "interval"), f"has {len(judged['interval'])} ends; write [low, high]")
        rules = claim.get("rule")
        if not isinstance(rules, dict) and not (isinstance(rules, list) and all(isinstance(r, dict) for r in rules)):
            file.fail(("claims", name, "rule"), f"{told(rules)}; write a rule or a list of rules")
        if claims is not None and name not in claims:
            file.fail(("claims", name), "no such claim in paper.yaml")
    if document["headline"] is not None and document["headline"] not in document["claims"]:
        file.fail(
            ("headline",), f"{told(document['headline'])}; write one of {', '.join(document['claims']) or 'null'}"
        )
    return document


def share(value: Any) -> str:
    return "" if not number(value) and 0 <= value <= 1 else "a number from 0 to 1"


RATES = {
    "false_rate": (share,),
    "false_interval": ([share],),
    "allowed": (share,),
    "at": (text,),
    "power": (share,),
    "power_interval": ([share],),
    "power_at": (one_of("paper", "here"),),
    "n": whole,
    "why?": text,
    "draws?": whole,
}
QUALITY = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "rows_digest": digest_text,
    "draws": whole,
    "claims": {...: RATES},
}


def quality(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A document of error rates (`results/<profile>.quality.json`)."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, QUALITY, document)
    if place := _place(path):
        placed(file, document, *place)
    for name, claim in document["claims"].items():
        for rate in ("false", "power"):
            value, ends = claim[f"{rate}_rate" if rate == "false" else rate], claim[f"{rate}_interval"]
            if (value is None) != (ends is None) or ends is not None and len(ends) != 2:
                file.fail(
                    ("claims", name, f"{rate}_interval"),
                    "is not the interval of a rate; write [low, high], or null for both",
                )
        if claim["false_rate"] is not None and (claim["allowed"] is None or claim["at"] is None):
            file.fail(("claims", name), "has a false rate; write what is allowed, and at which edge")
        if (claim["power"] is None) != (claim["power_at"] is None):
            file.fail(("claims", name, "power_at"), "does not fit the power; write paper or here, or null for both")
        if None in (claim["false_rate"], claim["power"]) and "why" not in claim:
            file.fail(("claims", name), "lacks a rate; write why")
    return document


def _judged(where: Where, claim: dict[str, Any]) -> Iterator[tuple[Where, dict[str, Any]]]:
    yield where, claim
    for key in ("controls", "parts"):
        yield from (((*where, key, i), one) for i, one in enumerate(claim[key]))


# --- plans ------------------------------------------------------------------------------------------------------------

MODULE = matching(re.compile(r"repro(\.\w+)+"), "a module of this suite, such as repro.papers.rmsnorm.experiment")
SLUG_KIND = matching(SLUG, "a paper's name of a-z, 0-9 and _, such as rmsnorm")
PLAN = {
    "entries": [
        {
            "paper": SLUG_KIND,
            "profile": one_of(*PROFILES),
            "registered": text,
            "experiments": {
                ...: {
                    "module": MODULE,
                    "exclusive": truth,
                    "batched": truth,
                    "ranks?": (above_zero,),
                    "arms": [words],
                    "config": {...: lambda value: ""},
                }
            },
            "trials": [{"experiment": words, "arm": words, "seed": whole, "factors": {...: level}}],
        }
    ],
}


def plan(path: Path, again: str) -> dict[str, Any]:
    """A plan for `python -m repro.run`."""
    file = JsonFile(path, again)
    document = head(file)
    check(file, PLAN, document)
    if not document["entries"]:
        file.fail(("entries",), "is empty; write at least one")
    for i, entry in enumerate(document["entries"]):
        if not entry["trials"]:
            file.fail(("entries", i, "trials"), "is empty; write at least one")
        seen: dict[str, int] = {}
        for k, trial in enumerate(entry["trials"]):
            where = ("entries", i, "trials", k)
            setting = entry["experiments"].get(trial["experiment"])
            if setting is None:
                file.fail(
                    (*where, "experiment"),
                    f"{told(trial['experiment'])}; write one of {', '.join(entry['experiments']) or 'none'}",
                )
            if trial["arm"] not in setting["arms"]:
                file.fail((*where, "arm"), f"{told(trial['arm'])}; write one of {', '.join(setting['arms']) or 'none'}")
            key = json.dumps(trial, sort_keys=True)
            if key in seen:
                file.fail(where, f"stands twice, first as entries[{i}].trials[{seen[key]}]")
            seen[key] = k
    return document


# --- the arena --------------------------------------------------------------------------------------------------------

NAME = matching(SLUG, "a name of a-z, 0-9 and _, such as mlp")
ARM = matching(re.compile(r"base|[a-z]+:\w+\.\w+"), "base, or an arm such as norm:rmsnorm.RMSNorm")


def positive(value: Any) -> str:
    return "" if not whole(value) and value else "a whole number from 1 on"


def seeds(value: Any) -> str:
    return "" if not positive(value) and value <= 1000 else "a whole number from 1 to 1000"


def rung(value: Any) -> str:
    fine = type(value) is list and len(value) == 2 and not any(map(positive, value))
    return "" if fine else "[steps, how many learning rates go on]"


def rank(value: Any) -> str:
    fine = not rung(value) and value[0] <= value[1]
    return "" if fine else "[best rank, worst rank]"


def gap(value: Any) -> str:
    fine = type(value) is list and len(value) == 3 and not any(v is not None and number(v) for v in value)
    return "" if fine and (value[1] is None) == (value[2] is None) else "[difference, low, high] or nulls"


BUDGET = {
    "tuning": {"seeds": seeds, "lr": [above_zero], "rungs": [rung]},
    "final": {"seeds": seeds, "steps": positive},
    "settings": {"depth": positive, "batch": positive, ...: level},
    "cells?": [{"depth?": positive, "batch?": positive, "steps?": positive}],
    "cost": {"seeds": seeds, "blocks": positive, "calls": positive, "aa_limit": above_zero},
}
BASICS = {"what": words, "measure": one_of("valid_nats", "valid_error"), "target": number, "margin": cost}
TRACK = {**BASICS, **{f"{profile}?": BUDGET for profile in PROFILES}}


def tracks(file: Any) -> dict[str, Any]:
    """`arena.yaml` (a YamlFile) as plain data; here a key that is not known is a mistake."""
    check(file, {...: TRACK}, file.data, strict=True)
    for name, track in file.data.items():
        if wanted := NAME(name):
            file.fail((name,), f"{told(name)}; write {wanted}")
        if not set(track) & set(PROFILES):
            file.fail((name,), f"has no profile; write its budget under one of {', '.join(PROFILES)}")
        for profile in set(track) & set(PROFILES):
            _budget(file, (name, profile), track[profile])
    return file.data


def _budget(file: Any, where: Where, settings: dict[str, Any]) -> None:
    """What the parts of a budget ask of each other."""
    tuning = settings["tuning"]
    for i, cell in enumerate(settings.get("cells", ())):
        if not cell:
            file.fail((*where, "cells", i), "changes nothing; write depth, batch or steps")
    for key in ("lr", "rungs"):
        if not tuning[key]:
            file.fail((*where, "tuning", key), "is empty; write at least one")
    if len(set(tuning["lr"])) < len(tuning["lr"]):
        file.fail((*where, "tuning", "lr"), "holds a learning rate twice; write each once")
    left = len(tuning["lr"])
    for i, (_, keep) in enumerate(tuning["rungs"]):
        if keep > left:
            file.fail((*where, "tuning", "rungs", i), f"keeps {keep} of {left} learning rates; write at most {left}")
        left = keep
    if left != 1:
        file.fail(
            (*where, "tuning", "rungs", len(tuning["rungs"]) - 1), f"keeps {left} learning rates; the last rung keeps 1"
        )


def arena_plan(path: Path, again: str, known: Iterable[str]) -> dict[str, Any]:
    """A plan for `python -m repro.arena`; `known`: the tracks that this suite has."""
    file = JsonFile(path, again)
    one = {
        "track": NAME,
        "profile": one_of(*PROFILES),
        "settings": {**BASICS, **BUDGET},
        "arms": [ARM],
        "out": {...: text},
    }
    check(file, {"tracks": [one]}, file.data)
    for i, track in enumerate(file.data["tracks"]):
        if track["track"] not in known:
            file.fail(("tracks", i, "track"), f"{told(track['track'])}; write one of {', '.join(known)}")
        _budget(file, ("tracks", i, "settings"), track["settings"])
        if "base" not in track["arms"]:
            file.fail(("tracks", i, "arms"), "lacks base, the unchanged model")
    return file.data


def arena_rows(
    path: Path, again: str, shown: str, track: str, profile: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The rows of a track, complete enough for its table."""
    file, base = JsonFile(path, again, shown), {k: settings["settings"][k] for k in ("depth", "batch")}
    document = _rows(file, (f"arena-{track}", profile))
    check(file, {"provenance": {"device_model": text, "trials": [text]}}, document)
    trained = {**{k: number for k in ("depth", "batch")}, "lr": above_zero, "steps": positive}
    at_base: dict[str, bool] = {}
    for i, row in enumerate(document["rows"]):
        where = ("rows", i)
        check(file, {"arm": ARM, "experiment": one_of(track, "cost")}, row, where)
        if row["experiment"] == "cost":
            if row["status"] == "ok":
                check(file, {"seconds": cost, "peak_bytes": cost}, row["measures"], (*where, "measures"))
            continue
        check(file, trained, row["factors"], (*where, "factors"))
        judged = row["seed"] < 1000 and all(
            row["factors"][k] == v for k, v in {**base, "steps": settings["final"]["steps"]}.items()
        )
        at_base[row["arm"]] = at_base.get(row["arm"], False) or judged
        if row["status"] == "ok":
            check(
                file,
                {settings["measure"]: number, "steps": [number], "curve": [number]},
                row["measures"],
                (*where, "measures"),
            )
            if len(row["measures"]["steps"]) != len(row["measures"]["curve"]):
                file.fail((*where, "measures", "curve"), "has another length than steps")
    missing = next((arm for arm in ("base", *at_base) if not at_base.get(arm)), None)
    if missing:
        told_base = ", ".join(f"{k} {v}" for k, v in base.items())
        file.fail(("rows",), f"no row of arm {missing} at {told_base} and {settings['final']['steps']} steps")
    return document


LINE = {
    "arm": ARM,
    "mean": number,
    "spread?": (number,),
    "error": (number,),
    "n": whole,
    "diverged": whole,
    "rank": rank,
    "gap": gap,
}
METHOD = {
    "arm": ARM,
    "slot": text,
    "control": truth,
    "lr": above_zero,
    "trials": [text],
    "depths": [positive],
    "sensitivity": [{"lr": above_zero, "mean": (number,), "diverged": cost}],
    "largest_stable_lr": (above_zero,),
    "steps_to_target": (cost,),
    "seconds_to_target": (cost,),
    "step_seconds": (cost,),
    "peak_bytes": (cost,),
    "fails_at_depth": (positive,),
}
TABLE = {
    "track": NAME,
    "profile": one_of(*PROFILES),
    "what": text,
    "measure": words,
    "target": number,
    "margin": cost,
    "settings": {"depth": positive, "batch": positive, ...: level},
    "level": above_zero,
    "seeds": positive,
    "steps": positive,
    "rows_digest": digest_text,
    "device": text,
    "methods": [METHOD],
    "out": {...: text},
    "cells": [
        {
            "changed": {...: positive},
            "slots": {...: {"discriminates": ({"ok": truth, "best": text, "worse": {...: truth}},), "ranking": [LINE]}},
        }
    ],
}


def arena_table(path: Path, again: str, shown: str, track: str, profile: str) -> dict[str, Any]:
    """The table of a track."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, TABLE, document)
    for key, own in (("track", track), ("profile", profile)):
        if document[key] != own:
            file.fail((key,), f"{told(document[key])} in the place of {own}; bring the table of {track} at {profile}")
    if not document["cells"]:
        file.fail(("cells",), "is empty; write at least one")
    known = {method["arm"] for method in document["methods"]}
    for i, cell in enumerate(document["cells"]):
        for slot, found in cell["slots"].items():
            if not found["ranking"]:
                file.fail(("cells", i, "slots", slot, "ranking"), "is empty; write at least one")
            for k, line in enumerate(found["ranking"]):
                if line["arm"] not in known:
                    file.fail(
                        ("cells", i, "slots", slot, "ranking", k, "arm"),
                        f"{told(line['arm'])}, which is not among methods",
                    )
    return document
