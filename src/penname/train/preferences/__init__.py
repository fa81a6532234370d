"""Preferences as trainings take them: read, put in order by stated rules, and put to a model."""
