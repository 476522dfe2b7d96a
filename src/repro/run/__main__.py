import sys

from repro.run.measure import main
from repro.run.processes import here

if __name__ == "__main__":
    sys.exit(here("repro.run", main))
