"""How a command ends: its exit code, and one line on standard error where it does not end well."""

import codecs
import os
import sys
import unicodedata
from collections.abc import Callable

import typer

from repro.errors import ReproError, one_line

USAGE_ERROR = typer.BadParameter.__base__  # click's, or that of the copy of click that typer carries
PLAIN = {
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "→": "->",
    "←": "<-",
    "‖": "||",
    "√": "sqrt",
    "✓": "+",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Characters that an output cannot show: without accents, as ASCII, or as a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    decomposed = unicodedata.normalize("NFKD", "".join(PLAIN.get(c, c) for c in text))
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return "".join(c if c.isascii() else "?" for c in plain), error.end


codecs.register_error("plainly", _plainly)


def any_terminal() -> None:
    """Let every output show every text: one that is not UTF-8 shows what it can, the rest in plain ASCII."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before this process began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plainly")


def code_of(command: Callable[[], object], arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    try:
        any_terminal()
        _enter(arguments)
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
    except ReproError as error:
        return _said(error, error.exit_code)
    except USAGE_ERROR as error:
        return _misused(error)
    except SyntaxError as error:  # of a method.py or experiment.py, which are read as they stand
        place = f"{error.filename or 'a Python file'}:{error.lineno}"
        return _said(f"{place}: {error.msg}; correct this line", 2)
    except BrokenPipeError:  # `repro list | head`: nobody reads on
        _no_more_output()
        return 1
    except ModuleNotFoundError as error:
        return _missing(error)
    except OSError as error:
        if error.filename is None and not _writable():  # of standard output itself
            _no_more_output()
        return _said(f"{error.filename or 'the output'}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _said("interrupted; what is finished is kept", 130)
    except Exception as error:
        from repro.run.processes import mended_bytecode

        line = mended_bytecode(error)
        if line is None:
            raise
        return _said(line, 2)
    return code if isinstance(code, int) else 0


def _enter(arguments: list[str]) -> None:
    """Work on the checkout in which the command stands, with its own source."""
    from repro.run.processes import enter_checkout

    enter_checkout("repro", arguments)  # whose start mends bytecode that is cut short


def _said(error: object, code: int) -> int:
    try:
        print(one_line(error), file=sys.stderr)
    except (OSError, ValueError):
        pass  # nobody hears it; the code says it
    return code


def _misused(error) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        path = error.ctx.command_path if error.ctx else "repro"
        _said(f"{error.format_message()} (`{path} --help` tells more)", error.exit_code)
    return error.exit_code


def _missing(error: ModuleNotFoundError) -> int:
    """A package of the suite is not installed: say in one line what to install."""
    name = (error.name or "").partition(".")[0]
    if not name or name == "repro":
        raise error
    return _said(
        f"the package {name} is not installed; this command needs the suite: "
        "run `make setup`, or `uv pip install -e '.[suite]'` in the checkout",
        2,
    )


def _writable() -> bool:
    """Whether standard output still takes something."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _no_more_output() -> None:
    """Send what is still buffered nowhere, so that the end of the process does not fail over it."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        pass
