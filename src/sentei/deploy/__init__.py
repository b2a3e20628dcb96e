"""What leaves the house: networks in other runtimes, and how fast they are there."""
