"""Files: atomic writes, users' tables, public data sets."""
