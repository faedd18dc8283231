"""`python -m altlas_core.notebook --refresh [FILE ...]`."""

import sys

from altlas_core.notebook.refresh import main

sys.exit(main(sys.argv[1:]))
