"""How fast networks are: runtimes, fair timing, side by side, and tables that foretell it."""
