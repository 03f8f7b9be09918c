"""``python -m kvmattr``: the command line."""

import sys

from kvmattr.cli import main

sys.exit(main())
