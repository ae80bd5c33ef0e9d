"""`python -m api`: the same as the `creche` command."""

import sys

from .serve import main

sys.exit(main())
