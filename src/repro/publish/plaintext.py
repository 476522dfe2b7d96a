"""Equations for a terminal: the LaTeX of a paper.yaml as one line of Unicode text."""

import re

SYMBOLS = dict(
    pair.split()
    for pair in (
        "alpha α,beta β,gamma γ,delta δ,epsilon ε,varepsilon ε,zeta ζ,eta η,theta θ,kappa κ,lambda λ,mu μ,nu ν,xi ξ,"
        "pi π,rho ρ,sigma σ,tau τ,phi φ,varphi φ,chi χ,psi ψ,omega ω,Gamma Γ,Delta Δ,Theta Θ,Lambda Λ,Sigma Σ,Phi Φ,Psi Ψ,"  # noqa: E501
        "Omega Ω,ell ℓ,partial ∂,nabla ∇,infty ∞,sum Σ,prod Π,int ∫,odot ⊙,cdot ·,times ×,le ≤,leq ≤,ge ≥,geq ≥,neq ≠,"
        "ne ≠,approx ≈,sim ~,propto ∝,in ∈,to →,rightarrow →,leftarrow ←,gets ←,mapsto ↦,dots …,ldots …,cdots …,top ᵀ,"
        "lfloor ⌊,rfloor ⌋,lceil ⌈,rceil ⌉,lVert ‖,rVert ‖,Vert ‖,lvert |,rvert |,vert |,mid |,star *,ast *,pm ±,"
        "langle ⟨,rangle ⟩,circ ∘,oplus ⊕,otimes ⊗,forall ∀,exists ∃,perp ⊥,parallel ∥,wedge ∧,vee ∨,cup ∪,cap ∩,"
        "ll ≪,gg ≫"
    ).split(",")
)
SPACES = {",", ";", ":", "quad", "qquad", "enspace", "thinspace"}
NOTHING = {
    *("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "displaystyle", "textstyle", "limits", "nolimits"),
    "!",
}
UPRIGHT = {
    *("mathrm", "mathbf", "mathit", "mathcal", "mathbb", "mathsf", "boldsymbol", "text", "textrm", "textbf"),
    *("operatorname", "bm", "rm", "bf"),
}
ACCENTS = {
    "hat": "\u0302",
    "bar": "\u0304",
    "tilde": "\u0303",
    "dot": "\u0307",
    "vec": "\u20d7",
    "widehat": "\u0302",
    "overline": "\u0304",
}
_UP = dict(
    zip("0123456789+-=()nitTabcdefghjklmoprsuvwxyzαβγ", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵗᵀᵃᵇᶜᵈᵉᶠᵍʰʲᵏˡᵐᵒᵖʳˢᵘᵛʷˣʸᶻᵅᵝᵞ", strict=True)
)
_DOWN = dict(zip("0123456789+-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))
_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[{}^_&]|\s+|.", re.S)


def equation(latex: str) -> str | None:
    """An equation as one line of text, such as `y = γ (x − μ) / √(σ² + ε)`; None where it cannot be said so."""
    try:
        tokens = _TOKEN.findall(latex)
        text = _read(tokens, None)
    except (IndexError, KeyError, RecursionError):
        return None
    if tokens or "\\" in text:
        return None
    for old, new in (("( ", "("), (" )", ")"), ("[ ", "["), (" ]", "]"), (" ,", ",")):
        text = re.sub(r"\s+", " ", text).replace(old, new)
    return text.strip()


def _read(tokens: list[str], end: str | None) -> str:
    """Read tokens up to `end`, which is taken too."""
    out = []
    while tokens:
        token = tokens[0]
        if token == end:
            tokens.pop(0)
            return "".join(out)
        if token == "}":
            raise KeyError(token)
        out.append(_script(tokens) if token in "^_" else _atom(tokens))
    if end is not None:
        raise IndexError(end)
    return "".join(out)


def _script(tokens: list[str]) -> str:
    """A subscript or a superscript: of Unicode where all its characters have one, else behind its mark."""
    mark = tokens.pop(0)
    text = _argument(tokens).strip()
    table = _UP if mark == "^" else _DOWN
    if text == "ᵀ":
        return text
    if text and all(c in table for c in text):
        return "".join(table[c] for c in text)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}({text})"


def _argument(tokens: list[str]) -> str:
    """What a command takes: a group or one token."""
    while tokens[0].isspace():
        tokens.pop(0)
    return _atom(tokens)


def _grouped(text: str) -> str:
    """A text that a division or a root takes whole."""
    text = text.strip()
    simple = re.fullmatch(r"[^\s+\-−*/·⊙,=]+", text) or re.fullmatch(r"√?\([^()]*\)", text)
    return text if simple or re.fullmatch(r"‖[^‖]*‖\S*", text) else f"({text})"


def _atom(tokens: list[str]) -> str:
    token = tokens.pop(0)
    if token == "{":
        return _read(tokens, "}")
    if token == "&":
        return " "
    if not token.startswith("\\"):
        return "−" if token == "-" else token
    name = token[1:]
    if name in SYMBOLS:
        return SYMBOLS[name]
    if name in SPACES:
        return "  " if name.endswith("quad") else " "
    if name in NOTHING:
        return ""
    if name in UPRIGHT:
        return _argument(tokens)
    if name in ACCENTS:
        text = _argument(tokens).strip()
        return text[:1] + ACCENTS[name] + text[1:]
    if name in ("frac", "tfrac", "dfrac"):
        above, below = _grouped(_argument(tokens)), _grouped(_argument(tokens))
        return f"{above}/{below}" if max(len(above), len(below)) == 1 else f"({above} / {below})"
    if name == "sqrt":
        return "√" + _grouped(_argument(tokens))
    if name in "{}|#%&_$ ":
        return "‖" if name == "|" else name
    if name == "\\":
        return "; "
    if name in ("begin", "end"):
        kind = _argument(tokens)
        if kind not in ("cases", "aligned", "split"):
            raise KeyError(kind)
        return {"begin": "{ ", "end": " }"}[name] if kind == "cases" else ""
    if name.isalpha() and name in ("tanh", "log", "exp", "max", "min", "ln", "sin", "cos", "sup", "inf", "lim", "arg"):
        return name
    raise KeyError(name)
