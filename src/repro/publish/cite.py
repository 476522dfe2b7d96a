"""BibTeX and CFF for a paper and for its implementation here."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import repro
from repro.store import digest
from repro.words import verdict_words

_VENUES = {
    "AAAI": "Proceedings of the AAAI Conference on Artificial Intelligence",
    "ACL": "Annual Meeting of the Association for Computational Linguistics",
    "AISTATS": "International Conference on Artificial Intelligence and Statistics",
    "BMVC": "British Machine Vision Conference",
    "CVPR": "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    "ECCV": "European Conference on Computer Vision",
    "EMNLP": "Conference on Empirical Methods in Natural Language Processing",
    "ICASSP": "IEEE International Conference on Acoustics, Speech and Signal Processing",
    "ICCV": "IEEE/CVF International Conference on Computer Vision",
    "ICLR": "International Conference on Learning Representations",
    "ICML": "International Conference on Machine Learning",
    "IJCAI": "International Joint Conference on Artificial Intelligence",
    "NAACL": "Conference of the North American Chapter of the Association for Computational Linguistics",
    "NeurIPS": "Advances in Neural Information Processing Systems",
    "NIPS": "Advances in Neural Information Processing Systems",
}
_JOURNAL = re.compile(
    r"\b(journal|transactions|letters|networks|computation|review|nature|jmlr|tmlr|tpami|ijcv)\b", re.IGNORECASE
)
_PARTICLES = {"da", "de", "del", "della", "den", "der", "di", "dos", "du", "la", "le", "ten", "ter", "van", "von", "zu"}
# Braces are spelt out: BibTeX counts them even behind a backslash.
_SPECIAL = {
    "\\": r"{\textbackslash}",
    "{": r"{\textbraceleft}",
    "}": r"{\textbraceright}",
    "~": r"{\textasciitilde}",
    "^": r"{\textasciicircum}",
    "<": r"{\textless}",
    ">": r"{\textgreater}",
    "|": r"{\textbar}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"{\ldots}",
    "\u00a0": "~",
    "ß": r"{\ss}",
    "æ": r"{\ae}",
    "Æ": r"{\AE}",
    "ø": r"{\o}",
    "Ø": r"{\O}",
    "ł": r"{\l}",
    "Ł": r"{\L}",
    "ı": r"{\i}",
    "œ": r"{\oe}",
    "Œ": r"{\OE}",
    "å": r"{\aa}",
    "Å": r"{\AA}",
    "×": r"$\times$",
    "²": r"$^2$",
}
_ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
    "\u0328": "k",
    "\u0323": "d",
    "\u0331": "b",
}


def escape(text: str) -> str:
    """`text` for a BibTeX field: LaTeX's characters spelt out, accents as commands, braces balanced, one line."""
    out = []
    for char in " ".join(str(text).split()):
        if char in _SPECIAL:
            out.append(_SPECIAL[char])
            continue
        base, *marks = unicodedata.normalize("NFD", char)
        if marks and base.isascii() and all(mark in _ACCENTS for mark in marks):
            for mark in marks:
                command = _ACCENTS[mark]
                base = f"\\{command}{{{base}}}"
            out.append("{" + base + "}")
        elif unicodedata.category(char) != "Cc":
            out.append(char)
    return "".join(out)


def _title(text: str) -> str:
    """Words with capitals inside (RMSNorm, CNNs) are held by braces, so that a style cannot lower them."""
    words = " ".join(str(text).split()).split(" ")
    return " ".join("{" + escape(w) + "}" if re.search(r"(?<=\w)[^\W\d_a-zß-ÿ]", w) else escape(w) for w in words)


def _url(text: str) -> str:
    def plain(char: str) -> bool:
        return char.isascii() and char.isprintable() and char not in '{}\\"<> '

    return "".join(c if plain(c) else "".join(f"%{b:02X}" for b in c.encode()) for c in str(text).strip())


def split_name(name: str) -> tuple[str, str]:
    """(given names, family name); a lower-case particle belongs to the family name, `Family, Given` is understood."""
    if "," in name:
        family, _, given = name.partition(",")
        return given.strip(), family.strip()
    words = name.split()
    start = max(len(words) - 1, 0)
    while start > 1 and words[start - 1].lower() in _PARTICLES:
        start -= 1
    return " ".join(words[:start]), " ".join(words[start:])


def _author(name: str) -> str:
    given, family = split_name(name)
    if re.search(r"\band\b", name) or not given:
        return "{" + escape(name) + "}"
    return f"{escape(family)}, {escape(given)}"


def _field(paper: Any, name: str) -> Any:
    return paper.get(name) if isinstance(paper, Mapping) else getattr(paper, name, None)


def _venue(paper: Any) -> tuple[str, str]:
    """("inproceedings" | "article" | "misc", full name of the venue without its year)."""
    name = re.sub(r"\s*\(?\b(19|20)\d\d\b\)?", "", str(_field(paper, "venue") or "")).strip(" ,")
    if not name or re.match(r"(?i)arxiv|preprint|technical report|blog", name):
        return "misc", name
    if _JOURNAL.search(name):
        return "article", name
    short, _, rest = name.partition(" ")
    return "inproceedings", _VENUES[short] + (f" {rest}" if rest else "") if short in _VENUES else name


