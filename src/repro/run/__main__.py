import sys

from repro.run.measure import main

if __name__ == "__main__":
    sys.exit(main())
