"""Training on mined triplets. Starts at `trainer.train`. Never imports Apache Beam."""
