"""Reference implementations of deep-network methods, each with a verdict.

`repro.papers.<slug>` is the directory `papers/<slug>`: in a checkout the line below finds it beside `src/`,
an installed distribution carries it as a subpackage.
"""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parents[2]
if (_root / "papers").is_dir() and (_root / "params.yaml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """Import `swap`, and with it torch, when it is first used."""
    if name == "swap":
        from repro.surgery import swap

        return swap
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
