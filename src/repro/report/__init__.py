"""Results -> pages, figures and one data frame.

    render_paper(slug, root)    reports/papers/<slug>.html, through notebooks/paper.ipynb
    render_index(root)          reports/index.html, through notebooks/comparison.ipynb
    render_arena(track, root)   reports/arena/<track>.html, through notebooks/arena.ipynb
    render_question(name, root) reports/questions/<name>.html, through notebooks/question.ipynb
    frame(root), verdicts(root) every row, every verdict, as pandas data frames
    staleness(paper, profile, document)   why rows no longer describe the source, or None

Nothing here measures or judges: numbers come from rows.json, verdict.json and quality.json as they stand.
"""

from repro.report.arena import ArenaPage
from repro.report.pages import ComparisonPage, PaperPage
from repro.report.questions import QuestionPage
from repro.report.records import frame, staleness, verdicts
from repro.report.render import render_arena, render_index, render_paper, render_question

__all__ = [
    "ArenaPage",
    "ComparisonPage",
    "PaperPage",
    "QuestionPage",
    "frame",
    "render_arena",
    "render_index",
    "render_paper",
    "render_question",
    "staleness",
    "verdicts",
]
