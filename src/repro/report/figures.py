"""The figures of a report: Altair to SVG, inlined, with a text alternative that no helper lets you leave out.

Colours are CSS variables of the page (`--method`, `--against`, ...), so one figure serves light, dark and print; shapes
and labels say the same as the colours.  Figures are 400 units wide, which stays legible on a phone.
"""

import functools
import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repro.errors import ReproError

WIDTH = 400
ROLES = {"method": "circle", "against": "square", "control": "triangle-up", "positive": "diamond", "other": "cross"}
_FONT = "Helvetica, Arial, sans-serif"
_LANE = 34  # units kept at an edge for what has no place on the axis: diverged seeds, zeros of a log scale


@dataclass(frozen=True)
class Group:
    """One row of dots or one bundle of lines: an arm (at one level of the factors), its values by seed."""

    label: str
    role: str
    values: dict[int, float] = field(default_factory=dict)  # seed -> value
    diverged: tuple[int, ...] = ()  # seeds
    interval: tuple[float, float, float] | None = None  # low, mean, high
    lines: dict[int, list[tuple[float, float]]] = field(default_factory=dict)  # seed -> [(x, y)]
    band: list[tuple[float, float, float, float]] = field(default_factory=list)  # (x, mean, least, greatest)


@dataclass(frozen=True)
class Estimate:
    """One line of a decision figure."""

    label: str
    role: str
    state: str
    value: float | None
    low: float | None  # None: unbounded
    high: float | None


@functools.cache
def _colours() -> dict[str, str]:
    """The page's colours on a light ground, which a figure falls back to where it stands alone."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    return dict(re.findall(r"(--\w+): (#\w+);", style.partition("@media")[0]))


def _alt() -> Any:
    try:
        import altair
    except ImportError as error:
        raise ReproError(
            "figures need altair and vl-convert: run `make setup`, or `uv pip install -e '.[suite]'`"
        ) from error
    return altair


def svg(chart: Any, *, name: str, title: str, description: str) -> str:
    """`chart` as inline SVG named `name`; `title` and `description` are what a reader hears instead of the picture."""
    if not title.strip() or not description.strip():
        raise ReproError(f"figure {name!r} has no text alternative; give it a title and a description")
    import vl_convert

    chart = (
        chart.configure(aria=False, font=_FONT, padding=2)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor="var(--muted)",
            titleColor="var(--muted)",
            gridColor="var(--hair)",
            domainColor="var(--rule)",
            tickColor="var(--rule)",
            labelFontSize=11,
            titleFontSize=11,
            titleFontWeight="normal",
            tickCount=5,
            tickSize=4,
            labelOverlap="greedy",
            titlePadding=6,
            gridWidth=1,
            labelFlush=True,
        )
    )
    text = vl_convert.vegalite_to_svg({**chart.to_dict(validate=False), "background": None})
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    clips: dict[str, str] = {}  # the converter counts clip paths through the whole process
    for old in re.findall(r'<clipPath id="([^"]+)"', text):
        clips.setdefault(old, f"{name}-clip{len(clips)}")
    for old, new in clips.items():
        text = text.replace(f'id="{old}"', f'id="{new}"').replace(f"url(#{old})", f"url(#{new})")
    text = re.sub(r' (?:role|aria-[a-z]+|pointer-events)="[^"]*"| class="(?!")[^"]*"', "", text)
    text = re.sub(r'<path(?: [a-z-]+="[^"]*")* d="(?:M0,0h0v0h0Z)?"(?: [a-z-]+="[^"]*")*/>', "", text)
    size = re.search(r'width="(\d+)" height="(\d+)"', text)
    assert size is not None
    text = re.sub(r"var\((--\w+)\)", lambda m: f"var({m[1]},{_colours()[m[1]]})", text)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{name}-t {name}-d" class="figure" '
        f'viewBox="0 0 {size[1]} {size[2]}" width="{size[1]}" height="{size[2]}">'
        f'<title id="{name}-t">{html.escape(title)}</title><desc id="{name}-d">{html.escape(description)}</desc>'
    )
    return head + re.sub(r"^<svg[^>]*>", "", text)


def _if_an_axis_holds_it(draw: Callable[..., str]) -> Callable[..., str]:
    """No drawing of numbers that no axis can hold, such as 1e308 beside 0: the table below has them."""

    @functools.wraps(draw)
    def drawn(*groups: Any, **options: Any) -> str:
        try:
            return draw(*groups, **options)
        except ArithmeticError:
            return ""

    return drawn


def is_log(values: Sequence[float]) -> bool:
    """Whether the positive values span so much that only a logarithmic axis shows them."""
    positive = [v for v in values if v > 0]
    return bool(positive) and min(values) >= 0 and max(positive) / min(positive) > 50


def _axis(
    title: str, ends: Sequence[float], log: bool, *, values: Sequence[float] | None = None, grid: bool = True
) -> Any:
    """An axis with few, round ticks."""
    if values is None and log:
        values = log_ticks(ends[0], ends[-1])
    top = max((abs(v) for v in values or ends), default=1.0)
    low = min((abs(v) for v in values or ends if v), default=1.0)
    form = ".2~e" if top >= 1e5 or top < 1e-3 or (log and low < 1e-3) else ".6~g"
    return _alt().Axis(title=title, format=form, grid=grid, **({} if values is None else {"values": list(values)}))


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between `low` and `high`: decades, at most seven; 1-2-5 or even steps below two decades."""
    if high / low < 5:
        step = 10.0 ** math.floor(math.log10((high - low) / 2))
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= 6)
        found = [float(f"{k * step:.6g}") for k in range(math.floor(low / step), math.ceil(high / step) + 1)]
        return [v for v in found if low <= v <= high]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [float(f"{m * 10.0**e:.3g}") for e in range(first, last + 1) for m in steps]
        found = [v for v in found if low <= v <= high]
        if len(found) >= 3:
            break
    return found[:: math.ceil(len(found) / 7)]


