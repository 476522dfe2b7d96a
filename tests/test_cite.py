"""BibTeX and CFF, read back by small parsers of their own."""

import re

import pytest

import repro
from repro.errors import ReproError
from repro.files.paths import SCHEMA
from repro.publish import cite
from repro.spec.load import load_yaml
from repro.store import digest

PAPER = {
    "slug": "rmsnorm",
    "title": "Root Mean Square Layer Normalization",
    "authors": ["Biao Zhang", "Rico Sennrich"],
    "year": 2019,
    "venue": "NeurIPS 2019",
    "arxiv": "1910.07467",
}
VERDICT = {
    "schema": SCHEMA,
    "paper": "rmsnorm",
    "profile": "cpu",
    "headline": "parity",
    "claims": {"parity": {"state": "not_reproduced", "n": 5}},
}


def parse(bibtex: str) -> list[tuple[str, str, dict[str, str]]]:
    """(kind, key, fields) of each entry; every field braced, braces balanced as BibTeX counts them."""
    entries, rest = [], bibtex.strip()
    while rest:
        head = re.match(r"@(\w+)\{([A-Za-z0-9_-]+),\s*", rest)
        assert head, rest[:80]
        rest, fields = rest[head.end() :], {}
        while not rest.startswith("}"):
            name = re.match(r"(\w+)\s*= \{", rest)
            assert name, rest[:80]
            depth, i = 1, name.end()
            while depth:
                depth += {"{": 1, "}": -1}.get(rest[i], 0)
                i += 1
            assert name[1] not in fields
            fields[name[1]] = rest[name.end() : i - 1]
            assert rest[i] == ","
            rest = rest[i + 1 :].lstrip()
        entries.append((head[1], head[2], fields))
        rest = rest[1:].lstrip()
    return entries


def test_paper_and_implementation():
    (kind, key, paper), (kind_here, key_here, here) = parse(cite.bibtex(PAPER, VERDICT))
    assert (kind, key) == ("inproceedings", "zhang2019root")
    assert paper == {
        "title": "Root Mean Square Layer Normalization",
        "author": "Zhang, Biao and Sennrich, Rico",
        "booktitle": "Advances in Neural Information Processing Systems",
        "year": "2019",
        "eprint": "1910.07467",
        "archiveprefix": "arXiv",
        "url": "https://arxiv.org/abs/1910.07467",
    }
    assert (kind_here, key_here) == ("software", "repro_rmsnorm")
    assert here["version"] == repro.__version__ and here["title"] == "repro.papers.rmsnorm"
    assert "claim parity on profile cpu: not reproduced, n = 5" in here["note"]
    assert digest(VERDICT) in here["note"]


def test_a_smaller_scale_is_cited_as_such():
    smaller = {**PAPER, "claims": {"parity": {"fidelity": "scaled"}}}
    assert "on profile cpu: contradicted at small scale, n = 5" in cite.bibtex(smaller, VERDICT)


def test_without_a_verdict_nothing_is_said_of_one():
    assert "verdict" not in cite.bibtex(PAPER)
    assert digest({**VERDICT, "headline": None}) in cite.bibtex(PAPER, {**VERDICT, "headline": None})


def test_a_loaded_paper_works_as_well():
    class Loaded:
        doi = url = None

    for name, value in PAPER.items():
        setattr(Loaded, name, value)
    assert cite.bibtex(Loaded(), VERDICT) == cite.bibtex(PAPER, VERDICT)
    assert cite.cff(Loaded()) == cite.cff(PAPER)


