"""`python -m onestep`, for the ranks that `onestep train --processes N` starts."""

import sys

from onestep.cli import main

sys.exit(main())