def _domain(values: Sequence[float], log: bool) -> list[float]:
    low, high = min(values), max(values)
    if log:
        return [low / 1.5, high * 1.5]
    pad = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return [low - pad, high + pad]


@_if_an_axis_holds_it
def dots(
    groups: Sequence[Group], *, name: str, axis: str, title: str, description: str, limits: Sequence[float] = ()
) -> str:
    """One dot per seed, one row per group, mean and interval below the dots; `limits` are what the rule sets."""
    alt = _alt()
    numbers = [v for g in groups for v in g.values.values()]
    numbers += [v for g in groups if g.interval for v in g.interval]
    log = is_log([v for g in groups for v in g.values.values()]) and all(
        g.interval is None or g.interval[0] > 0 for g in groups
    )
    zeros = log and any(v == 0 for v in numbers)
    lost = any(g.diverged for g in groups)
    placed = [v for v in [*numbers, *limits] if v > 0 or not log]
    ends = _domain(placed or [0.0, 1.0], log)
    left, right = (_LANE if zeros else 0), WIDTH - 12 - (_LANE + 14 if lost else 0)
    step, top = 42, 4
    points, bars, texts, crosses = [], [], [], []
    for row, group in enumerate(groups):
        base = top + row * step
        texts.append({"y": base + 8, "text": group.label})
        for seed, value in group.values.items():
            point = {"y": base + 23, "role": group.role, "seed": seed}
            points.append({**point, "px": left / 2} if log and value <= 0 else {**point, "v": value})
        if group.interval:
            low, mean, high = group.interval
            bars.append({"y": base + 33, "low": low, "mean": mean, "high": high, "role": group.role})
        crosses += [
            {"y": base + 23, "px": WIDTH - 12 - (_LANE + 6) / 2 + 5 * (i - (len(group.diverged) - 1) / 2)}
            for i in range(len(group.diverged))
        ]
    height = top + step * len(groups)
    scale_x = alt.Scale(type="log" if log else "linear", domain=ends, range=[left, right], nice=False, zero=False)
    scale_y = alt.Scale(domain=[0, height], range=[0, height], nice=False)
    y = alt.Y("y:Q", scale=scale_y, axis=None)
    x_axis = _axis(axis, ends, log)
    colour = alt.Color("role:N", scale=alt.Scale(domain=list(ROLES), range=[f"var(--{r})" for r in ROLES]), legend=None)
    shape = alt.Shape("role:N", scale=alt.Scale(domain=list(ROLES), range=list(ROLES.values())), legend=None)

    def data(values: list[dict]) -> Any:
        return alt.Chart(alt.InlineData(values=values))

    layers = [
        data([p for p in points if "v" in p] or [{"v": None, "y": 0, "role": "other"}])
        .mark_point(filled=True, size=44, opacity=0.75, stroke="var(--paper)", strokeWidth=0.7)
        .encode(x=alt.X("v:Q", scale=scale_x, axis=x_axis), y=y, color=colour, shape=shape)
    ]
    if bars:
        span = data(bars).encode(y=y, color=colour)
        layers.append(span.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=scale_x, axis=None), x2="high:Q"))
        layers.append(span.mark_tick(thickness=2, size=9).encode(x=alt.X("mean:Q", scale=scale_x, axis=None)))
    if shown := [v for v in limits if ends[0] <= v <= ends[1]]:
        layers.append(
            data(
                [
                    {"x": v, "a": top + i * step + 15, "b": top + i * step + 38}
                    for v in shown
                    for i in range(len(groups))
                ]
            )
            .mark_rule(color="var(--good)", strokeWidth=1.2)
            .encode(x=alt.X("x:Q", scale=scale_x, axis=None), y=alt.Y("a:Q", scale=scale_y, axis=None), y2="b:Q")
        )
    layers += _labels(data(texts), y, 0, WIDTH - 10)
    pixel = alt.Scale(domain=[0, WIDTH], range=[0, WIDTH], nice=False, zero=False)
    if zeros:
        outside = [p for p in points if "px" in p]
        layers.append(
            data(outside)
            .mark_point(filled=True, size=44, opacity=0.75)
            .encode(x=alt.X("px:Q", scale=pixel, axis=None), y=y, color=colour, shape=shape)
        )
        layers.append(
            data([{"y": height - 1}])
            .mark_text(color="var(--muted)", fontSize=11, baseline="bottom")
            .encode(x=alt.value(left / 2), y=y, text=alt.value("0"))
        )
    if lost:
        edge = right + 10
        layers.append(
            data([{"a": 0, "b": height}])
            .mark_rule(color="var(--rule)", strokeDash=[2, 3])
            .encode(x=alt.value(edge), y=alt.Y("a:Q", scale=scale_y, axis=None), y2="b:Q")
        )
        layers.append(
            data(crosses)
            .mark_point(shape="M-1,-1L1,1M-1,1L1,-1", size=44, stroke="var(--bad)", strokeWidth=1.8)
            .encode(x=alt.X("px:Q", scale=pixel, axis=None), y=y)
        )
        layers.append(
            data([{"y": height + 8}])
            .mark_text(color="var(--bad)", fontSize=10.5, baseline="top", align="right")
            .encode(x=alt.value(WIDTH - 4), y=y, text=alt.value("diverged"))
        )
    chart = alt.layer(*layers).resolve_scale(x="independent").properties(width=WIDTH - 8, height=height)
    return svg(chart, name=name, title=title, description=description)


