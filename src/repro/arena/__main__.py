import sys

from repro.arena.protocol import main

if __name__ == "__main__":
    sys.exit(main())
