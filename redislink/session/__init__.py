"""One program for every party: its collective calls, their order, and the simulator."""