@_if_an_axis_holds_it
def lines(
    groups: Sequence[Group],
    *,
    name: str,
    axis: str,
    across: str,
    title: str,
    description: str,
    marks: bool = False,
    log_x: bool = False,
    levels: Sequence[float] | None = None,
    target: float | None = None,
) -> str:
    """One thin line per seed, coloured by arm: a curve, or a measure over the levels of a factor (`marks`).

    `target` is drawn as a level to reach.
    """
    alt = _alt()
    ys = [y for g in groups for line in g.lines.values() for _, y in line]
    xs = [x for g in groups for line in g.lines.values() for x, _ in line]
    log_y = is_log(ys) and min(ys) > 0
    values = [
        {"x": x, "y": y, "line": f"{i} {seed}", "arm": g.label}
        for i, g in enumerate(groups)
        for seed, line in g.lines.items()
        for x, y in thin(line)
    ]
    labels = [g.label for g in groups]
    legend = alt.Legend(
        orient="top",
        title=None,
        columns=1,
        labelColor="var(--ink)",
        labelFontSize=11.5,
        symbolType="stroke",
        symbolStrokeWidth=2.5,
        labelLimit=WIDTH - 40,
        offset=4,
        rowPadding=1,
    )
    colour = alt.Color("arm:N", scale=alt.Scale(domain=labels, range=_distinct(groups)), legend=legend)
    dash = alt.StrokeDash(
        "arm:N", scale=alt.Scale(domain=labels, range=[_dash(i) for i in range(len(groups))]), legend=legend
    )
    log_x = log_x and min(xs) > 0
    scale_x = alt.Scale(type="log" if log_x else "linear", nice=False, zero=False, padding=6)
    reach = ys if target is None or (log_y and target <= 0) else [*ys, target]
    span = _domain(reach, log_y)
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("x:Q", scale=scale_x, axis=_axis(across, [min(xs), max(xs)], log_x, values=levels, grid=False)),
        y=alt.Y(
            "y:Q",
            scale=alt.Scale(type="log" if log_y else "linear", domain=span, zero=False, nice=False),
            axis=_axis(axis, span, log_y),
        ),
        color=colour,
        detail="line:N",
    )
    layers = [base.mark_line(strokeWidth=1.3, opacity=0.8).encode(strokeDash=dash)]
    if marks:
        layers.append(base.mark_point(filled=True, size=26, opacity=0.9))
    if target is not None and target in reach:
        layers.append(
            alt.Chart(alt.InlineData(values=[{"y": target}]))
            .mark_rule(color="var(--good)", strokeWidth=1.2)
            .encode(y="y:Q")
        )
    chart = alt.layer(*layers).properties(
        width=WIDTH, height=240 + 16 * len(groups), autosize={"type": "fit", "contains": "padding"}
    )
    return svg(chart, name=name, title=title, description=description)


