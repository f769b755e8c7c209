"""A study: one recipe with other values of some keys, run by run, and the law that held-out loss follows over compute."""
