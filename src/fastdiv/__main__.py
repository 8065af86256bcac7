"""Run the command line as ``python -m fastdiv``."""

import sys

from .cli import main

sys.exit(main())
