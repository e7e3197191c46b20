"""Trainings against each other: arms, the plan of their runs, statistics over seeds and images, and the report."""
