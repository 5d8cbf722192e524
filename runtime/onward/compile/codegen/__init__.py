"""The compiler's back end: target description, IR builder and machine-code cache."""
