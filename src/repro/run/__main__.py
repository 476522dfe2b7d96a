import sys

from repro.run.core import main

if __name__ == "__main__":
    sys.exit(main())
