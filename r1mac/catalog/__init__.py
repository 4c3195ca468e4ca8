"""Facts about the models of the R1 family, as data checked when it is loaded."""
