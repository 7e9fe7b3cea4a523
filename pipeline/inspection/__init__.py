"""`inspect`: what a data set is, before anything is prepared or trained; nothing here imports torch."""
