"""`python -m keswick` is the command `kes`."""

import sys

from keswick.cli import main

sys.exit(main())