@_if_an_axis_holds_it
def bands(groups: Sequence[Group], *, name: str, axis: str, across: str, title: str, description: str) -> str:
    """Per group the mean as a line and, behind it, the band from the least to the greatest value over the seeds."""
    alt = _alt()
    values = [
        {"x": x, "y": mean, "low": low, "high": high, "arm": g.label}
        for g in groups
        for x, mean, low, high in thin(g.band)
    ]
    log_y = is_log([v["low"] for v in values] + [v["high"] for v in values]) and min(v["low"] for v in values) > 0
    span = _domain([v["low"] for v in values] + [v["high"] for v in values], log_y)
    labels, xs = [g.label for g in groups], [v["x"] for v in values]
    legend = alt.Legend(
        orient="top",
        title=None,
        columns=1,
        labelColor="var(--ink)",
        labelFontSize=11.5,
        symbolType="stroke",
        symbolStrokeWidth=2.5,
        labelLimit=WIDTH - 40,
        offset=4,
        rowPadding=1,
    )
    colours = alt.Scale(domain=labels, range=_distinct(groups))
    scale_y = alt.Scale(type="log" if log_y else "linear", domain=span, zero=False, nice=False)
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X(
            "x:Q",
            scale=alt.Scale(nice=False, zero=False, padding=6),
            axis=_axis(across, [min(xs), max(xs)], False, grid=False),
        )
    )
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", scale=scale_y, axis=_axis(axis, span, log_y)),
        y2="high:Q",
        color=alt.Color("arm:N", scale=colours, legend=None),
    )
    line = base.mark_line(strokeWidth=1.6).encode(
        y=alt.Y("y:Q", scale=scale_y),
        color=alt.Color("arm:N", scale=colours, legend=legend),
        strokeDash=alt.StrokeDash(
            "arm:N", scale=alt.Scale(domain=labels, range=[_dash(i) for i in range(len(groups))]), legend=legend
        ),
    )
    size = {"width": WIDTH, "height": 240 + 16 * len(groups), "autosize": {"type": "fit", "contains": "padding"}}
    chart = alt.layer(band, line).resolve_scale(color="independent", strokeDash="independent").properties(**size)
    return svg(chart, name=name, title=title, description=description)


def _distinct(groups: Sequence[Group]) -> list[str]:
    """A colour per group: by role, further groups of a role in further colours."""
    spare = ["var(--extra1)", "var(--extra2)", "var(--extra3)", "var(--extra4)"]
    taken: list[str] = []
    for group in groups:
        colour = f"var(--{group.role})"
        while colour in taken and spare:
            colour = spare.pop(0)
        taken.append(colour)
    return taken


