"""Code shared by all operations: call objects, order tables, validation, custom operators, engine choice."""