@pytest.mark.parametrize(
    ("venue", "kind", "name"),
    [
        ("ICLR 2015", "inproceedings", "International Conference on Learning Representations"),
        ("ICML 2015 Workshop", "inproceedings", "International Conference on Machine Learning Workshop"),
        ("Findings of EMNLP 2021", "inproceedings", "Findings of EMNLP"),
        ("Transactions on Machine Learning Research 2023", "article", "Transactions on Machine Learning Research"),
        ("Neural Networks (2018)", "article", "Neural Networks"),
        ("arXiv preprint", "misc", "arXiv preprint"),
        ("arXiv 2016", "misc", "arXiv"),
    ],
)
def test_venues(venue, kind, name):
    (found, _, fields), _ = parse(cite.bibtex({**PAPER, "venue": venue}))
    place = {"inproceedings": "booktitle", "article": "journal", "misc": "howpublished"}[kind]
    assert (found, fields[place]) == (kind, name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("50% of $x_i$ & #1", r"50\% of \$x\_i\$ \& \#1"),
        ("a{b}c\\d", r"a{\textbraceleft}b{\textbraceright}c{\textbackslash}d"),
        ("Günter Ångström Łukasz Ørsted Straße", r"G{\"{u}}nter {\AA}ngstr{\"{o}}m {\L}ukasz {\O}rsted Stra{\ss}e"),
        ("Hervé Jégou, Piotr Dollár, Kučera", r"Herv{\'{e}} J{\'{e}}gou, Piotr Doll{\'{a}}r, Ku{\v{c}}era"),
        ("2010–2015 — “so”", "2010--2015 --- ``so''"),
        ("two\nlines\tand~more^", r"two lines and{\textasciitilde}more{\textasciicircum}"),
        ("<script>", r"{\textless}script{\textgreater}"),
        ("何恺明", "何恺明"),
    ],
)
def test_escaping(text, told):
    assert cite.escape(text) == told


@pytest.mark.parametrize("text", ["}", "{{{", "\\", "a } , title = {b", "%", "@article{x,", "\x00\x07", '"'])
def test_hostile_text_cannot_leave_its_field(text):
    entries = parse(cite.bibtex({**PAPER, "title": text, "authors": [text, "B C"], "venue": text}, VERDICT))
    assert len(entries) == 2
    assert set(entries[0][2]) <= {"title", "author", "booktitle", "year", "eprint", "archiveprefix", "url"}
    assert set(entries[1][2]) == {"title", "author", "version", "note"}


def test_capitals_inside_words_are_held():
    (_, _, fields), _ = parse(cite.bibtex({**PAPER, "title": "Identity Mappings in ResNets: GELUs and the RMSNorm"}))
    assert fields["title"] == "Identity Mappings in {ResNets:} {GELUs} and the {RMSNorm}"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Laurens van der Maaten", "van der Maaten, Laurens"),
        ("Hinton, Geoffrey E.", "Hinton, Geoffrey E."),
        ("Google DeepMind and others", "{Google DeepMind and others}"),
        ("Madonna", "{Madonna}"),
        ("Soham De", "De, Soham"),
    ],
)
def test_names(name, told):
    (_, _, fields), _ = parse(cite.bibtex({**PAPER, "authors": [name]}))
    assert fields["author"] == told


def test_doi_and_url_stand_where_there_is_no_arxiv():
    (_, _, fields), _ = parse(cite.bibtex({**PAPER, "arxiv": None, "doi": "10.1109/x_{y}"}))
    assert fields["doi"] == "10.1109/x_%7By%7D" and fields["url"] == "https://doi.org/10.1109/x_%7By%7D"
    (_, _, fields), _ = parse(cite.bibtex({**PAPER, "arxiv": None, "url": "https://x.test/a b"}))
    assert fields["url"] == "https://x.test/a%20b" and "eprint" not in fields


def test_cff_reads_back(tmp_path):
    path = tmp_path / "CITATION.cff"
    title = 'On "quotes": #1, ünïcode\nand lines'
    path.write_text(cite.cff({**PAPER, "title": title, "authors": ["Biao Zhang", "Madonna", "Laurens van der Maaten"]}))
    found = load_yaml(path)
    assert found["cff-version"] == "1.2.0" and found["type"] == "software" and found["version"] == repro.__version__
    assert {"message", "title", "authors"} <= set(found)
    wanted = found["preferred-citation"]
    assert wanted["type"] == "conference-paper" and wanted["title"] == title and wanted["year"] == 2019
    assert wanted["authors"] == [
        {"family-names": "Zhang", "given-names": "Biao"},
        {"name": "Madonna"},
        {"family-names": "van der Maaten", "given-names": "Laurens"},
    ]
    assert wanted["collection-title"] == "Advances in Neural Information Processing Systems"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ReproError):  # the reader is the suite's strict one
        load_yaml(path)
