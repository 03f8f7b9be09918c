"""What study, bench and gate measure with: statistics, rounds, the machine, text, tables, files."""
