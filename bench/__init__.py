"""The benchmark: what a unit of work costs relay and other gateways."""
