"""The suite's models once more in NumPyro, one file and one function for each of Pyro's, under the same names."""
