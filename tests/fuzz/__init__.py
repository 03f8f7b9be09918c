"""Fuzzing: what anybody may hand to the package, made by machines. docs/trust.md tells what runs and what it found."""
