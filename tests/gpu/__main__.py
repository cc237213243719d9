"""`python -m gpu [PART ...]`; see `runner`."""

import sys

from gpu.runner import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
