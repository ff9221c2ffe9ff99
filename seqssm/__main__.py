"""``python -m seqssm``."""

import sys

try:
    from seqssm.cli.main import main
except KeyboardInterrupt:  # Ctrl-C while Python reads the package
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
