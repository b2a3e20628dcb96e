"""Weight-shared supernets: stages, training, what they say of a candidate, and the merge of stage tables."""
