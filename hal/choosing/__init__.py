"""Plans: predicted from a profile, or chosen by measuring the finalists."""
