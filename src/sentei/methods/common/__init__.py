"""What the methods have in common."""
