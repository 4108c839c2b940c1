"""SGLang model classes; SGLang imports this package as its external model package."""
