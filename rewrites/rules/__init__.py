"""The rewrite rules, one module per subject."""
