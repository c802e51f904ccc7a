"""``python -m curvop``, which is what the command ``curvop`` runs."""

import sys

from curvop.reporting import main

if __name__ == "__main__":
    sys.exit(main())
