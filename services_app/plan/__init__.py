"""What should be: endpoints, routes and allocation, as plain functions. No Django, clock, network or randomness."""
