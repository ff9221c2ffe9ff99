"""What all operations share: call objects, order tables, validation, custom operators, engine choice."""
