"""The simulator and capacity planner: the real core on virtual time, over traces and fleets."""
