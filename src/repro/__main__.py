"""`python -m repro`: the command `repro`."""

import sys

try:
    from repro.cli import main
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] == "repro":
        raise
    sys.exit(
        f"error: the package {error.name} is not installed; the command needs the suite: "
        "run `make setup`, or `uv pip install -e '.[suite]'` in the checkout"
    )
except (EOFError, ValueError, TypeError) as error:
    from repro.run.processes import mended_bytecode

    line = mended_bytecode(error)
    if line is None:
        raise
    sys.exit(f"error: {line}")

if __name__ == "__main__":
    main()
