"""The evidence ledger: which experiments there are, how one is made, what is kept of it, and the tables of that."""
