"""P-RLHF (arXiv 2402.05133): user models learnt from each user's preferences."""
