"""Hand-written fakes of the dependencies, over their real protocols."""
