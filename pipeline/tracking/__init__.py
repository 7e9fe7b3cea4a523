"""MLflow: one run for each training, fed by rank 0 from what lies on its disk. Only this package imports mlflow.

Whatever MLflow is to know is written into the run folder first (`journal`), and sent from there by a thread of its own
(`sender`), so that a server that is slow, broken or gone costs training nothing and loses nothing.
"""
