"""``python -m conadv``: the command line."""

import sys

from conadv.cli import main

sys.exit(main())
