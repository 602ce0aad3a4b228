"""The parts of `tests.load.resume_trials`: its data, the order they must come in, the readers, what befalls them."""