def _dash(index: int) -> list[int]:
    return [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [1, 3]][index % 6]


def thin(line: list[tuple], most: int = 120) -> list[tuple]:
    """At most `most` points of a long curve, evenly chosen, the ends kept."""
    if len(line) <= most:
        return line
    return [line[round(i * (len(line) - 1) / (most - 1))] for i in range(most)]


@_if_an_axis_holds_it
def decision(
    estimates: Sequence[Estimate],
    region: tuple[float | None, float | None],
    *,
    name: str,
    axis: str,
    title: str,
    description: str,
    log: bool = False,
) -> str:
    """Estimates with their intervals against the region that the rule asks for (shaded).

    What lies far outside is drawn as an arrow at the edge, so that a broken control does not flatten the method.
    """
    alt = _alt()
    if log:
        log = all(v is None or v > 0 for e in estimates for v in (e.value, e.high))
    own = [e for e in estimates if e.role == "method"] or list(estimates)
    kept = [v for e in own for v in (e.value, e.low, e.high) if v is not None] + [v for v in region if v is not None]
    kept = [v for v in kept if not log or v > 0] or [0.0, 1.0]
    shown = kept + [v for e in estimates for v in (e.value, e.low, e.high) if v is not None and _near(v, kept, log)]
    low, high = _domain(shown, log)
    if not log and min(shown) >= 0 > low:
        low = 0.0 if min(shown) == 0 else low
    step, top, inner = 36, 2, WIDTH - 12
    height = top + step * len(estimates)
    clamp = lambda v: min(max(v, low), high)  # noqa: E731
    bars, values, arrows, texts = [], [], [], []
    for row, e in enumerate(estimates):
        y = top + row * step
        texts.append({"y": y + 8, "text": f"{e.state}: {e.label}"})
        if e.value is None:
            continue
        if e.low is None and e.high is None:
            ends = (e.value, e.value)
        else:
            ends = (-math.inf if e.low is None else e.low, math.inf if e.high is None else e.high)
        if ends[1] < low or ends[0] > high:
            arrows.append(
                {
                    "y": y + 25,
                    "x": low if ends[1] < low else high,
                    "role": e.role,
                    "angle": 270 if ends[1] < low else 90,
                }
            )
            continue
        bars.append({"y": y + 25, "low": clamp(ends[0]), "high": clamp(ends[1]), "role": e.role})
        if low <= e.value <= high:
            values.append({"y": y + 25, "x": e.value, "role": e.role})
        for outside, edge, angle in ((ends[0] < low, low, 270), (ends[1] > high, high, 90)):
            if outside:
                arrows.append({"y": y + 25, "x": edge, "role": e.role, "angle": angle})
    scale = alt.Scale(type="log" if log else "linear", domain=[low, high], nice=False, zero=False, range=[6, inner - 6])
    x_axis = _axis(axis, [low, high], log)
    scale_y = alt.Scale(domain=[0, height], range=[0, height], nice=False)
    y = alt.Y("y:Q", scale=scale_y, axis=None)
    colour = alt.Color("role:N", scale=alt.Scale(domain=list(ROLES), range=[f"var(--{r})" for r in ROLES]), legend=None)
    shape = alt.Shape("role:N", scale=alt.Scale(domain=list(ROLES), range=list(ROLES.values())), legend=None)

    def data(items: list[dict]) -> Any:
        return alt.Chart(alt.InlineData(values=items))

    a, b = clamp(low if region[0] is None else region[0]), clamp(high if region[1] is None else region[1])
    rows = [top + row * step + 25 for row in range(len(estimates))]
    bands = [{"a": a, "b": b, "t": y - 8, "u": y + 8} for y in rows]
    edges = [{"x": v, "t": y - 8, "u": y + 8} for y in rows for v in region if v is not None and low <= v <= high]
    yt = alt.Y("t:Q", scale=scale_y, axis=None)
    layers = [
        data(bands)
        .mark_rect(color="var(--region)", opacity=1)
        .encode(x=alt.X("a:Q", scale=scale, axis=x_axis), x2="b:Q", y=yt, y2="u:Q")
    ]
    if edges:
        layers.append(
            data(edges)
            .mark_rule(color="var(--good)", strokeWidth=1.2)
            .encode(x=alt.X("x:Q", scale=scale), y=yt, y2="u:Q")
        )
    if bars:
        layers.append(
            data(bars).mark_rule(strokeWidth=2.2).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y, color=colour)
        )
    if values:
        layers.append(
            data(values)
            .mark_point(filled=True, size=62, opacity=1, stroke="var(--paper)", strokeWidth=0.8)
            .encode(x=alt.X("x:Q", scale=scale), y=y, color=colour, shape=shape)
        )
    if arrows:
        layers.append(
            data(arrows)
            .mark_point(shape="triangle", filled=True, size=58, opacity=1)
            .encode(x=alt.X("x:Q", scale=scale), y=y, color=colour, angle=alt.Angle("angle:Q", scale=None))
        )
    layers += _labels(data(texts), y, 2, inner - 4)
    chart = alt.layer(*layers).properties(width=inner, height=height)
    return svg(chart, name=name, title=title, description=description)


