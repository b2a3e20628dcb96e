"""What leaves the house: files that run without sentei, each with its proof."""
