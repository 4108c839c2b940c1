"""How a case is measured: sizes, inputs, checks against the references, floors, timing and the report."""
