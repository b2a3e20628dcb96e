"""What is shown of runs: tables for the terminal, and an HTML page."""
