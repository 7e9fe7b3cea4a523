"""How fast a run's model is in each runtime, measured in turns, each in a fresh process that is alone on the machine."""
