"""Search: trainings whose flags Optuna chooses, shared by any number of processes, and the best one trained anew and proven."""
