"""``python -m seqssm``."""

import sys

from seqssm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