def _labels(chart: Any, y: Any, x: float, limit: float) -> list[Any]:
    """The labels of the rows, on a rim of the page's colour, so that no line of the plot runs through them."""
    text = {"fontSize": 11.5, "align": "left", "baseline": "middle", "limit": limit}
    place = {"x": _alt().value(x), "y": y, "text": "text:N"}
    rim = chart.mark_text(**text, color="var(--paper)", stroke="var(--paper)", strokeWidth=5, strokeJoin="round")
    return [rim.encode(**place), chart.mark_text(**text, color="var(--ink)").encode(**place)]


def _near(value: float, kept: Sequence[float], log: bool) -> bool:
    if log and value <= 0:
        return False
    low, high = (math.log(min(kept)), math.log(max(kept))) if log else (min(kept), max(kept))
    width = (high - low) or abs(high) or 1.0
    return low - 2 * width <= (math.log(value) if log else value) <= high + 2 * width


@_if_an_axis_holds_it
def magnitudes(items: Sequence[tuple[str, float, str]], *, name: str, title: str, description: str) -> str:
    """(label, ours / the paper's, state) for each claim with a number, on a log axis with 1 marked."""
    alt = _alt()
    step, top = 22, 4
    height = top + step * len(items)
    values = [
        {"y": top + i * step + step / 2, "label": label, "x": ratio, "state": state}
        for i, (label, ratio, state) in enumerate(items)
    ]
    ratios = [v["x"] for v in values] + [1.0]
    states = ["reproduced", "not reproduced", "inconclusive"]
    scale = alt.Scale(type="log", domain=[min(ratios) / 1.3, max(ratios) * 1.3], nice=False, range=[170, WIDTH - 12])
    scale_y = alt.Scale(domain=[0, height], range=[0, height], nice=False)
    y = alt.Y("y:Q", scale=scale_y, axis=None)
    base = alt.Chart(alt.InlineData(values=values))
    one = alt.Chart(alt.InlineData(values=[{"x": 1, "t": 0, "u": height}]))
    chart = alt.layer(
        one.mark_rule(color="var(--rule)", strokeWidth=1.4).encode(
            x=alt.X(
                "x:Q",
                scale=scale,
                axis=_axis("ours ÷ the paper's number", [min(ratios) / 1.3, max(ratios) * 1.3], True),
            ),
            y=alt.Y("t:Q", scale=scale_y, axis=None),
            y2="u:Q",
        ),
        base.mark_text(align="left", baseline="middle", color="var(--ink)", fontSize=11.5, limit=162).encode(
            x=alt.value(0), y=y, text="label:N"
        ),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("x:Q", scale=scale),
            y=y,
            color=alt.Color(
                "state:N",
                legend=None,
                scale=alt.Scale(domain=states, range=["var(--good)", "var(--bad)", "var(--unsure)"]),
            ),
            shape=alt.Shape(
                "state:N", legend=None, scale=alt.Scale(domain=states, range=["circle", "triangle-down", "diamond"])
            ),
        ),
    ).properties(width=WIDTH - 8, height=height)
    return svg(chart, name=name, title=title, description=description)