def _link(paper: Any) -> str | None:
    if arxiv := _field(paper, "arxiv"):
        return f"https://arxiv.org/abs/{arxiv}"
    if doi := _field(paper, "doi"):
        return f"https://doi.org/{doi}"
    return _field(paper, "url")


def key(paper: Any) -> str:
    """`zhang2019root`: first author, year, first word of the title that carries meaning."""
    authors = list(_field(paper, "authors") or ["anonymous"])
    words = re.findall(r"\w+", str(_field(paper, "title")))
    word = next((w for w in words if w.lower() not in {"a", "an", "the", "on", "of", "in", "is", "to", "do"}), "")
    plain = unicodedata.normalize("NFKD", f"{split_name(authors[0])[1]}{_field(paper, 'year')}{word}")
    return re.sub(r"[^a-z0-9]", "", plain.lower()) or "paper"


def _entry(kind: str, name: str, fields: dict[str, str | None]) -> str:
    lines = [f"  {k:<13} = {{{v}}}," for k, v in fields.items() if v]
    return "\n".join([f"@{kind}{{{name},", *lines, "}"])


def paper_bibtex(paper: Any) -> str:
    """The original paper."""
    kind, venue = _venue(paper)
    arxiv = _field(paper, "arxiv")
    return _entry(
        kind,
        key(paper),
        {
            "title": _title(_field(paper, "title")),
            "author": " and ".join(_author(a) for a in _field(paper, "authors") or []),
            {"inproceedings": "booktitle", "article": "journal", "misc": "howpublished"}[kind]: escape(venue),
            "year": escape(_field(paper, "year")),
            "eprint": _url(arxiv) if arxiv else None,
            "archiveprefix": "arXiv" if arxiv else None,
            "doi": _url(_field(paper, "doi") or ""),
            "url": _url(_link(paper) or ""),
        },
    )


def implementation_bibtex(paper: Any, verdict: Mapping | None = None) -> str:
    """This implementation: its version and, where there is one, the verdict with its digest."""
    slug = str(_field(paper, "slug"))
    note = f"Reference implementation of {_field(paper, 'title')}"
    if verdict:
        head = verdict.get("claims", {}).get(verdict.get("headline") or "")
        if head:
            n = f", n = {head['n']}" if head.get("n") else ""
            claim = (_field(paper, "claims") or {}).get(verdict["headline"])
            words = verdict_words(str(head["state"]), head.get("mark"), claim and _field(claim, "fidelity"))
            note += f"; claim {verdict['headline']} on profile {verdict['profile']}: {words}{n}"
        decided = {k: v for k, v in verdict.items() if k != "rows_file"}  # which holds the seconds of the rows too
        note += f"; verdict {digest(decided)}"
    return _entry(
        "software",
        re.sub(r"[^A-Za-z0-9_-]", "", f"repro_{slug}"),
        {
            "title": f"repro.papers.{escape(slug)}",
            "author": "{The repro contributors}",
            "version": escape(repro.__version__),
            "note": escape(note),
        },
    )


def bibtex(paper: Any, verdict: Mapping | None = None) -> str:
    """BibTeX of the original paper and of this implementation.

    `paper` is a `repro.spec.model.Paper` (or a mapping with its bibliographic fields), `verdict` a document of
    `results/<profile>.verdict.json`: its digest pins the result that is cited.
    """
    return f"{paper_bibtex(paper)}\n\n{implementation_bibtex(paper, verdict)}\n"


def cff(paper: Any) -> str:
    """`CITATION.cff` (1.2.0) of this implementation, whose preferred citation is the original paper."""

    def person(name: str) -> dict[str, str]:
        given, family = split_name(name)
        return {"family-names": family, "given-names": given} if given else {"name": name}

    kind, venue = _venue(paper)
    slug = _field(paper, "slug")
    reference = {
        "type": {"inproceedings": "conference-paper", "article": "article", "misc": "generic"}[kind],
        "title": _field(paper, "title"),
        "authors": [person(a) for a in _field(paper, "authors") or []],
        "year": _field(paper, "year"),
        "collection-title" if kind == "inproceedings" else "journal": venue if kind != "misc" else None,
        "doi": _field(paper, "doi"),
        "url": _link(paper),
    }
    document = {
        "cff-version": "1.2.0",
        "message": "If you use this implementation, please cite the paper, and this software with its version.",
        "type": "software",
        "title": f"repro.papers.{slug}",
        "version": repro.__version__,
        "license": "MIT",
        "authors": [{"name": "The repro contributors"}],
        "preferred-citation": {k: v for k, v in reference.items() if v},
    }
    return "".join(_yaml(document))


def _yaml(value: Mapping, indent: str = "") -> list[str]:
    """Block YAML whose scalars are JSON strings and numbers, which every YAML reader takes alike."""
    lines = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{indent}{name}:\n", *_yaml(item, indent + "  ")]
        elif isinstance(item, list):
            lines.append(f"{indent}{name}:\n")
            for entry in item:
                first, *rest = _yaml(entry, indent + "    ")
                lines += [f"{indent}  - {first.lstrip()}", *rest]
        else:
            lines.append(f"{indent}{name}: {json.dumps(item, ensure_ascii=False)}\n")
    return lines
